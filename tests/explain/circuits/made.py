"""Small random decoders, and prompts for them that they solve."""

import copy
from functools import cache
from typing import Any

import torch

from tests.models.sites.small import AT, LENGTH, ROWS, decoder, inputs
from uphold.explain.circuits.prompts import Prompts
from uphold.models.sites.layout import Layout, read_layout
from uphold.models.sites.run import run

FAMILIES = ("llama", "gpt2", "gpt_neox")


@cache
def layout_of(family: str) -> Layout:
    """A decoder whose heads matter: weights four times as large as usual."""
    model: Any = copy.deepcopy(decoder(family))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight *= 4
    return read_layout(model)


def prompts(layout: Layout, seed: int, *, padded: bool = True) -> Prompts:
    """Prompts whose answer is what the model says."""
    given = inputs(seed)
    if not padded:
        given = {"input_ids": given["input_ids"]}
    at = AT if padded else torch.full((ROWS,), LENGTH - 1)
    answers = run(layout, given, at=at).argmax(-1)
    roles = {"last": at, "early": torch.tensor([1, 2, 2, 3, 4])}
    foils = torch.stack([(answers + 1) % 50, (answers + 7) % 50], 1)
    return Prompts(given, at, answers, foils, roles)


def tuned(family: str, parts: tuple[str, ...] = ("attn", "mlp"), size: float = 0.05) -> Layout:
    """A copy of a decoder in which what is inside blocks, in modules of these names, was changed."""
    model: Any = copy.deepcopy(layout_of(family).model)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if any(part in name for part in parts):
                weight += size * torch.randn(weight.shape, generator=generator)
    return read_layout(model)
