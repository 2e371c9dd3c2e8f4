"""Arcee Fusion: take over from a model only what matters most.

    importance = |theta_1 - theta_0| KL(softmax(theta_1) || softmax(theta_0)), the softmax over the last dimension

An entry is taken over if its importance is at least the tensor's median plus 1.5 times its interquartile range. The
quantiles are exact, of all entries, where mergekit draws a million at random; the divergence is in float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from uphold.core.registry import merge
from uphold.merge.protocol import Chunk, MergeMethod, Settings, View

if TYPE_CHECKING:
    import torch

QUANTILES = (0.25, 0.5, 0.75)
EPS = 1e-8
"""Added to every probability."""


@merge("arcee_fusion")
class ArceeFusion(MergeMethod):
    """Take over from one model the changes of outstanding importance."""

    base = "required"
    unit = "row"
    at_most = 1
    parameters = ()

    def prepare(self, view: View, settings: Settings, surveyed: object) -> float:
        """The importance from which on an entry is taken over."""
        from uphold.models.selection import largest

        length = math.prod(view.shape)

        def passes() -> Iterator[tuple[int, list[torch.Tensor]]]:
            return ((chunk.start, [importance(chunk).flatten()]) for chunk in view.chunks())

        # The k-th largest is at place length - k in ascending order.
        asked = [length - int(quantile * (length - 1)) for quantile in QUANTILES]
        lower, middle, upper = (cut.value for cut in largest(passes, [asked], length)[0])
        return middle + 1.5 * (upper - lower)

    def combine(self, chunk: Chunk, settings: Settings, prepared: float) -> torch.Tensor:
        """The model where it matters, else the base."""
        assert chunk.base is not None
        return chunk.models[0].where(importance(chunk) >= prepared, chunk.base)


def importance(chunk: Chunk) -> torch.Tensor:
    """How much each entry matters, of the chunk's shape, not negative."""
    assert chunk.base is not None
    model, base = chunk.models[0].double().softmax(-1) + EPS, chunk.base.double().softmax(-1) + EPS
    divergence = (model * (model / base).log()).sum(-1, keepdim=True).clamp(min=0)
    return ((chunk.models[0] - chunk.base).abs() * divergence).float()
