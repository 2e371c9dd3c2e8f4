"""Small networks whose subspaces are known, and pairs for them."""

from __future__ import annotations

import torch
from torch import nn

from tests.models.sites.small import decoder
from uphold.explain.subspaces.config import SubspaceConfig
from uphold.explain.subspaces.pairs import Pairs
from uphold.models.sites.layout import Layout, read_layout
from uphold.models.sites.site import Site

HIDDEN = Site("module-input", path="down")
FEW = SubspaceConfig(draws=200, placebos=2, epochs=5, rows=16, arbitrary_labels=False)


class Toy(nn.Module):
    """x -> h = x (1, 0, 1) -> y = h.(0, 2, 1); logits -y and y."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(1, 3, bias=False), nn.Linear(3, 1, bias=False)
        with torch.no_grad():
            self.up.weight.copy_(torch.tensor([[1.0], [0.0], [1.0]]))
            self.down.weight.copy_(torch.tensor([[0.0, 2.0, 1.0]]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.down(self.up(x))
        return torch.cat([-y, y], dim=1)


class Linear(nn.Module):
    """Everything linear: n hidden numbers, d of them transmitted."""

    def __init__(self, inputs: int = 4, hidden: int = 12, outputs: int = 5, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.up = nn.Linear(inputs, hidden, bias=False).double()
        self.down = nn.Linear(hidden, 6).double()
        self.read = nn.Linear(6, outputs).double()
        with torch.no_grad():
            for weight in self.parameters():
                weight.copy_(torch.randn(weight.shape, generator=generator, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.read(self.down(self.up(x)))
        return logits


def toy_pairs(count: int = 40) -> Pairs:
    size = torch.linspace(0.5, 2, count)[:, None]
    sign = torch.where(torch.arange(count) % 2 == 0, 1.0, -1.0)[:, None]
    base, source = size * sign, -size.flip(0) * sign
    return Pairs(base, source, (base[:, 0] > 0).long(), (source[:, 0] > 0).long())


def pairs_for(net: nn.Module, count: int = 40, seed: int = 0, inputs: int = 4) -> Pairs:
    """Inputs whose answers are what the network gives."""
    generator = torch.Generator().manual_seed(seed)
    base, source = torch.randn(2, 20 * count, inputs, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        answers, expected = net(base).argmax(1), net(source).argmax(1)
    kept = (answers != expected).nonzero()[:count, 0]
    assert len(kept) == count
    return Pairs(base[kept], source[kept], answers[kept], expected[kept])


def text_pairs(family: str, count: int = 6, length: int = 8, seed: int = 0) -> Pairs:
    """Pairs for a small random decoder, with answers that it gives itself."""
    generator = torch.Generator().manual_seed(seed)
    base, source = torch.randint(3, 50, (2, 8 * count, length), generator=generator)
    with torch.no_grad():
        answers, expected = (decoder(family)(ids).logits[:, -1].argmax(1) for ids in (base, source))
    kept = (answers != expected).nonzero()[:count, 0]
    assert len(kept) == count
    return Pairs({"input_ids": base[kept]}, {"input_ids": source[kept]}, answers[kept], expected[kept])


def layout_of(net: nn.Module) -> Layout:
    return read_layout(net)
