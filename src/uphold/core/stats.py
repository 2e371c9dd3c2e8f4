"""Paired statistics on counts and scores. Plain functions over NumPy arrays; every random one takes a seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Interval(NamedTuple):
    """A confidence interval with both ends included."""

    low: float
    high: float


def proportion_interval(successes: int, trials: int, level: float = 0.95) -> Interval:
    """Exact two-sided interval of a binomial proportion (Clopper and Pearson, Biometrika 1934).

    Coverage is at least `level` for every sample size and proportion, zero successes included.

    Raises:
        ValueError: `trials` is not positive, or `successes` is not in [0, trials].
    """
    from scipy.special import betaincinv

    _check_counts(successes, trials)
    tail = (1 - level) / 2
    low = 0.0 if successes == 0 else float(betaincinv(successes, trials - successes + 1, tail))
    high = 1.0 if successes == trials else float(betaincinv(successes + 1, trials - successes, 1 - tail))
    return Interval(low, high)


def proportion_upper_bound(successes: int, trials: int, level: float = 0.95) -> float:
    """Exact one-sided upper confidence bound of a binomial proportion (Clopper and Pearson)."""
    return proportion_interval(successes, trials, 2 * level - 1).high


def _check_counts(successes: int, trials: int) -> None:
    if trials <= 0 or not 0 <= successes <= trials:
        raise ValueError(f"need 0 <= successes <= trials and trials > 0, not {successes} of {trials}")


def mcnemar_exact(negative_flips: int, positive_flips: int) -> float:
    """Two-sided p-value of the exact McNemar test (McNemar, Psychometrika 1947).

    Null hypothesis: a discordant pair is a negative or a positive flip with probability one half each. Assumes
    independent instances. 1.0 when there are no discordant pairs.
    """
    from scipy.special import bdtr

    discordant = negative_flips + positive_flips
    if discordant == 0:
        return 1.0
    return min(1.0, 2 * float(bdtr(min(negative_flips, positive_flips), discordant, 0.5)))


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


def percentile_interval(draws: Floats, level: float = 0.95) -> Interval | None:
    """Percentile interval of bootstrap draws; None when more than 5% of the draws are undefined (NaN)."""
    defined = draws[~np.isnan(draws)]
    if defined.size < 0.95 * draws.size or defined.size == 0:
        return None
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))
