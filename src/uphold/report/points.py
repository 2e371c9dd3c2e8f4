"""Points of a scatter plot: one per instance, the old model's score or margin against another version's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MOST_DISCS = 24
"""Up to so many different points, equal ones are spread into discs."""
DISC = 0.12
"""Radius of the largest disc, in units of the score."""


@dataclass(frozen=True)
class Points:
    """One scatter plot: arrays of shape (n,)."""

    old: Floats
    new: Floats
    kind: NDArray[np.int64]
    """Index into `instances.CODES`."""
    row: NDArray[np.int64]
    """Which of the report's rows the point stands for."""
    margins: bool
    """Whether the axes are gold-option margins rather than scores."""
    missing: int
    """Scored rows that have no finite value on one of the axes."""
    spread: bool = False
    """Whether equal points are spread into discs (see `spread_out`)."""


def spread_out(x: Floats, y: Floats) -> tuple[Floats, Floats, bool]:
    """Spread equal points into discs whose area is their number, where few different points would hide it.

    The k-th of equal points goes to angle k times the golden angle, at a radius that grows with the root of k.
    """
    places, place, counts = np.unique(np.stack([x, y]), axis=1, return_inverse=True, return_counts=True)
    if len(x) == 0 or places.shape[1] > MOST_DISCS or counts.max() == 1:
        return x, y, False
    place = place.ravel()
    order = np.argsort(place, kind="stable")
    rank = np.empty(len(x))
    rank[order] = np.arange(len(x)) - np.repeat(np.cumsum(counts) - counts, counts)
    radius = DISC * np.sqrt(rank / counts.max())
    angle = rank * np.pi * (3 - np.sqrt(5))
    return x + radius * np.cos(angle), y + radius * np.sin(angle), True
