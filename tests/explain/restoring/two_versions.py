"""Two small versions of one model, and forks at which they may differ."""

from __future__ import annotations

import copy

import torch

from tests.models.sites.small import decoder
from uphold.explain.restoring.effects import Hybrid
from uphold.explain.restoring.forks import Fork, Forks
from uphold.models.sites.layout import Layout, read_layout
from uphold.models.sites.site import Site

PLANTED = Site("mlp", 1)


def planted() -> tuple[Layout, Layout]:
    """The new version differs from the old one in the feed-forward part of block 1, and nowhere else."""
    old = decoder("llama")
    new = copy.deepcopy(old)
    generator = torch.Generator().manual_seed(0)
    for parameter in new.model.layers[1].mlp.parameters():
        parameter.data += torch.randn(parameter.shape, generator=generator)
    return read_layout(old), read_layout(new)


def hybrid(tokens: int = 60) -> Hybrid:
    return Hybrid(*planted(), tokens)


def forks(count: int, seed: int = 0, flips: bool = True) -> Forks:
    """Rows of which the old version prefers one token and the new version another, in the direction asked for."""
    models = planted()
    generator = torch.Generator().manual_seed(seed)
    rows: list[Fork] = []
    while len(rows) < count:
        length = int(torch.randint(3, 9, (1,), generator=generator))
        tokens = torch.randint(3, 50, (length,), generator=generator)
        with torch.no_grad():
            told = [layout.model(tokens[None]).logits[0, -1].argmax().item() for layout in models]
        if told[0] != told[1]:
            rows.append(Fork(f"{seed}-{len(rows)}", tuple(tokens.tolist()), int(told[0]), int(told[1])))
    return Forks(tuple(rows), 0)
