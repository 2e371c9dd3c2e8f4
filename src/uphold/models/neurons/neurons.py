"""Feed-forward neurons of decoder language models: where they are, and reading and writing one.

A neuron (l, j) is what unit j of the feed-forward part of layer l writes to the residual stream: column j of the
down-projection's weight (d, m), or row j where the layer is GPT-2's `Conv1D`, which stores its transpose. Its
activation is entry j of the down-projection's *input*: in a gated layer that is act(gate) * up, which no module of the
layer returns by itself.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import ceil
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from uphold.core.errors import ModelError, UsageError
from uphold.models.neurons.config import Layers

KNOWN = ("down_proj", "mlp.c_proj", "dense_4h_to_h", "fc_out", "fc2", "w2")
"""Ends of the names that down-projections have in Llama, Gemma, Qwen, Mistral, Phi-3 / GPT-2, GPT-BigCode, StarCoder2 /
GPT-NeoX, BLOOM, Falcon / GPT-J, CodeGen / OPT, Phi / models after Meta's own Llama."""


@dataclass(frozen=True)
class Down:
    """The down-projection of one layer: m neurons of d numbers each."""

    layer: int
    """Counted from 0 in forward order."""
    name: str
    """Module path."""
    module: Any
    """`torch.nn.Linear`, or transformers' `Conv1D`."""

    @property
    def transposed(self) -> bool:
        """Whether a neuron is a row of the weight."""
        return isinstance(self.module, Conv1D)

    @property
    def parameter(self) -> str:
        """Name of its weight among the model's parameters."""
        return f"{self.name}.weight"

    @property
    def width(self) -> int:
        """Number of neurons, m."""
        return int(self.module.weight.shape[0 if self.transposed else 1])

    @property
    def hidden(self) -> int:
        """Length of a neuron, d."""
        return int(self.module.weight.shape[1 if self.transposed else 0])

    @property
    def block(self) -> tuple[str, int] | None:
        """The list of blocks it lies in, and its number there; None where its path has no number."""
        found = re.match(r"(?:(.*?)\.)?(\d+)(?:\.|$)", self.name)
        return (found[1] or "", int(found[2])) if found else None

    def neuron(self, index: int) -> torch.Tensor:
        """Neuron `index` as a view of the weight, shape (d,)."""
        weight: torch.Tensor = self.module.weight.detach()
        return weight[index] if self.transposed else weight[:, index]


@dataclass(frozen=True)
class Anatomy:
    """What neuron repair needs to know of a model."""

    model: Any
    """A causal language model: token ids (rows, length) to logits, or to an output that has `logits`."""
    downs: tuple[Down, ...]
    """Of all layers, in forward order."""
    head: torch.Tensor
    """The output matrix W_U, shape (V, d)."""
    vocabulary: int
    """Token ids from here on mean nothing to the tokenizer and are never predicted; at most V."""
    norm: Any | None
    """The module between the last layer and the head; None where there is none."""
    embedding: torch.Tensor | None
    """The input embedding, shape (V, d); None where it is not known."""

    @property
    def device(self) -> torch.device:
        """Where token ids go."""
        return (self.head if self.embedding is None else self.embedding).device

    def selected(self, layers: Layers) -> tuple[Down, ...]:
        """The down-projections in which neurons are looked for."""
        count = len(self.downs)
        kept = {"all": count, "half": ceil(count / 2), "quarter": ceil(count / 4), "last3": min(3, count)}[layers]
        return self.downs[count - kept :]


def read_anatomy(
    model: Any,
    *,
    vocabulary: int | None = None,
    modules: str | None = None,
    head: str | None = None,
    norm: str | None = None,
) -> Anatomy:
    """Find the parts of a model.

    Args:
        model: a transformers causal language model, or any torch one.
        vocabulary: how many token ids the tokenizer knows; all where None.
        modules: pattern of the down-projections' paths, as a shell's (`*.mlp.down_proj`); by known names where None.
        head: path of the output projection; asked of the model where None.
        norm: path of the last norm; the last one outside the blocks where None.

    Raises:
        ModelError: a part is not found, or cannot be edited (an adapter is attached, weights are quantised, a layer
            has several down-projections); the message says what to name.
        UsageError: a path that was given names nothing.
    """
    if hasattr(model, "peft_config"):
        raise ModelError("the model carries an adapter: merge it into the weights first (merge_and_unload)")
    projection = model.get_submodule(head) if head is not None and _has(model, head) else None
    if head is not None and projection is None:
        raise UsageError(f"the model has no module '{head}': give the path of its output projection")
    if projection is None and hasattr(model, "get_output_embeddings"):
        projection = model.get_output_embeddings()
    weight = getattr(projection, "weight", None)
    if weight is None or weight.dim() != 2:
        raise ModelError("the model does not say where its output projection is: give its path as head=")
    if norm is not None and not _has(model, norm):
        raise UsageError(f"the model has no module '{norm}': give the path of its last norm")
    size = len(weight) if vocabulary is None else min(int(vocabulary), len(weight))
    return Anatomy(
        model,
        _find_downs(model, int(weight.shape[1]), modules),
        weight.detach(),
        size,
        model.get_submodule(norm) if norm is not None else _last_norm(model),
        _embedding(model, weight),
    )


def _find_downs(model: Any, hidden: int, pattern: str | None) -> tuple[Down, ...]:
    linear = {name: one for name, one in model.named_modules() if isinstance(one, torch.nn.Linear | Conv1D)}
    if pattern is not None:
        names = [name for name in linear if fnmatchcase(name, pattern)]
        if not names:
            raise UsageError(f"no linear module matches '{pattern}'; there are {_examples(linear)}")
    else:
        names = [
            name
            for name in linear
            if any(name == end or name.endswith(f".{end}") for end in KNOWN) and re.search(r"\.\d+\.|^\d+\.", name)
        ]
    downs = tuple(Down(layer, name, linear[name]) for layer, name in enumerate(names))
    if not downs:
        raise ModelError(
            "no feed-forward down-projection has a name known here (mixtures of experts have none): name them by a "
            f"pattern as modules=; the model has {_examples(linear)}"
        )
    for down in downs:
        if down.hidden != hidden or not down.module.weight.is_floating_point():
            raise ModelError(
                f"{down.name} has a weight of {tuple(down.module.weight.shape)} in {down.module.weight.dtype}, but a "
                f"down-projection of floats to {hidden} hidden numbers is needed; name the right ones as modules="
            )
    blocks = [down.block for down in downs]
    twice = next((down for number, down in enumerate(downs) if down.block and down.block in blocks[:number]), None)
    if twice is not None:
        raise ModelError(
            f"{twice.name} is the second down-projection of its layer: a mixture of experts is not supported; name one "
            "per layer as modules="
        )
    return downs


def _examples(linear: dict[str, Any]) -> str:
    """Names of linear modules with their numbers replaced, for an error message."""
    kinds = list(dict.fromkeys(re.sub(r"(^|\.)\d+(?=\.|$)", r"\1*", name) for name in linear))
    return ", ".join(kinds[:8]) or "no linear module"


def _last_norm(model: Any) -> Any | None:
    """The last module with a norm's class name that lies in no list of blocks."""
    found = None
    for name, module in model.named_modules():
        if type(module).__name__.endswith("Norm") and not re.search(r"(^|\.)\d+(\.|$)", name):
            found = module
    return found


def _embedding(model: Any, head: torch.Tensor) -> torch.Tensor | None:
    module = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    if module is None:
        same = (
            one for one in model.modules() if isinstance(one, torch.nn.Embedding) and one.weight.shape == head.shape
        )
        module = next(same, None)
    return None if module is None else module.weight.detach()


def _has(model: Any, path: str) -> bool:
    return any(name == path for name, _ in model.named_modules())
