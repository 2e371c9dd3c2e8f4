"""NuSLERP: spherical interpolation between two models, or between what two models changed against a base.

The formula is that of `slerp`, with t = w_2 / (w_1 + w_2), or 1/2 where the weights add up to 0, and linear only where
the directions are the same. With `nuslerp_flatten: false` every vector along the last dimension is interpolated by
itself, with `nuslerp_row_wise: true` besides, every vector along the first one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from uphold.core.registry import merge
from uphold.merge._sums import WEIGHT, moved, weighted_mean
from uphold.merge.protocol import Chunk, MergeMethod, Parameter, Settings, View

if TYPE_CHECKING:
    import torch

    from uphold.models.spherical import Shares


class Prepared(NamedTuple):
    """What to interpolate with."""

    t: float
    columns: int
    shares: Shares | None
    """Coefficients, of shape (), (rows, 1), or (steps, columns) for the first dimension; None at the ends."""


@merge("nuslerp")
class NuSlerp(MergeMethod):
    """Spherical interpolation between two models, or between their changes against a base."""

    base = "optional"
    unit = "row"
    at_least = at_most = 2
    parameters = (
        WEIGHT,
        Parameter("nuslerp_flatten", True, help="take a tensor as one vector"),
        Parameter("nuslerp_row_wise", False, help="without nuslerp_flatten: vectors along the first dimension"),
    )

    def prepare(self, view: View, settings: Settings, surveyed: object) -> Prepared:
        """The coefficients of the two models."""
        from uphold.models.gram import column_grams, gram, row_grams
        from uphold.models.spherical import PARALLEL, slerp_shares

        first, second = settings.of("weight")
        t = 0.5 if abs(first + second) < 1e-6 else second / (first + second)
        columns = view.shape[-1] if view.shape else 1
        if t in (0, 1) or 0 in view.shape:
            return Prepared(t, columns, None)

        def pairs() -> Iterator[tuple[int, list[torch.Tensor]]]:
            for chunk in view.chunks():
                yield chunk.start, list(chunk.models) if chunk.base is None else chunk.changes

        if settings.options["nuslerp_flatten"] or len(view.shape) < 2:
            grams = gram(([one.reshape(-1) for one in pair] for _, pair in pairs()), 2)
        elif settings.options["nuslerp_row_wise"]:
            steps = max(1, math.prod(view.shape[1:-1]))
            grams = column_grams(((start // columns, pair) for start, pair in pairs()), steps)
        else:
            grams = row_grams((pair for _, pair in pairs()), math.prod(view.shape[:-1]), 2).unsqueeze(1)
        return Prepared(t, columns, slerp_shares(grams, t, 1 - PARALLEL))

    def combine(self, chunk: Chunk, settings: Settings, prepared: Prepared) -> torch.Tensor:
        """The interpolation; weights (1, 0) and (0, 1) are the models, bit for bit."""
        line = weighted_mean(chunk.models, (1 - prepared.t, prepared.t))
        if prepared.shares is None:
            return line
        first, second, linear = (self._part(one, chunk, settings, prepared) for one in prepared.shares)
        x, y = chunk.models if chunk.base is None else chunk.changes
        arc = (x * first.float()).add_(y * second.float())
        # Where the interpolation is linear, nothing is taken from the base and given back, so nothing is rounded.
        return line.where(linear, arc if chunk.base is None else moved(chunk.base, arc))

    def _part(self, one: torch.Tensor, chunk: Chunk, settings: Settings, prepared: Prepared) -> torch.Tensor:
        """The coefficients of a chunk's rows."""
        if one.dim() == 0:
            return one
        import torch

        first, count = chunk.start // prepared.columns, len(chunk.models[0])
        if settings.options["nuslerp_row_wise"]:
            return one[torch.arange(first, first + count) % len(one)]
        return one[first : first + count]
