"""The paired bootstrap, of instances and of clusters, and the intervals read off its draws."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from uphold.core.stats.types import Floats, Interval, Ints, check_draws, check_level


def bootstrap_shares(counts: Ints, draws: int, seed: int) -> Floats:
    """Paired bootstrap of a table of counts: `draws` resampled share vectors, shape (draws, cells).

    Resampling n instances with replacement and counting them per cell is a multinomial draw, so this is the
    ordinary paired bootstrap at a cost that does not grow with n. Assumes independent instances.
    """
    total = int(counts.sum())
    generator = np.random.default_rng(seed)
    return generator.multinomial(total, counts / total, size=draws) / total


def bootstrap_rows(
    rows: Floats, statistic: Callable[[Floats], Floats], draws: int, seed: int, chunk_values: int = 4_000_000
) -> Floats:
    """Paired bootstrap of a statistic of per-instance rows, shape (n, columns) -> (draws, values).

    `statistic` maps resampled rows of shape (d, n, columns) to (d, values). Memory stays near `chunk_values`
    floats. Assumes independent instances.
    """
    n, columns = rows.shape
    generator = np.random.default_rng(seed)
    per_chunk = max(1, chunk_values // (n * columns))
    parts = []
    for start in range(0, draws, per_chunk):
        size = min(per_chunk, draws - start)
        parts.append(statistic(rows[generator.integers(0, n, size=(size, n))]))
    return np.concatenate(parts)


def bootstrap_clusters(
    cells: ArrayLike,
    statistic: Callable[[Floats], Floats],
    draws: int = 2000,
    seed: int = 0,
    chunk_values: int = 4_000_000,
) -> Floats:
    """Bootstrap that resamples whole clusters (Davison and Hinkley, Bootstrap Methods, 1997, section 3.8).

    Clusters of equal rows are drawn together, so the cost grows with the different rows, not with the clusters.
    Assumes independent clusters, of which there are enough: with fewer than about 20, intervals read off these draws
    are too short.

    Args:
        cells: counts or sums per cluster, shape (clusters, cells).
        statistic: maps sums over the resampled clusters, shape (d, cells), to (d,) or (d, values).
        draws: resamples.
        seed: of the resampling.
        chunk_values: about this many drawn numbers are held at a time.

    Returns:
        The statistic of each draw, shape (draws,) or (draws, values).

    Raises:
        ValueError: there are fewer than two clusters, or `draws` is not positive.
    """
    check_draws(draws)
    rows = np.asarray(cells, dtype=float)
    if rows.ndim != 2 or rows.shape[0] < 2:
        raise ValueError(f"need a row for each of at least two clusters, not shape {rows.shape}")
    distinct, times = np.unique(rows, axis=0, return_counts=True)
    generator = np.random.default_rng(seed)
    per_chunk = max(1, chunk_values // len(distinct))
    parts = []
    for start in range(0, draws, per_chunk):
        drawn = generator.multinomial(len(rows), times / len(rows), size=min(per_chunk, draws - start))
        parts.append(statistic(drawn @ distinct))
    return np.concatenate(parts)


def percentile_interval(draws: Floats, level: float = 0.95) -> Interval | None:
    """Percentile interval of bootstrap draws; None when more than 5% of the draws are undefined (NaN)."""
    defined = _defined(draws)
    if defined is None:
        return None
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def bca_interval(
    value: float, draws: Floats, jackknife: ArrayLike, level: float = 0.95, weights: ArrayLike | None = None
) -> Interval | None:
    """Bias-corrected and accelerated interval of bootstrap draws (Efron, JASA 1987; Efron and Tibshirani 1993, 14.3).

    Second-order accurate for smooth statistics, unlike `percentile_interval`; at small n or far out in a tail it can
    still be too short.

    Args:
        value: the statistic of the data.
        draws: bootstrap draws of it, shape (draws,); NaN is undefined.
        jackknife: the statistic without each instance (or cluster) in turn, shape (n,).
        level: confidence, in (0, 1).
        weights: how many instances each jackknife value stands for, shape (n,); one each when left out.

    Returns:
        None where it does not exist: more than 5% of the draws or any jackknife value undefined, all draws on one
        side of the value, or a jackknife without spread.

    Raises:
        ValueError: `level` is not in (0, 1).
    """
    from scipy.special import ndtr, ndtri

    check_level(level)
    defined = _defined(draws)
    left_out = np.asarray(jackknife, dtype=float)
    times = np.ones(left_out.shape) if weights is None else np.asarray(weights, dtype=float)
    left_out, times = left_out[times > 0], times[times > 0]
    if defined is None or np.isnan(value) or left_out.size == 0 or np.isnan(left_out).any():
        return None
    below = float((defined < value).mean() + (defined <= value).mean()) / 2
    pull = np.average(left_out, weights=times) - left_out
    spread = float((times * pull**2).sum())
    if not 0 < below < 1 or spread <= 1e-30 * max(1.0, value**2):
        return None
    bias = float(ndtri(below))
    acceleration = float((times * pull**3).sum()) / (6 * spread**1.5)
    ends = []
    for tail in ((1 - level) / 2, (1 + level) / 2):
        moved = bias + float(ndtri(tail))
        ends.append(float(ndtr(bias + moved / (1 - acceleration * moved))))
    low, high = np.quantile(defined, ends)
    return Interval(float(low), float(high))


def _defined(draws: Floats) -> Floats | None:
    defined = draws[~np.isnan(draws)]
    return None if defined.size == 0 or defined.size < 0.95 * draws.size else defined
