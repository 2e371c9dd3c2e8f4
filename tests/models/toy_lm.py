"""Small plain torch language models whose next-token logits can be worked out by hand."""

from __future__ import annotations

import torch
from torch import nn


class Toy(nn.Module):
    """One block without norms: hidden = E[last] + down(relu(up(E[last]))), logits = head(hidden)."""

    def __init__(self, vocabulary: int = 11, width: int = 6, neurons: int = 5, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def drawn(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=generator))

        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList([nn.Module()])
        self.blocks[0].up, self.blocks[0].fc2 = nn.Linear(width, neurons), nn.Linear(neurons, width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.embedding.weight, self.head.weight = drawn(vocabulary, width), drawn(vocabulary, width)
        self.blocks[0].up.weight, self.blocks[0].fc2.weight = drawn(neurons, width), drawn(width, neurons)
        self.blocks[0].up.bias, self.blocks[0].fc2.bias = drawn(neurons), drawn(width)

    def activations(self, ids: torch.Tensor) -> torch.Tensor:
        return self.blocks[0].up(self.embedding(ids)).relu()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.embedding(ids) + self.blocks[0].fc2(self.activations(ids)))
