"""Confidence intervals of shares and means, of independent instances and of clusters of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from uphold.core import stats
from uphold.core.stats import Floats, Interval, Ints
from uphold.core.stats.proportions import ProportionMethod
from uphold.measure.pairs import Moment

SHARES: ProportionMethod = "wilson"
"""How intervals of shares are made: any method of `stats.proportion_interval` but mid-p, which clusters rule out."""
MANY = 20_000
"""Up to so many instances, or clusters, are resampled one by one."""


def share_interval(successes: int, trials: int, level: float) -> Interval:
    """Interval of a share of independent instances."""
    return stats.proportion_interval(successes, trials, level, method=SHARES)


def mean_interval(moment: Moment, level: float) -> Interval | None:
    """Student's t interval of the mean of independent values; None for fewer than two."""
    from scipy.special import stdtrit

    if moment.n < 2:
        return None
    quantile = float(stdtrit(moment.n - 1, (1 + level) / 2))
    half = quantile * float(np.sqrt(moment.variance / moment.n))
    return Interval(moment.mean - half, moment.mean + half)


def cluster_share_interval(successes: Floats, sizes: Floats, level: float) -> Interval | None:
    """Interval of sum(successes) / sum(sizes) over independent clusters; None for fewer than two that count.

    See `stats.clustered_share`. Clusters without an instance that could have the property do not count.
    """
    counted = sizes > 0
    if counted.sum() < 2:
        return None
    estimate = stats.clustered_share(successes[counted], sizes[counted], level, method=SHARES)
    return Interval(estimate.low, estimate.high)


def cluster_mean_interval(sums: Floats, sizes: Floats, level: float) -> Interval | None:
    """Interval of sum(sums) / sum(sizes) over independent clusters; None for fewer than two that count.

    See `stats.clustered_mean`.
    """
    counted = sizes > 0
    if counted.sum() < 2:
        return None
    estimate = stats.clustered_mean(sums[counted], sizes[counted], level)
    return Interval(estimate.low, estimate.high)


def bootstrap_intervals(
    sums: Floats, statistic: Callable[[Floats], Floats], draws: int, level: float, seed: int
) -> list[Interval | None]:
    """Bootstrap intervals of functions of sums over independent units: BCa, or percentile where that cannot be had.

    Args:
        sums: what each instance, or each cluster, adds to the sums, shape (G, k).
        statistic: from sums of shape (d, k) to values of shape (d, v), NaN where undefined.
        draws: resamples.
        level: of the intervals.
        seed: of the resampling.

    Returns:
        One interval per value; None where the value is undefined in more than 5% of the draws, or G is 1.
    """
    total = sums.sum(axis=0)
    values = statistic(total[None])[0]
    if len(sums) < 2:
        return [None] * len(values)
    drawn = stats.bootstrap_clusters(sums, statistic, draws, seed)
    left_out = statistic(total - sums) if len(sums) <= MANY else None
    return [
        corrected_interval(float(values[column]), drawn[:, column], left_out[:, column], level)
        if left_out is not None
        else stats.percentile_interval(drawn[:, column], level)
        for column in range(len(values))
    ]


def corrected_interval(
    value: float, drawn: Floats, left_out: Floats, level: float, weights: Ints | None = None
) -> Interval | None:
    """The BCa interval, or the percentile interval where that does not exist (see `stats.bca_interval`)."""
    return stats.bca_interval(value, drawn, left_out, level, weights) or stats.percentile_interval(drawn, level)
