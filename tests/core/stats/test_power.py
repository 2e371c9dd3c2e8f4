from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from uphold.core import stats

quick = settings(max_examples=40, deadline=None, database=None)


def keeps(trials: int, rate: float, limit: float, level: float) -> float:
    """Chance that the upper bound keeps the limit, adding up every count of flips."""
    upper = np.array([stats.proportion_upper_bound(x, trials, level) for x in range(trials + 1)])
    return float(binom.pmf(np.arange(trials + 1), trials, rate)[upper <= limit].sum())


def tells(trials: int, rate: float, floor: float, level: float) -> float:
    """Chance that the lower bound exceeds the floor, adding up every count of flips."""
    lower = np.array([stats.proportion_lower_bound(x, trials, level) for x in range(trials + 1)])
    return float(binom.pmf(np.arange(trials + 1), trials, rate)[lower > floor].sum())


@pytest.mark.parametrize(
    ("rate", "limit", "level", "power"),
    [(0.1, 0.3, 0.95, 0.8), (0.0, 0.1, 0.95, 0.8), (0.2, 0.5, 0.9, 0.95), (0.05, 0.2, 0.99, 0.5)],
)
def test_instances_needed_is_the_first_that_suffices_for_good(
    rate: float, limit: float, level: float, power: float
) -> None:
    n = stats.instances_needed(rate, limit, level, power)

    assert keeps(n - 1, rate, limit, level) < power
    assert min(keeps(more, rate, limit, level) for more in range(n, n + 60)) >= power


@pytest.mark.parametrize(
    ("rate", "floor", "level", "power"),
    [(0.3, 0.1, 0.95, 0.8), (0.1, 0.0, 0.95, 0.8), (0.5, 0.2, 0.99, 0.9), (0.9, 0.5, 0.95, 0.8), (0.3, 0.05, 0.9, 0.5)],
)
def test_instances_to_see_is_the_first_that_suffices_for_good(
    rate: float, floor: float, level: float, power: float
) -> None:
    n = stats.instances_to_see(rate, level, power, floor)

    assert n == 1 or tells(n - 1, rate, floor, level) < power
    assert min(tells(more, rate, floor, level) for more in range(n, n + 60)) >= power - 1e-12


def test_closed_forms() -> None:
    # No flip in n keeps 2% when 0.98^n <= 0.05; one flip is seen with probability 1 - 0.99^n.
    assert stats.instances_needed(0.0, 0.02) == 149
    assert stats.instances_to_see(0.01) == 161
    assert stats.smallest_visible_rate(161) == pytest.approx(1 - 0.2 ** (1 / 161))
    assert stats.smallest_visible_rate(1, floor=0.1) == float("inf")


@quick
@given(st.floats(0.0, 0.5), st.floats(0.01, 0.4))
def test_more_is_needed_when_the_limit_is_nearer_or_the_demand_higher(rate: float, gap: float) -> None:
    limit = rate + gap
    n = stats.instances_needed(rate, limit)

    assert stats.instances_needed(rate, limit, power=0.9) >= n
    assert stats.instances_needed(rate, limit, level=0.99) >= n
    assert stats.instances_needed(rate, rate + gap / 2) >= n


@quick
@given(st.integers(1, 100_000), st.floats(0, 0.3))
def test_the_smallest_visible_rate_is_just_visible(trials: int, floor: float) -> None:
    rate = stats.smallest_visible_rate(trials, floor=floor)
    if rate == float("inf"):
        assert floor**trials > 0.05
        return
    flips = next(x for x in range(int(floor * trials), trials + 1) if stats.proportion_lower_bound(x, trials) > floor)

    assert rate > floor
    assert binom.sf(flips - 1, trials, rate) == pytest.approx(0.8, abs=1e-9)


@quick
@given(st.floats(0.001, 0.5), st.floats(0, 0.9))
def test_what_is_to_be_seen_is_visible(rate: float, part: float) -> None:
    n = stats.instances_to_see(rate, floor=part * rate)

    assert stats.smallest_visible_rate(n, floor=part * rate) <= rate + 1e-9


def test_large_answers_come_quickly_and_hold() -> None:
    n = stats.instances_needed(0.019, 0.02)
    flips = np.arange(int(0.021 * n))
    passing = flips[binom.cdf(flips, n, 0.02) <= 0.05].max()

    assert binom.cdf(passing, n, 0.019) >= 0.8
    assert 100_000 < n < 150_000


def test_impossible_questions_are_refused() -> None:
    with pytest.raises(ValueError, match="no number of instances does"):
        stats.instances_needed(0.02, 0.02)
    with pytest.raises(ValueError, match="no number of instances does"):
        stats.instances_to_see(0.01, floor=0.01)
    with pytest.raises(ValueError, match="takes more than 1000000000 instances"):
        stats.instances_needed(0.02, 0.020001)
    with pytest.raises(ValueError, match="power"):
        stats.instances_needed(0.01, 0.02, power=80)
    with pytest.raises(ValueError, match="trials >= 1"):
        stats.smallest_visible_rate(0)
