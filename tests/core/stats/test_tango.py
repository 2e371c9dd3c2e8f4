from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, minimize_scalar
from scipy.special import ndtri, xlogy
from statsmodels.stats.contingency_tables import mcnemar

from uphold.core import stats

quick = settings(max_examples=60, deadline=None, database=None)


@st.composite
def flips(draw: st.DrawFn, most: int = 400) -> tuple[int, int, int]:
    trials = draw(st.integers(2, most))
    discordant = draw(st.integers(0, trials))
    negative = draw(st.integers(0, discordant))
    return negative, discordant - negative, trials


def score_by_hand(negative: int, positive: int, trials: int, difference: float) -> float:
    """Z from a likelihood maximised numerically, not by the closed form."""
    lowest, highest = max(0.0, -difference), (1 - difference) / 2

    def against(q: float) -> float:
        stay = 1 - 2 * q - difference
        up = q + difference
        return -float(xlogy(negative, q) + xlogy(positive, up) + xlogy(trials - negative - positive, max(stay, 0.0)))

    best = minimize_scalar(against, bounds=(lowest, highest), method="bounded", options={"xatol": 1e-13}).x
    best = min([lowest, best, highest], key=against)
    return float(
        (positive - negative - trials * difference) / np.sqrt(trials * (2 * best + difference * (1 - difference)))
    )


@quick
@given(flips(), st.floats(-0.9, 0.9).filter(lambda d: abs(d) > 1e-3))
def test_the_score_uses_the_restricted_likelihood_maximum(table: tuple[int, int, int], difference: float) -> None:
    # A flat maximum is found to the root of the precision only.
    assert float(stats.tango_score(*table, difference)) == pytest.approx(
        score_by_hand(*table, difference), rel=2e-5, abs=2e-5
    )


@quick
@given(flips(), st.floats(-0.95, 0.95).filter(lambda d: abs(d) > 1e-3))
def test_the_restricted_estimate_solves_the_score_equation(table: tuple[int, int, int], difference: float) -> None:
    negative, positive, trials = table
    z = float(stats.tango_score(*table, difference))
    top = positive - negative - trials * difference
    if abs(top) < 1e-6:
        return
    q = ((top / z) ** 2 / trials - difference * (1 - difference)) / 2
    quadratic = (
        2 * trials * q**2
        + ((2 * trials - positive + negative) * difference - positive - negative) * q
        - negative * difference * (1 - difference)
    )

    assert quadratic == pytest.approx(0, abs=1e-7 * trials)
    assert q >= max(0.0, -difference) - 1e-9


@quick
@given(flips())
def test_at_zero_it_is_mcnemar_without_correction(table: tuple[int, int, int]) -> None:
    negative, positive, _ = table
    if negative + positive == 0:
        return
    theirs = mcnemar([[0, negative], [positive, 0]], exact=False, correction=False).statistic

    assert float(stats.tango_score(*table, 0.0)) ** 2 == pytest.approx(theirs, abs=1e-9)


@quick
@given(flips(), st.sampled_from([0.8, 0.9, 0.95, 0.99]))
def test_the_ends_are_where_the_score_is_the_quantile(table: tuple[int, int, int], level: float) -> None:
    negative, positive, trials = table
    z = ndtri((1 + level) / 2)
    low, high = (float(end) for end in stats.tango_bounds(*table, level))
    seen = (positive - negative) / trials

    assert -1 <= low <= seen <= high <= 1
    if seen > -1:
        root = brentq(lambda d: float(stats.tango_score(*table, d)) - z, -1 + 1e-12, seen - 1e-12, xtol=1e-13)
        assert low == pytest.approx(root, abs=1e-9)
    if seen < 1:
        root = brentq(lambda d: float(stats.tango_score(*table, d)) + z, seen + 1e-12, 1 - 1e-12, xtol=1e-13)
        assert high == pytest.approx(root, abs=1e-9)


@quick
@given(flips())
def test_swapping_old_and_new_mirrors(table: tuple[int, int, int]) -> None:
    negative, positive, trials = table
    low, high = stats.tango_bounds(negative, positive, trials)
    other_low, other_high = stats.tango_bounds(positive, negative, trials)

    assert (float(low), float(high)) == pytest.approx((-float(other_high), -float(other_low)), abs=1e-12)
    scores = stats.tango_score(negative, positive, trials, np.linspace(-0.99, 0.99, 199))
    assert (np.diff(scores) < 0).all()


def test_without_flips_the_bound_has_a_closed_form() -> None:
    # Z^2 = n D / (1 - D), so that D = z^2 / (n + z^2).
    z2 = ndtri(0.975) ** 2
    low, high = stats.tango_bounds(0, 0, 100)

    assert float(high) == pytest.approx(z2 / (100 + z2), abs=1e-12)
    assert float(low) == pytest.approx(-z2 / (100 + z2), abs=1e-12)


def test_arrays_and_impossible_differences() -> None:
    low, high = stats.tango_bounds([0, 3], [0, 5], 50, 0.9)

    assert low.shape == high.shape == (2,)
    assert float(low[1]) == float(stats.tango_bounds(3, 5, 50, 0.9)[0])
    assert float(stats.tango_score(3, 5, 50, 1.0)) == -np.inf
    assert float(stats.tango_score(3, 5, 50, -1.0)) == np.inf
    assert float(stats.tango_score(0, 50, 50, 1.0)) == 0.0
    with pytest.raises(ValueError, match="level"):
        stats.tango_bounds(1, 1, 5, 1.5)
