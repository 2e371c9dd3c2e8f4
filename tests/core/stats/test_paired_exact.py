from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.stats.tables import all_tables, chances
from uphold.core import stats

quick = settings(max_examples=25, deadline=None, database=None)


@st.composite
def flips(draw: st.DrawFn, most: int = 300) -> tuple[int, int, int]:
    trials = draw(st.integers(3, most))
    discordant = draw(st.integers(0, trials))
    negative = draw(st.integers(0, discordant))
    return negative, discordant - negative, trials


@pytest.mark.parametrize("table", [(0, 0, 30), (1, 2, 25), (4, 1, 20), (0, 3, 12), (9, 6, 15)])
def test_the_p_value_is_the_largest_chance_of_a_table_ordered_as_high(table: tuple[int, int, int]) -> None:
    level, margin = 0.95, 0.05
    gamma = 0.05 / 500
    low, high = stats.proportion_interval(table[0] + table[1], table[2], 1 - gamma)
    bounds, _ = stats.tango_bounds(*all_tables(table[2]), table[2], 2 * level - 1)
    as_high = bounds >= float(stats.tango_bounds(*table, 2 * level - 1)[0]) - 1e-9
    expected = max(chances(table[2], psi, -margin)[as_high].sum() for psi in np.linspace(max(low, margin), high, 400))

    assert stats.exact_lower_bound(*table, level).p(-margin) == pytest.approx(min(1, expected + gamma), abs=5e-4)


@quick
@given(flips(), st.sampled_from([0.9, 0.95, 0.99]))
def test_bound_and_test_agree(table: tuple[int, int, int], level: float) -> None:
    exact = stats.exact_lower_bound(*table, level)
    steps = [exact.p(difference) for difference in np.linspace(-1, 1, 41)]

    assert (np.diff(steps) >= -1e-4).all()
    assert exact.low <= (table[1] - table[0]) / table[2] + 1e-9
    if exact.low > -1:
        assert exact.p(exact.low) <= 1 - level
        assert exact.p(min(1.0, exact.low + 1e-4)) > 1 - level - 1e-4


@quick
@given(st.integers(60, 300), st.integers(60, 300), st.integers(60, 3000))
def test_with_many_flips_it_is_tangos_bound(negative: int, positive: int, unchanged: int) -> None:
    trials = negative + positive + unchanged
    tango = float(stats.tango_bounds(negative, positive, trials, 0.9)[0])

    assert stats.exact_lower_bound(negative, positive, trials).low == pytest.approx(tango, abs=2e-3)


def test_without_flips_it_is_the_binomial_bound_of_negative_flips() -> None:
    # The worst case of "no flip" under D <= -margin is that only negative flips can occur.
    for n in (20, 100, 1000):
        spent = stats.proportion_upper_bound(0, n, 0.95 + 0.05 / 500)
        assert -stats.exact_lower_bound(0, 0, n).low == pytest.approx(spent, abs=1e-6)


def test_the_ends() -> None:
    assert stats.exact_lower_bound(20, 0, 20).low == -1.0
    assert 0.5 < stats.exact_lower_bound(0, 20, 20).low < 1
    assert stats.exact_lower_bound(1, 0, 1).low == -1.0


def test_large_samples_take_no_time_worth_mentioning() -> None:
    low = stats.exact_lower_bound(30_000, 31_000, 1_000_000).low

    assert low == pytest.approx(float(stats.tango_bounds(30_000, 31_000, 1_000_000, 0.9)[0]), abs=1e-6)


def test_impossible_tables_are_refused() -> None:
    for table in ((-1, 2, 5), (3, 3, 5), (0, 0, 0)):
        with pytest.raises(ValueError, match="flips that fit"):
            stats.exact_lower_bound(*table)
    with pytest.raises(ValueError, match=r"between 0\.5 and 1"):
        stats.exact_lower_bound(1, 1, 5, 0.4)
