"""What can be told from the names of tensors: layers, embeddings, buffers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

_VOCABULARY = re.compile(r"(.*\.)?(embed_tokens|wte|embed_in|word_embeddings|tok_embeddings|shared)\.weight")
_HEAD = re.compile(r"(.*\.)?(lm_head|embed_out|output_projection)\.(weight|bias)")
_BEFORE = re.compile(r"(.*\.)?(embed\w*|wte|wpe|\w*embeddings?|shared)(\..*)?")
_BUFFER = re.compile(r".*(\.inv_freq|\.masked_bias|\.attn\.bias|\.position_ids)")
_DIGITS = 6
_ALIASES = {
    "text_decoder": ("language_model",),
    "vision_tower": ("vision_tower", "vision_model", "visual"),
    "vision_model": ("vision_model", "vision_tower", "visual"),
}
"""Modules that recipes name otherwise than checkpoints do."""


class Layer(NamedTuple):
    """A tensor's place among numbered layers."""

    stack: str
    """What comes before the number, such as `model.layers.`."""
    number: int
    rest: str
    """What comes after it, such as `.mlp.up_proj.weight`."""


def layer_of(name: str) -> Layer | None:
    """The layer that a tensor belongs to, by the first number in its name; None outside the layers."""
    parts = name.split(".")
    for place, part in enumerate(parts[:-1]):
        if part.isascii() and part.isdigit() and len(part) <= _DIGITS:
            return Layer("".join(f"{one}." for one in parts[:place]), int(part), f".{'.'.join(parts[place + 1 :])}")
    return None


def stacks_of(names: Iterable[str]) -> dict[str, int]:
    """Number of layers by stack."""
    counts: dict[str, int] = {}
    for name in names:
        layer = layer_of(name)
        if layer is not None:
            counts[layer.stack] = max(counts.get(layer.stack, 0), layer.number + 1)
    return counts


def is_embedding(name: str) -> bool:
    """Whether its rows are input embeddings of tokens."""
    return _VOCABULARY.fullmatch(name) is not None


def is_head(name: str) -> bool:
    """Whether its rows are the output head's, one for each token."""
    return _HEAD.fullmatch(name) is not None


def is_buffer(name: str) -> bool:
    """Whether it is a constant that some versions of a library saved and others did not."""
    return _BUFFER.fullmatch(name) is not None


def comes_first(name: str) -> bool:
    """Whether a tensor outside the layers belongs before them, as embeddings do."""
    return _BEFORE.fullmatch(name) is not None and not is_head(name)


def belongs_to(name: str, module: str) -> bool:
    """Whether a tensor is part of a recipe's module: one of the parts of its path, or `default` for all."""
    if module == "default":
        return True
    path = f".{name}"
    return any(f".{part}." in path for part in _ALIASES.get(module, (module.strip("."),)))
