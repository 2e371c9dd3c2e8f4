"""Makers of freshly drawn models of any depth, cut into stages: what meta models and new stages come from."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import nn

from uphold.core.errors import UsageError
from uphold.models.stages.stages import Stages

StageBuilder = Callable[[int], Stages]
"""Called with a stage's number under a seed of torch's global generator; makes a freshly drawn model that is cut like
the meta model. Only that stage of it is used, so the others may be as small as they can be."""


@dataclass(frozen=True)
class Blueprint:
    """An architecture of any depth, and the depths that are wanted."""

    build: Callable[[tuple[int, ...]], nn.Module]
    """Makes a freshly drawn model with so many blocks in each stage."""
    depths: tuple[int, ...]
    """Blocks in each stage of the target."""
    meta_depths: tuple[int, ...] = ()
    """Blocks in each stage of the meta model; empty: one each."""
    sample: torch.Tensor | None = None
    """A batch of inputs; see `Stages.by_counts`."""

    def __post_init__(self) -> None:
        if not self.depths or min(*self.depths, *self.small) < 1 or len(self.small) != len(self.depths):
            raise UsageError(
                f"depths {list(self.depths)} and meta depths {list(self.small)}: expected one number of at least 1 for "
                "each stage"
            )

    @property
    def small(self) -> tuple[int, ...]:
        """Blocks in each stage of the meta model."""
        return self.meta_depths or (1,) * len(self.depths)

    def meta(self) -> Stages:
        """A meta model, freshly drawn."""
        return self._made(self.small)

    def whole(self) -> Stages:
        """A target, freshly drawn."""
        return self._made(self.depths)

    def stage(self, index: int) -> Stages:
        """A model whose stage `index` is as deep as the target's and all others are as in the meta model."""
        return self._made((*self.small[:index], self.depths[index], *self.small[index + 1 :]))

    def _made(self, depths: tuple[int, ...]) -> Stages:
        return Stages.by_counts(self.build(depths), depths, sample=self.sample)


@dataclass(frozen=True)
class DecoderBuild:
    """`Blueprint.build` for a decoder that transformers knows, float32."""

    config: Any
    """Of the target."""
    depths: tuple[int, ...]
    """Layers in each stage of the target; their sum is the configuration's."""

    def __call__(self, depths: tuple[int, ...]) -> nn.Module:
        """A freshly drawn model; where kinds of layers alternate, each stage has the first kinds of its own."""
        made = copy.deepcopy(self.config)
        made.num_hidden_layers = sum(depths)
        listed = vars(self.config).get("layer_types")
        if listed:
            starts = (0, *accumulate(self.depths))
            if any(few > most for few, most in zip(depths, self.depths, strict=True)):
                raise UsageError(f"a stage of {list(depths)} is deeper than the target's {list(self.depths)}")
            made.layer_types = [
                kind for start, few in zip(starts, depths, strict=False) for kind in listed[start : start + few]
            ]
        return _decoder(made, torch.float32)


def decoder_blueprint(config: Any, depths: tuple[int, ...], meta_depths: tuple[int, ...] = ()) -> Blueprint:
    """The blueprint of a decoder that transformers knows.

    Args:
        config: of the target.
        depths: layers in each stage of the target.
        meta_depths: see `Blueprint`.

    Raises:
        UsageError: the depths do not add up to the configuration's.
    """
    if sum(depths) != config.num_hidden_layers:
        raise UsageError(f"the configuration has {config.num_hidden_layers} layers and the stages {list(depths)}")
    return Blueprint(DecoderBuild(config, tuple(depths)), tuple(depths), tuple(meta_depths))


def redrawn(stages: Stages) -> Stages:
    """A model of the same architecture and dtype, cut alike, with weights drawn anew from torch's global generator.

    Raises:
        UsageError: a module has weights and does not say how they are drawn (`reset_parameters`).
    """
    config = getattr(stages.model, "config", None)
    if config is not None and hasattr(stages.model, "save_pretrained"):
        dtype = next(stages.model.parameters()).dtype
        return Stages(_decoder(copy.deepcopy(config), dtype), stages.blocks, stages.starts, stages.late)
    model = copy.deepcopy(stages.model)
    for name, module in model.named_modules():
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()
        elif list(module.parameters(recurse=False)):
            raise UsageError(
                f"'{name or type(module).__name__}' does not say how its weights are drawn (reset_parameters): give a "
                "builder of the new stage"
            )
    return Stages(model, stages.blocks, stages.starts, stages.late)


def _decoder(config: Any, dtype: torch.dtype) -> nn.Module:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

    try:
        family = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    except KeyError as error:
        raise UsageError(f"{type(config).__name__} is no decoder that transformers knows: give a builder") from error
    kernel = "sdpa" if getattr(family, "_supports_sdpa", True) else "eager"
    made: nn.Module = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=kernel)
    return made
