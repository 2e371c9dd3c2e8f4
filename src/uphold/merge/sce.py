"""SCE: select the entries in which models differ, weight models by what they changed, erase minority signs.

Wan et al., "FuseChat: knowledge fusion of chat models", 2024, arXiv:2408.07990.

    theta = theta_0 + sum_i w_i d_i a_i / sum_i w_i a_i,   w_i = mean(d_i^2) / sum_j mean(d_j^2)

d_i is the change, with `select_topk` below 1 only in that share of the entries in which the models' changes vary whose
variance is largest; a_i is 1 where d_i has the sign of sum_i d_i.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from uphold.core.registry import merge
from uphold.merge._sums import INT8_MASK, agreeing, moved, positive_sign, total_of
from uphold.merge.protocol import Chunk, MergeMethod, Parameter, Settings, View

if TYPE_CHECKING:
    import torch

    from uphold.models.selection import Cut


class Prepared(NamedTuple):
    """What was found out about a tensor."""

    cut: Cut | None
    """Which entries take part; None for all."""
    weights: tuple[float, ...]


@merge("sce", paper="arXiv:2408.07990")
class Sce(MergeMethod):
    """Select where models differ most, weight them by their squared changes, average what agrees in sign."""

    base = "required"
    parameters = (
        Parameter("select_topk", 1.0, low=1e-6, high=1.0, help="share of the varying entries that is kept"),
        INT8_MASK,
    )

    def prepare(self, view: View, settings: Settings, surveyed: Any) -> Prepared:
        """Find the entries and the weights of the models."""
        from uphold.models.gram import gram

        count = len(settings.models)
        cut = _cut(view, settings.options["select_topk"]) if settings.options["select_topk"] < 1 else None
        squares = gram((_selected(chunk, cut) for chunk in view.chunks()), count).diagonal()
        total = float(squares.sum())
        weights = [float(one) / total for one in squares] if total > 0 else [1 / count] * count
        return Prepared(cut, tuple(weights))

    def combine(self, chunk: Chunk, settings: Settings, prepared: Prepared) -> torch.Tensor:
        """The base plus the weighted mean of the changes that agree in sign."""
        assert chunk.base is not None
        changes = _selected(chunk, prepared.cut)
        sign = positive_sign(total_of(changes))
        for change, weight in zip(changes, prepared.weights, strict=True):
            change.mul_(weight)
        return moved(chunk.base, agreeing(changes, sign, prepared.weights))


def _selected(chunk: Chunk, cut: Cut | None) -> list[torch.Tensor]:
    """The changes, zero where the entry does not take part."""
    changes = chunk.changes
    if cut is not None:
        mask = cut.among(_variance(changes), chunk.start)
        for change in changes:
            change.mul_(mask)
    return changes


def _variance(changes: list[torch.Tensor]) -> torch.Tensor:
    """The variance over models of each entry."""
    mean = total_of(changes).div_(len(changes))
    total = (changes[0] - mean).square_()
    for change in changes[1:]:
        total.add_((change - mean).square_())
    return total.div_(len(changes))


def _cut(view: View, share: float) -> Cut:
    """The entries of the largest variance: `share` of those that vary, and at least one."""
    from uphold.models.selection import largest

    def passes() -> Iterator[tuple[int, list[torch.Tensor]]]:
        return ((chunk.start, [_variance(chunk.changes)]) for chunk in view.chunks())

    varying = sum(int(variances[0].count_nonzero()) for _, variances in passes())
    return largest(passes, [[min(varying, max(1, int(varying * share)))]], math.prod(view.shape))[0][0]
