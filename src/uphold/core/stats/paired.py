"""Tests and intervals for two versions on the same instances, right or wrong or scored."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from uphold.core.stats.paired_exact import exact_lower_bound
from uphold.core.stats.proportions import proportion_bounds
from uphold.core.stats.signs import sign_flip_p
from uphold.core.stats.tango import tango_bounds
from uphold.core.stats.types import Floats, Interval, check_draws, check_level

PairedMethod = Literal["tango", "newcombe", "exact"]


def mcnemar_exact(negative_flips: int, positive_flips: int) -> float:
    """Two-sided p-value of the exact McNemar test (McNemar, Psychometrika 1947).

    Null hypothesis: a discordant pair is a negative or a positive flip with probability one half each. Assumes
    independent instances. Rejects at most as often as it says, and less often with few flips. 1.0 when there are no
    discordant pairs.

    Raises:
        ValueError: a count is negative.
    """
    from scipy.special import bdtr

    discordant = _discordant(negative_flips, positive_flips)
    if discordant == 0:
        return 1.0
    return min(1.0, 2 * float(bdtr(min(negative_flips, positive_flips), discordant, 0.5)))


def mcnemar_midp(negative_flips: int, positive_flips: int) -> float:
    """Two-sided mid-p McNemar test: outcomes as extreme as the one seen count half.

    Fagerland, Lydersen and Laake (BMC Medical Research Methodology 2013). More powerful than `mcnemar_exact`, and
    without its guarantee: it can reject slightly more often than it says. Assumes independent instances.

    Raises:
        ValueError: a count is negative.
    """
    from scipy.special import bdtr

    discordant = _discordant(negative_flips, positive_flips)
    few = min(negative_flips, positive_flips)
    up_to, below = (float(bdtr(count, discordant, 0.5)) if count >= 0 else 0.0 for count in (few, few - 1))
    if negative_flips == positive_flips:
        return 1 - (up_to - below) / 2
    return up_to + below


def paired_difference_interval(
    both_right: int,
    negative: int,
    positive: int,
    both_wrong: int,
    level: float = 0.95,
    method: PairedMethod = "tango",
) -> Interval:
    """Two-sided interval of accuracy(new) - accuracy(old), in [-1, 1]. Assumes independent instances.

    - `tango`: inverts the score test (Tango, Statistics in Medicine 1998). Coverage is near `level`, at some true
      values below it.
    - `newcombe`: Wilson intervals of both accuracies, put together with their correlation (Newcombe, Statistics in
      Medicine 1998, method 10). The one of the three that needs to know `both_right` and `both_wrong` apart.
    - `exact`: two exact one-sided bounds (see `non_inferiority_paired`), each at (1 + level) / 2. Coverage is at
      least `level` whatever the true shares are.

    Raises:
        ValueError: a count is negative, all are zero, `level` is not in (0, 1), or the method is unknown.
    """
    check_level(level)
    counts = (both_right, negative, positive, both_wrong)
    trials = sum(counts)
    if min(counts) < 0 or trials == 0:
        raise ValueError(f"need counts of at least one pair, none negative, not {counts}")
    if method == "tango":
        low, high = tango_bounds(negative, positive, trials, level)
    elif method == "newcombe":
        low, high = newcombe_bounds(*counts, level)
    elif method == "exact":
        one_sided = (1 + level) / 2
        lowest = exact_lower_bound(negative, positive, trials, one_sided).low
        return Interval(lowest, -exact_lower_bound(positive, negative, trials, one_sided).low)
    else:
        raise ValueError(f"unknown method {method!r}: one of {', '.join(get_args(PairedMethod))}")
    return Interval(float(low), float(high))


def newcombe_bounds(
    both_right: ArrayLike, negative: ArrayLike, positive: ArrayLike, both_wrong: ArrayLike, level: float = 0.95
) -> tuple[Floats, Floats]:
    """Both ends of Newcombe's interval (method 10) for arrays of tables, which broadcast.

    With l, u the Wilson limits of each accuracy p, and phi the correlation of the two with its numerator moved
    n / 2 towards zero (not beyond) when positive:
    low = d - sqrt((p2 - l2)^2 - 2 phi (p2 - l2)(u1 - p1) + (u1 - p1)^2), d = p2 - p1, and high likewise.
    """
    a, c, b, d = (np.asarray(count, dtype=float) for count in (both_right, negative, positive, both_wrong))
    n = a + b + c + d
    old, new = (a + c) / n, (a + b) / n
    old_low, old_high = proportion_bounds(a + c, n, level, "wilson")
    new_low, new_high = proportion_bounds(a + b, n, level, "wilson")
    odds = a * d - b * c
    top = np.where(odds > 0, np.maximum(odds - n / 2, 0), odds)
    bottom = np.sqrt((a + b) * (c + d) * (a + c) * (b + d))
    phi = np.divide(top, bottom, out=np.zeros(bottom.shape), where=bottom > 0)

    def distance(one: Floats, other: Floats) -> Floats:
        return np.asarray(np.sqrt(np.maximum(one**2 - 2 * phi * one * other + other**2, 0)))

    difference = (b - c) / n
    return (
        np.maximum(difference - distance(new - new_low, old_high - old), -1),
        np.minimum(difference + distance(old - old_low, new_high - new), 1),
    )


def paired_permutation_test(differences: ArrayLike, draws: int = 10_000, seed: int = 0) -> float:
    """Two-sided p-value of the sign-flip test: is the mean of paired differences zero?

    Null hypothesis: old and new are exchangeable within each instance, so every difference is as likely with the
    other sign (Fisher 1935; Good, Permutation Tests, 2000). Assumes independent instances. All sign patterns are
    counted, without drawing, when no more than 16 differences are not zero or when all are whole numbers (right or
    wrong answers: then it is `mcnemar_exact`); otherwise `draws` patterns are drawn and the p-value is
    (b + 1) / (draws + 1), which keeps its promise at any number of draws (Phipson and Smyth 2010).

    Args:
        differences: new - old per instance, shape (n,).
        draws: random sign patterns where counting all of them is too dear.
        seed: of those.

    Raises:
        ValueError: there are no differences, one of them is not finite, or `draws` is not positive.
    """
    check_draws(draws)
    values = np.asarray(differences, dtype=float)
    if values.ndim != 1 or values.size == 0 or not np.isfinite(values).all():
        raise ValueError(f"need a list of finite differences, at least one, not shape {values.shape}")
    return sign_flip_p(values, draws, seed)


def _discordant(negative: int, positive: int) -> int:
    if min(negative, positive) < 0:
        raise ValueError(f"counts of flips cannot be negative: {negative} and {positive}")
    return negative + positive
