"""What a sample says about a limit: plain functions on counts and sums, so that simulations can call them.

Each check gives an `Evidence`: one-sided bounds of the quantity, each of which is wrong with probability at most alpha,
whether the bound keeps the limit, and the p-value of the hypothesis that the limit is kept. `settle` turns the
evidence on all limits of a policy into outcomes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

from uphold.core import stats

Outcome = Literal["pass", "fail", "inconclusive"]

FEWEST_CHANGES = 20
"""With fewer instances (clusters) that changed, a mean is not judged by Student's t."""


@dataclass(frozen=True)
class Evidence:
    """What the data say about one limit."""

    value: float
    """The quantity in the sample: a share in [0, 1], or a difference (new - old) in [-1, 1]."""
    low: float
    """One-sided lower bound of the quantity at level 1 - alpha."""
    high: float
    """One-sided upper bound at level 1 - alpha."""
    limit: float
    """The highest share that is allowed, or the lowest difference (minus the margin)."""
    kept: bool
    """Whether the bound shows that the limit is kept."""
    p_broken: float
    """p-value of the null hypothesis that the limit is kept; small where it is surely broken."""
    count: int
    """Instances."""
    independent: float
    """As how many independent instances they count; below `count` where clusters agree within themselves."""

    def mirrored(self) -> Evidence:
        """The evidence on a difference as that on the way back, from new to old."""
        return replace(self, value=-self.value, low=-self.high, high=-self.low, limit=-self.limit)


@dataclass(frozen=True)
class ScoreSums:
    """Sums over the differences D = new score - old score, each in [-1, 1]."""

    count: int
    total: float
    """Sum of D."""
    squares: float
    """Sum of D squared."""
    falls: int
    """Instances whose score fell."""
    rises: int
    """Instances whose score rose."""

    def mirrored(self) -> ScoreSums:
        """The sums on the way back, from new to old."""
        return replace(self, total=-self.total, falls=self.rises, rises=self.falls)


@dataclass(frozen=True)
class ClusterSums:
    """Sums per cluster, each of shape (clusters,)."""

    sizes: stats.Ints
    """Instances."""
    falls: stats.Ints
    """Negative flips; falls of the score where scores are continuous."""
    rises: stats.Ints
    """Positive flips, or rises of the score."""
    inconsistent: stats.Ints
    """New wrong with another answer than the old one; zeros where scores are continuous."""
    totals: stats.Floats
    """Sum of D = new - old, of right answers or of scores."""
    squares: stats.Floats
    """Sum of D squared."""

    def mirrored(self) -> ClusterSums:
        """The sums on the way back, from new to old."""
        return replace(self, totals=-self.totals, falls=self.rises, rises=self.falls)


def settle(evidence: Sequence[Evidence], alpha: float) -> list[Outcome]:
    """The outcome of each limit.

    A limit passes where its own bound keeps it. It fails where its p-value stays at or below `alpha` after Holm's
    correction over all limits (Holm, Scandinavian Journal of Statistics 1979). Else the data do not decide it.
    """
    if not evidence:
        return []
    corrected = stats.holm([one.p_broken for one in evidence])
    return [
        "pass" if one.kept else "fail" if p <= alpha else "inconclusive"
        for one, p in zip(evidence, corrected, strict=True)
    ]


def check_share(events: int, count: int, limit: float, alpha: float) -> Evidence:
    """Is a share of independent instances at most `limit`? Exact (Clopper and Pearson).

    Args:
        events: instances that count against the limit, e.g. negative flips.
        count: all instances.
        limit: in (0, 1].
        alpha: in (0, 0.5).
    """
    high = stats.proportion_upper_bound(events, count, 1 - alpha)
    low = stats.proportion_lower_bound(events, count, 1 - alpha)
    return Evidence(events / count, low, high, limit, high <= limit, _above(events, count, limit), count, count)


def check_accuracy(
    both_right: int, negative: int, positive: int, both_wrong: int, margin: float, alpha: float
) -> Evidence:
    """Is the accuracy at most `margin` lower, on independent instances? Exact, see `stats.non_inferiority_paired`.

    Args:
        both_right: instances that stay right.
        negative: right with the old model only.
        positive: right with the new model only.
        both_wrong: instances that stay wrong.
        margin: in [0, 1).
        alpha: in (0, 0.5).
    """
    count = both_right + negative + positive + both_wrong
    kept = stats.non_inferiority_paired(both_right, negative, positive, both_wrong, margin, 1 - alpha)
    # The same question asked of the way back from new to old: is it better by more than the margin?
    back = stats.exact_lower_bound(positive, negative, count, 1 - alpha)
    value = (positive - negative) / count
    return Evidence(value, kept.low, kept.high, -margin, kept.holds, back.p(margin), count, count)


def check_mean_score(sums: ScoreSums, margin: float, alpha: float) -> Evidence:
    """Is the mean score at most `margin` lower, on independent instances?

    One-sided t bounds of the mean of D, taken as if one more instance with the worst possible change had been seen (for
    the lower bound a fall by 1, for the upper a rise by 1). Without it, a few large falls among many small changes are
    missed too often: a sample that holds none of them looks safe. Still approximate. Where fewer than `FEWEST_CHANGES`
    scores changed, exact and wider bounds hold instead: mean(D) is at least minus the share of instances whose score
    falls, at most the share of those whose score rises.
    """
    n, mean = sums.count, sums.total / sums.count
    if sums.falls + sums.rises < FEWEST_CHANGES:
        low = -stats.proportion_upper_bound(sums.falls, n, 1 - alpha)
        high = stats.proportion_upper_bound(sums.rises, n, 1 - alpha)
        return Evidence(mean, low, high, -margin, low >= -margin, 1.0, n, n)

    def with_one_more(change: float) -> _Mean:
        shifted = (sums.total + change) / (n + 1)
        variance = max(0.0, sums.squares + 1 - (n + 1) * shifted**2) / n
        return _Mean(shifted, math.sqrt(variance / (n + 1)))

    return _by_student(mean, with_one_more(-1.0), with_one_more(1.0), n - 1, margin, alpha, n, n)


def check_clustered_share(events: stats.Ints, sizes: stats.Ints, limit: float, alpha: float) -> Evidence:
    """`check_share` where instances come in groups, see `stats.clustered_share`.

    Its exact bounds, with as many instances as the groups are worth. Approximate; assumes independent clusters.

    Args:
        events: per cluster, shape (clusters,), the instances that count against the limit.
        sizes: per cluster, all its instances.
        limit: in (0, 1].
        alpha: in (0, 0.5).
    """
    found = stats.clustered_share(events, sizes, 1 - 2 * alpha)
    worth = found.effective_size
    assert worth is not None
    p_broken = _above(found.value * worth, worth, limit)
    return Evidence(found.value, found.low, found.high, limit, found.high <= limit, p_broken, int(sizes.sum()), worth)


def check_clustered_accuracy(sums: ClusterSums, margin: float, alpha: float) -> Evidence:
    """`check_accuracy` where instances come in groups, see `stats.clustered_bound`.

    Its exact test, with as many instances as the groups are worth. Approximate; assumes independent clusters.

    Args:
        sums: per cluster.
        margin: in [0, 1).
        alpha: in (0, 0.5).
    """
    count, negative, positive = (int(own.sum()) for own in (sums.sizes, sums.falls, sums.rises))
    kept = stats.clustered_bound(sums.falls, sums.rises, sums.sizes, 1 - alpha)
    broken = stats.clustered_bound(sums.rises, sums.falls, sums.sizes, 1 - alpha)
    value, holds = (positive - negative) / count, kept.p(-margin) <= alpha
    return Evidence(value, kept.low, -broken.low, -margin, holds, broken.p(margin), count, kept.trials)


def check_clustered_mean(sums: ClusterSums, margin: float, alpha: float) -> Evidence:
    """`check_mean_score` where instances come in groups.

    t bounds with the cluster-robust variance, no smaller than that of independent instances. The one more instance is
    a cluster of as many as one independent instance is worth (the design effect). Where fewer than `FEWEST_CHANGES`
    clusters hold a change, the bounds of `check_clustered_share` for falls and rises hold instead.

    Args:
        sums: per cluster.
        margin: in [0, 1).
        alpha: in (0, 0.5).
    """
    count, mean = int(sums.sizes.sum()), float(sums.totals.sum() / sums.sizes.sum())
    changed = int(np.count_nonzero(sums.falls + sums.rises))
    if changed < FEWEST_CHANGES:
        low = -check_clustered_share(sums.falls, sums.sizes, 1.0, alpha).high
        high = check_clustered_share(sums.rises, sums.sizes, 1.0, alpha).high
        return Evidence(mean, low, high, -margin, low >= -margin, 1.0, count, len(sums.sizes))
    error = stats.clustered_mean(sums.totals, sums.sizes, 1 - 2 * alpha).standard_error
    variance = max(0.0, float(sums.squares.sum()) / count - mean * mean)
    alike = max(1.0, count * error**2 / variance) if variance > 0 else 1.0

    def with_one_more(change: float) -> _Mean:
        totals, sizes = np.append(sums.totals, change * alike), np.append(sums.sizes, alike)
        found = stats.clustered_mean(totals, sizes, 1 - 2 * alpha)
        variance = max(0.0, (float(sums.squares.sum()) + alike) / float(sizes.sum()) - found.value**2)
        return _Mean(found.value, max(found.standard_error, math.sqrt(variance / float(sizes.sum()))))

    return _by_student(mean, with_one_more(-1.0), with_one_more(1.0), changed - 1, margin, alpha, count, count / alike)


def needed_for_share(evidence: Evidence, alpha: float, power: float = 0.8) -> int | None:
    """About how many instances would pass the limit with probability `power` if the share stays as seen.

    None where the share is at or above the limit, so that no number would, or where it takes more than 10^9.
    """
    if evidence.value >= evidence.limit:
        return None
    try:
        needed = stats.instances_needed(evidence.value, evidence.limit, 1 - alpha, power)
    except ValueError:
        return None
    return math.ceil(needed * evidence.count / evidence.independent)


def needed_for_difference(evidence: Evidence, variance: float, alpha: float, power: float = 0.8) -> int | None:
    """About how many instances would pass the margin with probability `power` if things stay as seen.

    Args:
        evidence: of `check_accuracy` or one of the means.
        variance: of the difference of one instance, in [0, 1].
        alpha: in (0, 0.5).
        power: in (0, 1).

    Returns:
        The large-sample number, but no fewer than an update without any fall would need; None where the difference is
        at or below minus the margin, so that no number would do.
    """
    from scipy.special import ndtri

    slack = evidence.value - evidence.limit
    if slack <= 0 or evidence.limit == 0:
        return None
    large = (float(ndtri(1 - alpha)) + float(ndtri(power))) ** 2 * variance / slack**2
    without_falls = math.log(alpha) / math.log1p(evidence.limit) if evidence.limit > -1 else 1
    return math.ceil(max(large, without_falls) * evidence.count / evidence.independent)


def _above(events: float, count: float, limit: float) -> float:
    """P(at least `events` of `count`) when the share is `limit`."""
    from scipy.special import betainc

    return 1.0 if events <= 0 else float(betainc(events, count - events + 1, limit))


class _Mean(NamedTuple):
    value: float
    error: float


def _by_student(
    mean: float, worst: _Mean, best: _Mean, degrees: int, margin: float, alpha: float, count: int, independent: float
) -> Evidence:
    """The evidence of t bounds around two means with their standard errors, the lower from the worst."""
    from scipy.special import stdtr, stdtrit

    quantile = float(stdtrit(degrees, 1 - alpha))
    low, high = worst.value - quantile * worst.error, best.value + quantile * best.error
    # Without an error every score has risen by 1.
    p_broken = float(stdtr(degrees, (best.value + margin) / best.error)) if best.error > 0 else 1.0
    return Evidence(mean, low, high, -margin, low >= -margin, p_broken, count, independent)
