"""Tiny deep networks to be cut into stages, and data for them; importable by other processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from uphold.models.stages.build import Blueprint
from uphold.models.stages.data import Examples
from uphold.models.stages.stages import Stages
from uphold.models.stages.training import Training, seeded

WIDTH, CLASSES = 8, 3
QUICK = Training(epochs=2, batch_size=8, learning_rate=1e-2)


class Block(nn.Module):
    """x + W2 ReLU(W1 LN(x)), with dropout or batch norm where wanted."""

    def __init__(self, width: int = WIDTH, dropout: float = 0.0, batch_norm: bool = False) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width) if batch_norm else nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, width), nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(self.dropout(torch.relu(self.up(self.norm(x)))))


def mlp(depths: tuple[int, ...], width: int = WIDTH, **block: Any) -> nn.Sequential:
    """A stem, so many blocks, norm and head."""
    blocks = [Block(width, **block) for _ in range(sum(depths))]
    return nn.Sequential(nn.Linear(4, width), *blocks, nn.LayerNorm(width), nn.Linear(width, CLASSES))


def batch_norm_mlp(depths: tuple[int, ...]) -> nn.Sequential:
    return mlp(depths, batch_norm=True)


def dropout_mlp(depths: tuple[int, ...]) -> nn.Sequential:
    return mlp(depths, dropout=0.5)


class Shell(nn.Module):
    """Blocks in a list, with modules and a parameter of its own around them; registered out of order."""

    def __init__(self, depth: int, width: int = WIDTH) -> None:
        super().__init__()
        self.final = nn.LayerNorm(width)
        self.place = nn.Parameter(torch.randn(width))
        self.layers = nn.ModuleList(Block(width) for _ in range(depth))
        self.head = nn.Linear(width, CLASSES)
        self.embed = nn.Linear(4, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x) + self.place
        for layer in self.layers:
            x = layer(x)
        return self.head(self.final(x))


def examples(count: int = 40, seed: int = 0, **more: Any) -> Examples:
    """Points of three classes that are not hard to tell apart."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(count) % CLASSES
    centres = torch.randn(CLASSES, 4, generator=torch.Generator().manual_seed(99))
    return Examples(centres[targets] * 4 + torch.randn(count, 4, generator=generator), targets, **more)


def noise(inputs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """An augmentation."""
    return inputs + 0.1 * torch.randn(inputs.shape, generator=generator)


def blueprint(depths: tuple[int, ...] = (2, 2, 2), build: Any = mlp) -> Blueprint:
    return Blueprint(build, depths)


def meta(depths: tuple[int, ...] = (2, 2, 2), build: Any = mlp, seed: int = 7) -> Stages:
    """An untrained meta model."""
    made: Stages = seeded(blueprint(depths, build).meta, seed)
    return made


def drawn(depths: tuple[int, ...], build: Any = mlp, seed: int = 0) -> Stages:
    """A model of these depths, cut."""
    made: Stages = seeded(lambda: Stages.by_counts(build(depths), depths), seed)
    return made
