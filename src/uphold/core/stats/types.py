"""The array types and the interval that every statistic shares, and what all of them check."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Interval(NamedTuple):
    """A confidence interval with both ends included."""

    low: float
    high: float


def check_level(level: float) -> None:
    """Refuse a confidence level outside (0, 1).

    Raises:
        ValueError: `level` is not strictly between 0 and 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"need a level between 0 and 1, such as 0.95, not {level}")


def check_draws(draws: int) -> None:
    """Refuse a random procedure without a draw.

    Raises:
        ValueError: `draws` is not positive.
    """
    if draws < 1:
        raise ValueError(f"need at least one draw, not {draws}")
