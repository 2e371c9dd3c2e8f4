"""Non-inferiority and equivalence: is the new version at most a margin worse, or no further than it either way?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from uphold.core.stats.anytime import EProcess, confidence_sequence
from uphold.core.stats.clusters import clustered_bound
from uphold.core.stats.paired_exact import exact_lower_bound
from uphold.core.stats.types import check_level


@dataclass(frozen=True)
class MarginTest:
    """The outcome of a test against a margin."""

    p: float
    """One-sided p-value of "worse than the margin", or the larger of the two for equivalence."""
    low: float
    """One-sided lower bound of new - old, at the level of the test."""
    high: float
    """One-sided upper bound of new - old, at the level of the test."""
    holds: bool
    """Whether the margin is shown to be kept: p <= 1 - level."""


def non_inferiority_paired(
    both_right: int, negative: int, positive: int, both_wrong: int, margin: float, level: float = 0.95
) -> MarginTest:
    """Is accuracy(new) - accuracy(old) above -margin, shown with confidence `level`?

    Exact and unconditional: holds wrongly with a probability of at most 1 - level at every sample size and for
    every share of flips. Tango's score test does not promise that (at 5% and a margin of 10% it errs in 7% of
    cases with 25 instances); here it only orders the tables, see `ExactBound`. Assumes independent instances. `low`
    and `high` are each exact at `level` on their own: together they are an interval of confidence 2 level - 1.

    Args:
        both_right: instances right in both versions.
        negative: right in the old version only.
        positive: right in the new version only.
        both_wrong: right in neither.
        margin: the loss of accuracy that is tolerated, in [0, 1).
        level: one-sided confidence, in (0.5, 1).

    Raises:
        ValueError: a count is negative, all are zero, or `margin` or `level` is out of range.
    """
    _check_margin(margin)
    trials = _table(both_right, negative, positive, both_wrong)
    from_below = exact_lower_bound(negative, positive, trials, level)
    from_above = exact_lower_bound(positive, negative, trials, level)
    p = from_below.p(-margin)
    return MarginTest(p, from_below.low, -from_above.low, p <= 1 - level)


def equivalence_paired(
    both_right: int, negative: int, positive: int, both_wrong: int, margin: float, level: float = 0.95
) -> MarginTest:
    """Is accuracy(new) - accuracy(old) within (-margin, margin), shown with confidence `level`?

    Two one-sided tests (Schuirmann 1987), each that of `non_inferiority_paired`, with its guarantee, assumptions and
    arguments. The margin must be positive.

    Raises:
        ValueError: a count is negative, all are zero, or `margin` or `level` is out of range.
    """
    _check_margin(margin, least=1e-12)
    trials = _table(both_right, negative, positive, both_wrong)
    from_below = exact_lower_bound(negative, positive, trials, level)
    from_above = exact_lower_bound(positive, negative, trials, level)
    p = max(from_below.p(-margin), from_above.p(-margin))
    return MarginTest(p, from_below.low, -from_above.low, p <= 1 - level)


def non_inferiority_clustered(
    negative_per_cluster: ArrayLike,
    positive_per_cluster: ArrayLike,
    sizes: ArrayLike,
    margin: float,
    level: float = 0.95,
) -> MarginTest:
    """Is accuracy(new) - accuracy(old) above -margin, shown with confidence `level`, with instances in clusters?

    The test and bounds of `clustered_difference`: `non_inferiority_paired` on the effective number of instances. It
    is not exact, for the design effect is estimated, but errs on the safe side where flips are rare. Assumes
    independent clusters.

    Args:
        negative_per_cluster: negative flips, shape (G,).
        positive_per_cluster: positive flips, shape (G,).
        sizes: instances per cluster, shape (G,).
        margin: the loss of accuracy that is tolerated, in [0, 1).
        level: one-sided confidence, in (0.5, 1).

    Raises:
        ValueError: as for `clustered_difference`, or `margin` or `level` is out of range.
    """
    _check_margin(margin)
    from_below = clustered_bound(negative_per_cluster, positive_per_cluster, sizes, level)
    from_above = clustered_bound(positive_per_cluster, negative_per_cluster, sizes, level)
    p = from_below.p(-margin)
    return MarginTest(p, from_below.low, -from_above.low, p <= 1 - level)


def non_inferiority_bounded(
    differences: ArrayLike, margin: float, level: float = 0.95, low: float = -1.0, high: float = 1.0
) -> MarginTest:
    """Is a mean difference of bounded scores above -margin, shown with confidence `level`, whatever their shape?

    By betting (Waudby-Smith and Ramdas, JRSS B 2024): one over the value of `EProcess` is a p-value, at every sample
    size and for every distribution within the bounds. Where few scores change much and most do not change,
    `non_inferiority_mean` passes far more often than it may, and this does not; it needs up to about twice the
    instances. Assumes independent instances.

    Args:
        differences: new - old per instance, shape (n,).
        margin: the loss that is tolerated, not negative, in units of the score.
        level: one-sided confidence, in (0.5, 1).
        low: no difference lies below; -1 for scores in [0, 1].
        high: no difference lies above.

    Raises:
        ValueError: there are no differences, one lies outside, not low < -margin < high, or `level` is out of range.
    """
    _check_margin(margin, most=float("inf"))
    values, times = np.unique(np.asarray(differences, dtype=float), return_counts=True)
    if values.size == 0:
        raise ValueError("need at least one difference")
    if not 0.5 < level < 1:
        raise ValueError(f"need a level between 0.5 and 1, such as 0.95, not {level}")
    counts = {float(value): int(count) for value, count in zip(values, times, strict=True)}
    process = EProcess(-margin, low, high, "greater")
    process.update_counts(counts)
    bounds = confidence_sequence(counts, low, high, 2 * level - 1)
    return MarginTest(process.p, bounds.low, bounds.high, process.p <= 1 - level)


def non_inferiority_mean(
    difference: float, standard_error: float, degrees: float, margin: float, level: float = 0.95
) -> MarginTest:
    """Is a mean difference new - old above -margin, shown with confidence `level`? The one-sided t test.

    Assumes that the mean is nearly normal, which it is not where few scores change (see `non_inferiority_bounded`),
    and that `standard_error` is its own, with `degrees` degrees of freedom: n - 1 for independent instances,
    clusters - 1 with the error of `clustered_mean`. With a standard error of zero the difference is taken as known.

    Args:
        difference: mean of new - old, in units of the score.
        standard_error: of that mean, not negative.
        degrees: degrees of freedom, positive.
        margin: the loss that is tolerated, not negative, in units of the score.
        level: one-sided confidence, in (0.5, 1).

    Raises:
        ValueError: `margin`, `standard_error`, `degrees` or `level` is out of range.
    """
    _check_margin(margin, most=float("inf"))
    low, high, p_low, _ = _student(difference, standard_error, degrees, margin, level)
    return MarginTest(p_low, low, high, p_low <= 1 - level)


def equivalence_mean(
    difference: float, standard_error: float, degrees: float, margin: float, level: float = 0.95
) -> MarginTest:
    """Is a mean difference new - old within (-margin, margin), shown with confidence `level`?

    Two one-sided t tests (Schuirmann, Journal of Pharmacokinetics and Biopharmaceutics 1987), with the assumptions
    and arguments of `non_inferiority_mean`. The margin must be positive.

    Raises:
        ValueError: `margin`, `standard_error`, `degrees` or `level` is out of range.
    """
    _check_margin(margin, least=1e-300, most=float("inf"))
    low, high, p_low, p_high = _student(difference, standard_error, degrees, margin, level)
    p = max(p_low, p_high)
    return MarginTest(p, low, high, p <= 1 - level)


def _student(
    difference: float, error: float, degrees: float, margin: float, level: float
) -> tuple[float, float, float, float]:
    """Both one-sided bounds, and the p-values of "at most -margin" and "at least margin"."""
    from scipy.special import stdtr, stdtrit

    check_level(level)
    if not error >= 0 or not degrees > 0:
        raise ValueError(f"need a standard error >= 0 and degrees > 0, not {error} and {degrees}")
    half = float(stdtrit(degrees, level)) * error
    if error == 0:
        return difference, difference, float(difference <= -margin), float(difference >= margin)
    p_low, p_high = (float(stdtr(degrees, -(margin + side * difference) / error)) for side in (1, -1))
    return difference - half, difference + half, p_low, p_high


def _check_margin(margin: float, least: float = 0.0, most: float = 1.0) -> None:
    if not least <= margin < most:
        found = "a positive margin" if least > 0 else "a margin that is not negative"
        raise ValueError(f"need {found}{' and below 1' if most == 1.0 else ''}, not {margin}")


def _table(*counts: int) -> int:
    if min(counts) < 0 or sum(counts) == 0:
        raise ValueError(f"need counts of at least one pair, none negative, not {counts}")
    return sum(counts)
