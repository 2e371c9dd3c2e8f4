from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.proportion import proportion_confint

from uphold.core import stats

quick = settings(max_examples=50, deadline=None, database=None)
levels = st.sampled_from([0.5, 0.8, 0.9, 0.95, 0.99])
METHODS = ("clopper-pearson", "wilson", "jeffreys", "mid-p")


@st.composite
def of_trials(draw: st.DrawFn) -> tuple[int, int]:
    trials = draw(st.integers(1, 5000))
    return draw(st.integers(0, trials)), trials


@quick
@given(of_trials(), levels)
def test_the_exact_interval_is_that_of_scipy_and_statsmodels(counts: tuple[int, int], level: float) -> None:
    ours = stats.proportion_interval(*counts, level)
    theirs = scipy.stats.binomtest(*counts).proportion_ci(level, method="exact")

    assert ours == pytest.approx((theirs.low, theirs.high), abs=1e-9)
    assert ours == pytest.approx(proportion_confint(*counts, alpha=1 - level, method="beta"), abs=1e-9)
    assert ours == stats.proportion_interval(*counts, level, "clopper-pearson")


@quick
@given(of_trials(), levels)
def test_wilson_and_jeffreys_are_those_of_statsmodels(counts: tuple[int, int], level: float) -> None:
    wilson = proportion_confint(*counts, alpha=1 - level, method="wilson")
    low, high = proportion_confint(*counts, alpha=1 - level, method="jeffreys")
    # Theirs leaves both ends inside (0, 1) even where nothing, or everything, was seen.
    jeffreys = (0.0 if counts[0] == 0 else low, 1.0 if counts[0] == counts[1] else high)

    assert stats.proportion_interval(*counts, level, "wilson") == pytest.approx(wilson, abs=1e-9)
    assert stats.proportion_interval(*counts, level, "jeffreys") == pytest.approx(jeffreys, abs=1e-9)


@quick
@given(of_trials(), levels)
def test_mid_p_leaves_half_of_what_was_seen_in_the_tail(counts: tuple[int, int], level: float) -> None:
    seen, trials = counts
    low, high = stats.proportion_interval(seen, trials, level, "mid-p")

    if seen > 0:
        at_low = scipy.stats.binom(trials, low)
        assert at_low.sf(seen) + at_low.pmf(seen) / 2 == pytest.approx((1 - level) / 2, abs=1e-9)
    if seen < trials:
        at_high = scipy.stats.binom(trials, high)
        assert at_high.cdf(seen - 1) + at_high.pmf(seen) / 2 == pytest.approx((1 - level) / 2, abs=1e-9)


@quick
@given(of_trials(), levels, st.sampled_from(METHODS))
def test_every_interval_mirrors_contains_and_nests(counts: tuple[int, int], level: float, method: str) -> None:
    seen, trials = counts
    low, high = stats.proportion_interval(seen, trials, level, method)  # type: ignore[arg-type]
    mirrored = stats.proportion_interval(trials - seen, trials, level, method)  # type: ignore[arg-type]
    exact = stats.proportion_interval(seen, trials, level)
    wider = stats.proportion_interval(seen, trials, (1 + level) / 2, method)  # type: ignore[arg-type]

    assert 0 <= low <= seen / trials + 1e-12
    assert seen / trials - 1e-12 <= high <= 1
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-9)
    assert wider.low <= low + 1e-12
    assert high <= wider.high + 1e-12
    if method in ("jeffreys", "mid-p"):
        assert exact.low <= low + 1e-12
        assert high <= exact.high + 1e-12


@quick
@given(of_trials(), levels)
def test_bounds_are_one_sided(counts: tuple[int, int], level: float) -> None:
    upper = scipy.stats.binomtest(*counts, alternative="less").proportion_ci(level, method="exact")
    lower = scipy.stats.binomtest(*counts, alternative="greater").proportion_ci(level, method="exact")

    assert stats.proportion_upper_bound(*counts, level) == pytest.approx(upper.high, abs=1e-9)
    assert stats.proportion_lower_bound(*counts, level) == pytest.approx(lower.low, abs=1e-9)


def test_bounds_with_a_closed_form() -> None:
    # No success in n: 1 - tail ** (1/n). Only successes: tail ** (1/n).
    assert stats.proportion_interval(0, 10) == pytest.approx((0.0, 1 - 0.025**0.1))
    assert stats.proportion_interval(10, 10) == pytest.approx((0.025**0.1, 1.0))
    assert stats.proportion_interval(0, 10, method="mid-p") == pytest.approx((0.0, 1 - 0.05**0.1))
    assert stats.proportion_interval(0, 10, method="wilson").high == pytest.approx(1.959964**2 / (10 + 1.959964**2))
    assert stats.proportion_upper_bound(0, 100, 0.95) == pytest.approx(1 - 0.05**0.01)
    assert stats.proportion_upper_bound(7, 7) == 1.0
    assert stats.proportion_lower_bound(7, 7) == pytest.approx(0.05 ** (1 / 7))
    assert stats.proportion_lower_bound(0, 7) == 0.0


@pytest.mark.parametrize("method", METHODS)
def test_arrays_give_what_single_counts_give(method: stats.ProportionMethod) -> None:
    seen = np.array([0, 3, 20])
    low, high = stats.proportion_bounds(seen, [20, 50, 20], 0.9, method)

    assert [*zip(low, high, strict=True)] == [
        stats.proportion_interval(x, n, 0.9, method) for x, n in ((0, 20), (3, 50), (20, 20))
    ]


@pytest.mark.parametrize("trials", [1, 7, 60])
def test_the_exact_bounds_never_cover_less_than_they_say(trials: int) -> None:
    seen = np.arange(trials + 1)
    rates = np.linspace(0.0005, 0.9995, 400)[:, None]
    chance = scipy.stats.binom.pmf(seen, trials, rates)
    low, high = stats.proportion_bounds(seen, trials, 0.95)
    upper = np.array([stats.proportion_upper_bound(int(x), trials, 0.95) for x in seen])
    lower = np.array([stats.proportion_lower_bound(int(x), trials, 0.95) for x in seen])

    assert (chance * ((low <= rates) & (rates <= high))).sum(axis=1).min() >= 0.95 - 1e-9
    assert (chance * (rates <= upper)).sum(axis=1).min() >= 0.95 - 1e-9
    assert (chance * (rates >= lower)).sum(axis=1).min() >= 0.95 - 1e-9


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (-1, 5), (6, 5), (0, -3)])
def test_impossible_counts_are_refused(successes: int, trials: int) -> None:
    for function in (stats.proportion_interval, stats.proportion_upper_bound, stats.proportion_lower_bound):
        with pytest.raises(ValueError, match="0 <= successes <= trials"):
            function(successes, trials)


def test_unknown_methods_and_levels_are_refused() -> None:
    with pytest.raises(ValueError, match="one of clopper-pearson, wilson, jeffreys, mid-p"):
        stats.proportion_interval(1, 2, method="wald")  # type: ignore[arg-type]
    for level in (0.0, 1.0, 95):
        with pytest.raises(ValueError, match="level between 0 and 1"):
            stats.proportion_interval(1, 2, level)
        with pytest.raises(ValueError, match="level between 0 and 1"):
            stats.proportion_upper_bound(1, 2, level)
