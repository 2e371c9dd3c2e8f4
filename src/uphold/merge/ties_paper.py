"""TIES as in its authors' code: one trim over the whole model, equal weights.

Yadav et al., NeurIPS 2023, arXiv:2306.01708 (`prateeky2806/ties-merging`).

A change is trimmed to its `density` largest entries over all tensors together. Where the changes of an entry add up to
0, its sign is the one that most entries of the model have. Entries of that sign are averaged without weights. The
authors' rule keeps one entry more than the share says, and all that equal the last one; so does this.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from uphold.core.errors import UsageError
from uphold.core.registry import merge
from uphold.merge._sums import DENSITY, LAMBDA, agreeing, moved, total_of
from uphold.merge.protocol import Chunk, MergeMethod, Settings, View

if TYPE_CHECKING:
    import torch


class Surveyed(NamedTuple):
    """What holds for the whole model."""

    smallest: tuple[float, ...]
    """For each task vector, the magnitude from which on entries are kept."""
    sign: int
    """That of most entries: 1 or -1."""


@merge("ties_paper", paper="arXiv:2306.01708")
class TiesPaper(MergeMethod):
    """TIES as published: trim over the whole model, elect signs, average what agrees without weights."""

    base = "required"
    parameters = (replace(DENSITY, default=0.2, help="share of a whole model's changes that is kept"), LAMBDA)

    def survey(self, views: Iterator[tuple[View, Settings]]) -> Surveyed:
        """Find the thresholds and the sign of the majority.

        Raises:
            UsageError: a model's density is not the same for all tensors.
        """
        held = list(views)
        if not held:
            return Surveyed((), 1)
        smallest = _smallest([view for view, _ in held], _densities([settings for _, settings in held]))
        positive = negative = 0
        for view, _ in held:
            for chunk in view.chunks():
                total = total_of(_kept(chunk, smallest))
                positive += int((total > 0).sum())
                negative += int((total < 0).sum())
        return Surveyed(smallest, 1 if positive >= negative else -1)

    def prepare(self, view: View, settings: Settings, surveyed: Surveyed) -> Surveyed:
        """What holds for the whole model."""
        return surveyed

    def combine(self, chunk: Chunk, settings: Settings, prepared: Surveyed) -> torch.Tensor:
        """The base plus lambda times the mean of the changes that agree in sign."""
        assert chunk.base is not None
        strength = settings.options["lambda"]
        if strength == 0:
            return chunk.base
        changes = _kept(chunk, prepared.smallest)
        sign = total_of(changes).sign_()
        sign.add_(sign.clone().eq_(0), alpha=prepared.sign)
        return moved(chunk.base, agreeing(changes, sign, [1.0] * len(changes)).mul_(strength))


def _densities(settings: Sequence[Settings]) -> list[float]:
    """Each model's density, the same for all tensors."""
    found = [sorted(set(values)) for values in zip(*(one.of("density") for one in settings), strict=True)]
    for values in found:
        if len(values) > 1:
            raise UsageError(
                f"'ties_paper' trims over the whole model and takes one density per model, not {values[0]:g} here and "
                f"{values[-1]:g} there: give it one number, or use 'ties'"
            )
    return [values[0] for values in found]


def _smallest(views: Sequence[View], densities: Sequence[float]) -> tuple[float, ...]:
    """The magnitude of the smallest entry kept of each model."""
    from uphold.models.selection import largest

    def passes() -> Iterator[tuple[int, list[torch.Tensor]]]:
        start = 0
        for view in views:
            for chunk in view.chunks():
                yield start + chunk.start, [change.abs_() for change in chunk.changes]
            start += math.prod(view.shape)

    length = sum(math.prod(view.shape) for view in views)
    found = largest(passes, [[int(length * density) + 1] for density in densities], length)
    return tuple(cuts[0].value for cuts in found)


def _kept(chunk: Chunk, smallest: Sequence[float]) -> list[torch.Tensor]:
    """Each model's changes, zero where they are too small."""
    return [change.mul_(change.abs().ge_(least)) for change, least in zip(chunk.changes, smallest, strict=True)]
