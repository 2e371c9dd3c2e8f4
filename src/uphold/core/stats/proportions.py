"""Intervals and one-sided bounds of a binomial proportion: a share of independent instances, such as the NFR."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from uphold.core.stats.types import Floats, Interval, check_level

ProportionMethod = Literal["clopper-pearson", "wilson", "jeffreys", "mid-p"]

_HALVINGS = 60
"""Halvings of [0, 1] that leave no digit of a double to find."""


def proportion_interval(
    successes: int, trials: int, level: float = 0.95, method: ProportionMethod = "clopper-pearson"
) -> Interval:
    """Two-sided interval of a binomial proportion. Assumes independent instances.

    - `clopper-pearson`: exact (Clopper and Pearson, Biometrika 1934). Coverage is at least `level` for every sample
      size and proportion, zero successes included, and often well above it.
    - `wilson`: inverts the score test (Wilson, JASA 1927). Coverage is near `level` on average over proportions, below
      it at some.
    - `jeffreys`: equal tails of the posterior under the prior Beta(1/2, 1/2), with the end set to 0 without a success
      and to 1 without a failure (Brown, Cai and DasGupta, Statistical Science 2001, section 4.1.2).
    - `mid-p`: inverts the exact test with half the probability of what was seen (Lancaster, JASA 1961). Between
      `clopper-pearson` and `jeffreys` in width.

    Raises:
        ValueError: `trials` is not positive, `successes` is not in [0, trials], `level` is not in (0, 1), or the
            method is unknown.
    """
    low, high = proportion_bounds(successes, trials, level, method)
    return Interval(float(low), float(high))


def proportion_bounds(
    successes: ArrayLike, trials: ArrayLike, level: float = 0.95, method: ProportionMethod = "clopper-pearson"
) -> tuple[Floats, Floats]:
    """Both ends of `proportion_interval` for arrays of counts, which broadcast.

    `clopper-pearson`, `wilson` and `jeffreys` also take fractional counts, as effective sample sizes are.

    Raises:
        ValueError: as for `proportion_interval`.
    """
    check_level(level)
    x, n = np.broadcast_arrays(np.asarray(successes, dtype=float), np.asarray(trials, dtype=float))
    _check_counts(x, n)
    tail = (1 - level) / 2
    if method == "wilson":
        low, high = _wilson(x, n, tail)
    elif method in get_args(ProportionMethod):
        low, high = _one_sided(x, n, tail, method), 1 - _one_sided(n - x, n, tail, method)
    else:
        raise ValueError(f"unknown method {method!r}: one of {', '.join(get_args(ProportionMethod))}")
    return np.where(x == 0, 0.0, low), np.where(x == n, 1.0, high)


def proportion_upper_bound(successes: int, trials: int, level: float = 0.95) -> float:
    """Exact one-sided upper confidence bound of a binomial proportion (Clopper and Pearson, Biometrika 1934).

    The true proportion lies above it with a probability of at most 1 - level, whatever it is.

    Raises:
        ValueError: `trials` is not positive, `successes` is not in [0, trials], or `level` is not in (0, 1).
    """
    return 1 - proportion_lower_bound(trials - successes, trials, level)


def proportion_lower_bound(successes: int, trials: int, level: float = 0.95) -> float:
    """Exact one-sided lower confidence bound of a binomial proportion (Clopper and Pearson, Biometrika 1934).

    The true proportion lies below it with a probability of at most 1 - level, whatever it is.

    Raises:
        ValueError: `trials` is not positive, `successes` is not in [0, trials], or `level` is not in (0, 1).
    """
    check_level(level)
    x, n = np.array(successes, dtype=float), np.array(trials, dtype=float)
    _check_counts(x, n)
    return float(np.where(x == 0, 0.0, _one_sided(x, n, 1 - level, "clopper-pearson")))


def _check_counts(x: Floats, n: Floats) -> None:
    wrong = ~((n > 0) & (x >= 0) & (x <= n))
    if wrong.any():
        first = np.flatnonzero(wrong.ravel())[0]
        raise ValueError(
            f"need 0 <= successes <= trials and trials > 0, not {x.ravel()[first]:g} of {n.ravel()[first]:g}"
        )


def _one_sided(x: Floats, n: Floats, tail: float, method: ProportionMethod) -> Floats:
    """The lower bound that leaves `tail` below it; meaningless where x is 0."""
    from scipy.special import betaincinv

    x = np.maximum(x, 1e-300)
    if method == "jeffreys":
        return np.asarray(betaincinv(x + 0.5, n - x + 0.5, tail))
    if method == "clopper-pearson":
        return np.asarray(betaincinv(x, n - x + 1, tail))
    return _mid_p(x, n, tail)


def _mid_p(x: Floats, n: Floats, tail: float) -> Floats:
    """The p at which P(X > x) + P(X = x) / 2 is `tail`."""
    from scipy.special import betainc

    low, high = np.zeros(x.shape), np.ones(x.shape)
    some_failed = n > x
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        # P(X > x) is zero where no instance is left to be one more.
        above = np.where(some_failed, betainc(x + 1, np.where(some_failed, n - x, 1.0), middle), 0.0)
        below = (above + betainc(x, n - x + 1, middle)) / 2 < tail
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return np.asarray((low + high) / 2)


def _wilson(x: Floats, n: Floats, tail: float) -> tuple[Floats, Floats]:
    from scipy.special import ndtri

    z2 = float(ndtri(tail)) ** 2
    centre = (x + z2 / 2) / (n + z2)
    half = np.sqrt(z2 * (x * (n - x) / n + z2 / 4)) / (n + z2)
    return centre - half, centre + half
