"""Instances that come in clusters (one document, several questions): errors, intervals and tests that know it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from uphold.core.stats.paired_exact import ExactBound, exact_lower_bound
from uphold.core.stats.proportions import ProportionMethod, proportion_bounds
from uphold.core.stats.signs import LATTICE, sign_flip_p
from uphold.core.stats.types import Floats, check_draws, check_level

Table = tuple[int, int, int]
"""Negative flips, positive flips, pairs."""

FEW_CLUSTERS = 10
"""With fewer clusters, intervals and tests that lean on many of them are not to be trusted."""


@dataclass(frozen=True)
class ClusterEstimate:
    """A mean over instances whose error allows for clusters."""

    value: float
    standard_error: float
    low: float
    high: float
    clusters: int
    effective_size: float | None
    """Independent instances that would give this standard error; None where that is not known."""

    @property
    def few(self) -> bool:
        """Whether there are fewer than `FEW_CLUSTERS` clusters, so that low and high are not to be trusted."""
        return self.clusters < FEW_CLUSTERS


def clustered_mean(
    sums: ArrayLike, sizes: ArrayLike, level: float = 0.95, squares: ArrayLike | None = None
) -> ClusterEstimate:
    """Mean over instances with the cluster-robust standard error and Student's t of G - 1 degrees of freedom.

    With s_g and n_g the sum and size of cluster g, N = sum n_g and m = sum s_g / N, the error is
    sqrt(G / (G - 1) sum (s_g - m n_g)^2) / N: the sandwich estimator CR1 of a regression on a constant (Liang and
    Zeger, Biometrika 1986; Cameron and Miller, Journal of Human Resources 2015, section II). With one instance per
    cluster it is `mean_interval`. Assumes independent clusters and many of them (see `ClusterEstimate.few`). For the
    share of a rare event prefer `clustered_share`, which does not reach below zero.

    Args:
        sums: of the variable per cluster, shape (G,).
        sizes: instances per cluster, shape (G,), all positive.
        level: confidence, in (0, 1).
        squares: sums of the squared variable per cluster, for `effective_size`. When left out, `sums` is taken for
            counts of a right-or-wrong variable if it could be that, else `effective_size` is None.

    Raises:
        ValueError: there are fewer than two clusters, the shapes differ, a size is not positive, a sum is not finite,
            or `level` is not in (0, 1).
    """
    from scipy.special import stdtrit

    check_level(level)
    s, n = _clusters(sums, sizes)
    total, count = float(n.sum()), s.size
    value = float(s.sum()) / total
    error = float(np.sqrt(count / (count - 1) * ((s - value * n) ** 2).sum())) / total
    half = float(stdtrit(count - 1, (1 + level) / 2)) * error
    if squares is None:
        counts = bool((s == np.rint(s)).all() and (s >= 0).all() and (s <= n).all())
        square = float(s.sum()) if counts else None
    else:
        square = float(np.asarray(squares, dtype=float).sum())
    size = _effective_size(value, square, error, total)
    return ClusterEstimate(value, error, value - half, value + half, count, size)


def clustered_share(
    successes: ArrayLike, sizes: ArrayLike, level: float = 0.95, method: ProportionMethod = "clopper-pearson"
) -> ClusterEstimate:
    """Share over instances, with a binomial interval on the effective number of instances.

    `proportion_interval` of p n* successes among n* = N / design effect, after Korn and Graubard (Survey Methodology
    1998). As they do, n* is multiplied by the squared ratio of the t quantiles with N - 1 degrees of freedom and with
    those of the design effect, and is no more than N. Unlike theirs, these degrees are not G - 1 but one less than
    the clusters with a success (or with a failure, if fewer), because all other clusters say nothing about how
    successes cluster; and n* is not taken below G, the worst case, on that account. Clusters of unequal size count
    as (sum n_g)^2 / sum n_g^2 (Kish, Survey Sampling 1965). Where every cluster has the same share, as without a
    success, n* is G. Keeps within [0, 1] and, where sizes are not very unequal, its coverage for rare events, where
    the t interval of `clustered_mean` does not. With one instance per cluster it is `proportion_interval`. Assumes
    independent clusters.

    Args:
        successes: per cluster, shape (G,).
        sizes: instances per cluster, shape (G,), all positive.
        level: confidence, in (0, 1).
        method: a method of `proportion_interval` that takes fractional counts: all but `mid-p`.

    Raises:
        ValueError: as for `clustered_mean`, or a cluster has more successes than instances, or the method is `mid-p`
            or unknown.
    """
    s, n = _clusters(successes, sizes)
    if (s < 0).any() or (s > n).any():
        raise ValueError("need 0 <= successes <= size in every cluster")
    if method == "mid-p":
        raise ValueError("mid-p has no meaning for the fractional counts of clusters: clopper-pearson or jeffreys")
    plain = clustered_mean(s, n, level)
    telling = min(s > 0, s < n, key=np.count_nonzero)
    size = _trusted_size(plain.effective_size, telling, n, level)
    low, high = proportion_bounds(plain.value * size, size, level, method)
    return ClusterEstimate(plain.value, plain.standard_error, float(low), float(high), plain.clusters, size)


def mcnemar_clustered(negative_per_cluster: ArrayLike, positive_per_cluster: ArrayLike) -> float:
    """Two-sided p-value of McNemar's test for clustered pairs.

    The statistic of the tests of Obuchowski (Statistics in Medicine 1998) and Durkalski et al. (2003) with its
    variance under the null hypothesis: (sum d_g)^2 / sum d_g^2, d_g = positive - negative flips of cluster g. Its
    distribution is counted over all swaps of old and new of whole clusters while the differences add up to no more
    than 20 000 flips, and is chi-squared with one degree of freedom beyond. With one instance per cluster it is
    `mcnemar_exact`. Null hypothesis: old and new are exchangeable within clusters. Assumes independent clusters.

    Raises:
        ValueError: the shapes differ, there are fewer than two clusters, or a count is negative.
    """
    from scipy.special import chdtrc

    negative, positive = (np.asarray(flips, dtype=float) for flips in (negative_per_cluster, positive_per_cluster))
    if negative.ndim != 1 or negative.shape != positive.shape or negative.size < 2:
        raise ValueError(f"need flips of at least two clusters, not shapes {negative.shape} and {positive.shape}")
    if (negative < 0).any() or (positive < 0).any():
        raise ValueError("counts of flips cannot be negative")
    differences = positive - negative
    if np.abs(differences).sum() <= LATTICE:
        return sign_flip_p(differences, draws=1, seed=0)
    return float(chdtrc(1, differences.sum() ** 2 / (differences**2).sum()))


def cluster_permutation_test(sums_of_differences: ArrayLike, draws: int = 10_000, seed: int = 0) -> float:
    """Two-sided p-value of the sign-flip test on clusters: is the mean difference zero?

    `paired_permutation_test` of the sums of new - old per cluster, shape (G,): whole clusters change sign, which
    keeps whatever holds within them. No p-value below 2 ** (1 - G) exists.

    Raises:
        ValueError: there are fewer than two clusters, a sum is not finite, or `draws` is not positive.
    """
    check_draws(draws)
    sums = np.asarray(sums_of_differences, dtype=float)
    if sums.ndim != 1 or sums.size < 2 or not np.isfinite(sums).all():
        raise ValueError(f"need a finite sum for each of at least two clusters, not shape {sums.shape}")
    return sign_flip_p(sums, draws, seed)


def clustered_difference(
    negative_per_cluster: ArrayLike, positive_per_cluster: ArrayLike, sizes: ArrayLike, level: float = 0.95
) -> ClusterEstimate:
    """Gain over instances, with the exact bounds of `exact_lower_bound` on the effective number of instances.

    The effective number n* is found as by `clustered_share`, from the clusters with a flip. Flips are scaled by
    n* / N and rounded to whole ones against the bound in question. Keeps its coverage for rare flips, where the t
    interval of `clustered_mean` does not. Assumes independent clusters.

    Args:
        negative_per_cluster: negative flips, shape (G,).
        positive_per_cluster: positive flips, shape (G,).
        sizes: instances per cluster, shape (G,), all positive.
        level: confidence of the two-sided interval, in (0, 1); each end is a one-sided bound at (1 + level) / 2.

    Raises:
        ValueError: as for `clustered_mean`, a count is negative, or a cluster has more flips than instances.
    """
    plain, size, tables = _effective_tables(negative_per_cluster, positive_per_cluster, sizes, level)
    low, high = (exact_lower_bound(*table, (1 + level) / 2).low for table in tables)
    return ClusterEstimate(plain.value, plain.standard_error, low, -high, plain.clusters, size)


def clustered_bound(
    negative_per_cluster: ArrayLike, positive_per_cluster: ArrayLike, sizes: ArrayLike, level: float = 0.95
) -> ExactBound:
    """The one-sided lower bound of `clustered_difference` and its test, with the design effect as seen at `level`.

    Raises:
        ValueError: as for `clustered_difference`, or `level` is not in (0.5, 1).
    """
    if not 0.5 < level < 1:
        raise ValueError(f"need a level between 0.5 and 1, such as 0.95, not {level}")
    _, _, tables = _effective_tables(negative_per_cluster, positive_per_cluster, sizes, 2 * level - 1)
    return exact_lower_bound(*tables[0], level)


def _effective_tables(
    negative_per_cluster: ArrayLike, positive_per_cluster: ArrayLike, sizes: ArrayLike, level: float
) -> tuple[ClusterEstimate, float, tuple[Table, Table]]:
    """The plain estimate, the effective size, and the scaled tables for the lower and the (mirrored) upper bound."""
    negative, n = _clusters(negative_per_cluster, sizes)
    positive, _ = _clusters(positive_per_cluster, sizes)
    flips = negative + positive
    if (negative < 0).any() or (positive < 0).any() or (flips > n).any():
        raise ValueError("need flips that are not negative and fit into the size of every cluster")
    plain = clustered_mean(positive - negative, n, level, squares=flips)
    total = float(n.sum())
    size = _trusted_size(plain.effective_size, flips > 0, n, level)
    down, up = float(negative.sum()) * size / total, float(positive.sum()) * size / total
    return plain, size, (_whole(down, up, size), _whole(up, down, size))


def _trusted_size(size: float | None, telling: NDArray[np.bool_], sizes: Floats, level: float) -> float:
    """The effective number of instances, less for a design effect seen in few clusters; see `clustered_share`."""
    from scipy.special import stdtrit

    total = float(sizes.sum())
    if size is None:
        return float(sizes.size)
    if sizes.size == total:
        return total
    clusters = _even_clusters(sizes)
    degrees = (total - 1, max(clusters - 1, 1), max(_even_clusters(sizes[telling]) - 1, 1))
    known, usual, few = (float(stdtrit(own, (1 + level) / 2)) for own in degrees)
    return min(total, max(size * (known / few) ** 2, min(clusters, size * (known / usual) ** 2)))


def _even_clusters(sizes: Floats) -> float:
    """As how many clusters of equal size these count: a few large ones outweigh many small ones."""
    return float(sizes.sum() ** 2 / (sizes**2).sum())


def _whole(negative: float, positive: float, size: float) -> Table:
    """Whole flips and pairs that are no better than these."""
    slack = 1e-9
    pairs = max(1, math.floor(size + slack))
    down = min(pairs, math.ceil(negative - slack))
    return down, max(0, min(pairs - down, math.floor(positive + slack))), pairs


def _clusters(sums: ArrayLike, sizes: ArrayLike) -> tuple[Floats, Floats]:
    s, n = np.asarray(sums, dtype=float), np.asarray(sizes, dtype=float)
    if s.ndim != 1 or s.shape != n.shape:
        raise ValueError(f"need a sum and a size for each cluster, not shapes {s.shape} and {n.shape}")
    if s.size < 2:
        raise ValueError(f"need at least two clusters to see how they differ, not {s.size}")
    if not (n > 0).all() or not np.isfinite(s).all():
        raise ValueError("need finite sums and positive sizes in every cluster")
    return s, n


def _effective_size(value: float, square: float | None, error: float, total: float) -> float | None:
    """N over the design effect: the variance among instances over N - 1 times the squared error."""
    if square is None:
        return None
    variance = square / total - value**2
    if error == 0 or variance <= 1e-15 * max(1.0, value**2):
        return None
    return total * variance / (total - 1) / error**2
