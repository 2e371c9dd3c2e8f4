"""Passthrough: one model as it is, or scaled; what stacks of slices are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from uphold.core.registry import merge
from uphold.merge.protocol import Chunk, MergeMethod, Parameter, Settings

if TYPE_CHECKING:
    import torch


@merge("passthrough")
class Passthrough(MergeMethod):
    """Copy one model, scaled if asked."""

    base = "refused"
    at_most = 1
    parameters = (Parameter("scale", 1.0, per_model=True, help="what to multiply with"),)

    def combine(self, chunk: Chunk, settings: Settings, prepared: Any) -> torch.Tensor:
        """The model's own values, or a multiple of them."""
        scale = settings.models[0]["scale"]
        return chunk.models[0] if scale == 1 else chunk.models[0] * scale
