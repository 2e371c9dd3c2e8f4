"""Small random networks of the kinds that causal graphs treat, and images for them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


def seeded(make: Callable[[], nn.Sequential], seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make().eval().double()


def lenet() -> nn.Sequential:
    return seeded(
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, padding_mode="circular"),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(24, 7),
            nn.ReLU(),
            nn.Linear(7, 3),
        )
    )


def images(n: int = 24, seed: int = 1) -> torch.Tensor:
    return torch.randn(n, 2, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def mlp(hidden: int = 6) -> nn.Sequential:
    return seeded(
        lambda: nn.Sequential(nn.Linear(5, hidden), nn.ReLU(), nn.Linear(hidden, 4), nn.ReLU(), nn.Linear(4, 3))
    )


def vectors(n: int = 40, seed: int = 1) -> torch.Tensor:
    return torch.randn(n, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
