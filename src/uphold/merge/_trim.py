"""Keeping the entries of a change whose magnitude has a certain rank in its tensor. Imports no torch.

Magnitudes at the threshold are cut by position: the first ones stay. At least one entry stays.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from uphold.merge._task_vectors import TaskVectors
from uphold.merge.protocol import Chunk, Parameter, Settings, View

if TYPE_CHECKING:
    import torch

    from uphold.models.selection import Cut

RESCALE = Parameter("rescale", False, help="scale what is kept so that each tensor's L1 norm is that of the change")


class Kept(NamedTuple):
    """What is kept of one model's change of one tensor."""

    outer: Cut
    """Entries that are not among these are too small."""
    inner: Cut | None
    """Entries that are among these are too large; None where none is."""
    scale: float = 1.0

    def of(self, change: torch.Tensor, start: int) -> torch.Tensor:
        """Set the rest of a change, whose first entry is the tensor's `start`-th, to zero, in place."""
        magnitudes = change.abs()
        change.mul_(self.outer.among(magnitudes, start))
        if self.inner is not None:
            change.mul_(1 - self.inner.among(magnitudes, start))
        return change if self.scale == 1 else change.mul_(self.scale)


class Trimmed(TaskVectors):
    """A method on task vectors that keeps entries by the rank of their magnitude."""

    def ranks(self, settings: Settings, model: int, length: int) -> tuple[int, int]:
        """How many of the largest entries are too large, and how many are kept after them."""
        return 0, max(1, int(settings.models[model]["density"] * length))

    def prepare(self, view: View, settings: Settings, surveyed: Any) -> list[Kept | None]:
        """Find the thresholds; None for a model of which everything is kept."""
        length = math.prod(view.shape)
        ranks = [
            self.ranks(settings, index, length) if model["density"] < 1 else (0, length)
            for index, model in enumerate(settings.models)
        ]
        found = trim(view, ranks, length)
        return _rescaled(view, found) if settings.options["rescale"] and any(found) else found

    def kept(self, model: int, change: torch.Tensor, chunk: Chunk, settings: Settings, prepared: Any) -> torch.Tensor:
        """The entries between the thresholds."""
        one: Kept | None = prepared[model]
        return change if one is None else one.of(change, chunk.start)


def trim(view: View, ranks: Sequence[tuple[int, int]], length: int) -> list[Kept | None]:
    """For each model, what to keep so that `ranks` hold; None where that is everything."""
    from uphold.models.selection import largest

    some = [index for index, (above, count) in enumerate(ranks) if above or count < length]

    def passes() -> Iterator[tuple[int, list[torch.Tensor]]]:
        for chunk in view.chunks():
            assert chunk.base is not None
            yield chunk.start, [(chunk.models[index] - chunk.base).abs_() for index in some]

    asked = [[ranks[index][0] + ranks[index][1], *ranks[index][:1]] for index in some]
    found: list[Kept | None] = [None] * len(ranks)
    for index, (outer, inner) in zip(some, largest(passes, asked, length), strict=True):
        found[index] = Kept(outer, inner if ranks[index][0] else None)
    return found


def _rescaled(view: View, found: Sequence[Kept | None]) -> list[Kept | None]:
    """The same with the scales that give each change its L1 norm back."""
    from uphold.models.gram import absolute_sums

    some = [(index, one) for index, one in enumerate(found) if one is not None]

    def both() -> Iterator[list[torch.Tensor]]:
        for chunk in view.chunks():
            changes = chunk.changes
            yield [changes[index] for index, _ in some] + [
                one.of(changes[index].clone(), chunk.start) for index, one in some
            ]

    sums = absolute_sums(both(), 2 * len(some))
    scaled = list(found)
    for (index, one), whole, kept in zip(some, sums[: len(some)], sums[len(some) :], strict=True):
        scaled[index] = one._replace(scale=whole / kept if kept else 1.0)
    return scaled
