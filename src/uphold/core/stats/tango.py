"""Tango's score test of a paired difference of shares, and the interval that inverts it (Stat. in Medicine 1998)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from uphold.core.stats.types import Floats, check_level

_HALVINGS = 60


def tango_score(negative: ArrayLike, positive: ArrayLike, trials: ArrayLike, difference: ArrayLike) -> Floats:
    """Score statistic Z of "accuracy(new) - accuracy(old) is `difference`"; standard normal in large samples.

    With b positive and c negative flips among n and D the difference, Z = (b - c - nD) / sqrt(n (2q + D(1 - D))),
    where q is the maximum likelihood estimate of the share of negative flips under D: the larger root of
    2n q^2 + ((2n - b + c)D - b - c) q - c D(1 - D) = 0. Positive when the data lie above `difference`, falls as
    `difference` rises. Arguments broadcast. Infinite where `difference` is impossible for the data.
    """
    c, b, n, d = (np.asarray(value, dtype=float) for value in (negative, positive, trials, difference))
    linear = (2 * n - b + c) * d - b - c
    constant = c * d * (1 - d)
    root = np.sqrt(np.maximum(linear**2 + 8 * n * constant, 0))
    # The usual formula of the larger root cancels when `linear` is positive.
    safe = np.where(linear + root > 0, linear + root, 1.0)
    q = np.where(linear > 0, 2 * constant / safe, (root - linear) / (4 * n))
    variance = n * (2 * np.maximum(q, np.maximum(0, -d)) + d * (1 - d))
    top = b - c - n * d
    # At +-1 and with nothing but one kind of flip the variance is rounding error around zero.
    flat = variance <= 1e-14 * n
    certain = np.where(np.abs(top) <= 1e-12 * n, 0.0, np.copysign(np.inf, top))
    return np.where(flat, certain, top / np.sqrt(np.where(flat, 1.0, variance)))


def tango_bounds(
    negative: ArrayLike, positive: ArrayLike, trials: ArrayLike, level: float = 0.95
) -> tuple[Floats, Floats]:
    """Both ends of Tango's two-sided interval of the difference, for arrays of counts, which broadcast.

    Raises:
        ValueError: `level` is not in (0, 1).
    """
    from scipy.special import ndtri

    check_level(level)
    c, b, n = np.broadcast_arrays(*(np.asarray(value, dtype=float) for value in (negative, positive, trials)))
    z = float(ndtri((1 + level) / 2))
    return _crossing(c, b, n, z), -_crossing(b, c, n, z)


def _crossing(c: Floats, b: Floats, n: Floats, z: float) -> Floats:
    """The difference below (b - c) / n at which the score is z."""
    low, high = np.full(c.shape, -1.0), (b - c) / n
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        above = tango_score(c, b, n, middle) > z
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return np.asarray((low + high) / 2)
