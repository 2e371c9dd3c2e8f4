from __future__ import annotations

from bisect import bisect_left

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.weightstats import ttost_paired

from tests.core.stats.tables import all_tables, chances
from uphold.core import stats

quick = settings(max_examples=30, deadline=None, database=None)
tables = st.tuples(st.integers(0, 300), st.integers(0, 40), st.integers(0, 40), st.integers(0, 300)).filter(
    lambda table: sum(table) > 2
)


@quick
@given(tables, st.floats(0.005, 0.4), st.sampled_from([0.9, 0.95]))
def test_p_values_bounds_and_verdicts_of_pairs_agree(
    table: tuple[int, int, int, int], margin: float, level: float
) -> None:
    one = stats.non_inferiority_paired(*table, margin, level)
    both = stats.equivalence_paired(*table, margin, level)

    assert one.holds == (one.p <= 1 - level)
    if abs(one.low + margin) > 1e-6:
        assert one.holds == (one.low > -margin)
    if min(abs(one.low + margin), abs(one.high - margin)) > 1e-6:
        assert both.holds == (one.low > -margin and one.high < margin)
    assert both.p >= one.p
    assert (both.low, both.high) == (one.low, one.high)
    swapped = stats.equivalence_paired(table[0], table[2], table[1], table[3], margin, level)
    assert (swapped.p, swapped.low, swapped.high) == pytest.approx((both.p, -both.high, -both.low), abs=1e-9)


def test_the_number_of_instances_without_a_flip_that_shows_two_percent() -> None:
    # 0.98 ** n <= 0.05 - 0.0001 first at n = 149; Tango's score would be content with 133.
    assert not stats.non_inferiority_paired(148, 0, 0, 0, 0.02).holds
    assert stats.non_inferiority_paired(149, 0, 0, 0, 0.02).holds


def _fewest_that_pass(negative: int, trials: int, margin: float) -> int:
    """Positive flips from which on the margin is kept; bisection, as more of them never hurt."""
    return bisect_left(
        range(trials + 1 - negative),
        True,
        key=lambda positive: stats.exact_lower_bound(negative, positive, trials).p(-margin) <= 0.05,
    )


@pytest.mark.parametrize(("trials", "margin"), [(20, 0.1), (40, 0.05), (60, 0.05)])
def test_a_false_pass_is_no_more_frequent_than_promised(trials: int, margin: float) -> None:
    fewest = np.array([_fewest_that_pass(negative, trials, margin) for negative in range(trials + 1)])
    negative, positive = all_tables(trials)
    passes = positive >= fewest[negative]
    worst = max(float(chances(trials, psi, -margin)[passes].sum()) for psi in np.linspace(margin, 1, 200))

    assert 0.02 < worst <= 0.05


@quick
@given(st.lists(st.floats(-2, 2).map(lambda x: round(x, 3)), min_size=3, max_size=30), st.floats(0.05, 1))
def test_the_mean_tests_are_those_of_statsmodels(differences: list[float], margin: float) -> None:
    values = np.array(differences)
    error = values.std(ddof=1) / np.sqrt(values.size)
    if error < 1e-9:
        return
    p, (_, p_low, degrees), (_, p_high, _) = ttost_paired(values, np.zeros(values.size), -margin, margin)
    one = stats.non_inferiority_mean(values.mean(), error, degrees, margin)
    both = stats.equivalence_mean(values.mean(), error, degrees, margin)

    assert one.p == pytest.approx(p_low, abs=1e-9)
    assert both.p == pytest.approx(p, abs=1e-9)
    assert both.p == pytest.approx(max(p_low, p_high), abs=1e-9)
    assert (one.low, one.high) == pytest.approx(stats.mean_interval(values, 0.9), abs=1e-9)
    if abs(one.low + margin) > 1e-9:
        assert one.holds == (one.low > -margin)


@quick
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=4, max_size=40), st.floats(0.01, 0.3))
def test_the_clustered_test_and_its_bounds_agree(flips: list[tuple[int, int]], margin: float) -> None:
    negative, positive = np.array(flips).T
    test = stats.non_inferiority_clustered(negative, positive, np.full(len(flips), 8), margin)
    both = stats.clustered_difference(negative, positive, np.full(len(flips), 8), 0.9)

    assert (test.low, test.high) == pytest.approx((both.low, both.high), abs=1e-9)
    assert test.holds == (test.p <= 0.05 + 1e-17)
    if abs(test.low + margin) > 1e-6:
        assert test.holds == (test.low > -margin)


def test_with_one_instance_per_cluster_the_clustered_test_is_the_plain_one() -> None:
    negative, positive = np.repeat([1, 0, 0], [4, 3, 193]), np.repeat([0, 1, 0], [4, 3, 193])
    plain = stats.non_inferiority_paired(150, 4, 3, 43, 0.05)
    clustered = stats.non_inferiority_clustered(negative, positive, np.ones(200), 0.05)

    assert (clustered.p, clustered.low, clustered.high) == pytest.approx((plain.p, plain.low, plain.high), abs=1e-9)
    assert clustered.holds == plain.holds


def test_scores_that_hardly_ever_change_pass_only_when_there_are_enough_of_them() -> None:
    rare = np.zeros(100)
    assert stats.non_inferiority_mean(0.0, 0.0, 99, 0.02).holds
    assert not stats.non_inferiority_bounded(rare, 0.02).holds
    many = stats.non_inferiority_bounded(np.zeros(300), 0.02)
    assert many.holds
    assert -0.02 < many.low < 0 < many.high


@quick
@given(st.lists(st.floats(-1, 1).map(lambda x: round(x, 2)), min_size=1, max_size=60), st.floats(0.01, 0.9))
def test_the_bounded_test_and_its_bounds_agree(differences: list[float], margin: float) -> None:
    test = stats.non_inferiority_bounded(differences, margin)
    order = stats.non_inferiority_bounded(differences[::-1], margin)

    assert test == order
    assert test.low - 1e-12 <= np.mean(differences) <= test.high + 1e-12
    if abs(test.low + margin) > 1e-9:
        assert test.holds == (test.low > -margin)


def test_the_bounded_test_errs_no_more_than_promised() -> None:
    # One score in fifty falls by everything, the others stay: worse by exactly the margin.
    generator = np.random.default_rng(0)
    passes = [
        stats.non_inferiority_bounded(-(generator.random(200) < 0.02).astype(float), 0.02).holds for _ in range(150)
    ]

    assert np.mean(passes) <= 0.05


def test_a_difference_known_without_error() -> None:
    assert stats.non_inferiority_mean(-0.01, 0.0, 10, 0.02) == stats.MarginTest(0.0, -0.01, -0.01, True)
    assert not stats.non_inferiority_mean(-0.02, 0.0, 10, 0.02).holds
    assert not stats.equivalence_mean(0.03, 0.0, 10, 0.02).holds


def test_margins_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="margin that is not negative and below 1"):
        stats.non_inferiority_paired(10, 1, 1, 10, -0.1)
    with pytest.raises(ValueError, match="positive margin"):
        stats.equivalence_paired(10, 1, 1, 10, 0.0)
    with pytest.raises(ValueError, match="positive margin"):
        stats.equivalence_mean(0.1, 0.1, 5, 0.0)
    with pytest.raises(ValueError, match="none negative"):
        stats.non_inferiority_paired(0, 0, 0, 0, 0.1)
    with pytest.raises(ValueError, match="at least one difference"):
        stats.non_inferiority_bounded([], 0.1)
    with pytest.raises(ValueError, match="must lie in"):
        stats.non_inferiority_bounded([1.5], 0.1)
    with pytest.raises(ValueError, match="level"):
        stats.non_inferiority_bounded([0.5], 0.1, 0.2)
    with pytest.raises(ValueError, match="standard error >= 0"):
        stats.non_inferiority_mean(0.1, -1.0, 5, 0.1)
    with pytest.raises(ValueError, match="standard error >= 0"):
        stats.non_inferiority_mean(0.1, float("nan"), 5, 0.1)
