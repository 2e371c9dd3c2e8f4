"""Student's interval of a mean."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from uphold.core.stats.types import Interval, check_level


def mean_interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """Two-sided t interval of a mean (Student, Biometrika 1908).

    Exact for normal values; for others it leans on the mean being nearly normal, which skewed scores of few instances
    are not. Assumes independent instances. A single point where all values are equal: they show no spread to go by.

    Raises:
        ValueError: there are fewer than two values, one of them is not finite, or `level` is not in (0, 1).
    """
    from scipy.special import stdtrit

    check_level(level)
    sample = np.asarray(values, dtype=float)
    if sample.ndim != 1 or sample.size < 2 or not np.isfinite(sample).all():
        raise ValueError(f"need at least two finite values, not shape {sample.shape}")
    half = float(stdtrit(sample.size - 1, (1 + level) / 2) * sample.std(ddof=1) / np.sqrt(sample.size))
    mean = float(sample.mean())
    return Interval(mean - half, mean + half)
