from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.contingency_tables import mcnemar

from uphold.core import stats

quick = settings(max_examples=50, deadline=None, database=None)
tables = st.tuples(*[st.integers(0, 200)] * 4).filter(lambda table: sum(table) > 0)


@quick
@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_is_that_of_statsmodels(negative: int, positive: int) -> None:
    theirs = mcnemar([[5, negative], [positive, 5]], exact=True).pvalue if negative + positive else 1.0

    assert stats.mcnemar_exact(negative, positive) == pytest.approx(theirs, abs=1e-9)
    assert stats.mcnemar_exact(positive, negative) == stats.mcnemar_exact(negative, positive)


def test_mcnemar_by_hand() -> None:
    assert stats.mcnemar_exact(0, 0) == 1.0
    assert stats.mcnemar_exact(5, 0) == pytest.approx(2 / 32)
    assert stats.mcnemar_exact(8, 1) == pytest.approx(2 * (1 + 9) / 512)
    assert stats.mcnemar_exact(4, 4) == 1.0


@quick
@given(st.integers(0, 300), st.integers(0, 300))
def test_the_mid_p_counts_what_is_as_extreme_by_half(negative: int, positive: int) -> None:
    discordant = negative + positive
    chance = scipy.stats.binom.pmf(np.arange(discordant + 1), discordant, 0.5)
    distance = np.abs(2 * np.arange(discordant + 1) - discordant)
    seen = abs(negative - positive)
    expected = chance[distance > seen].sum() + chance[distance == seen].sum() / 2

    assert stats.mcnemar_midp(negative, positive) == pytest.approx(expected, abs=1e-9)
    assert stats.mcnemar_midp(positive, negative) == stats.mcnemar_midp(negative, positive)
    assert stats.mcnemar_midp(negative, positive) <= stats.mcnemar_exact(negative, positive)


def test_the_mid_p_by_hand() -> None:
    assert stats.mcnemar_midp(5, 0) == pytest.approx(1 / 32)
    assert stats.mcnemar_midp(1, 1) == pytest.approx(1 - 1 / 4)
    assert stats.mcnemar_midp(0, 0) == 0.5


def test_negative_counts_are_refused() -> None:
    for test in (stats.mcnemar_exact, stats.mcnemar_midp):
        with pytest.raises(ValueError, match="cannot be negative"):
            test(-1, 3)


def newcombe_by_hand(a: int, c: int, b: int, d: int) -> tuple[float, float]:
    """Method 10 with a both right, b positive, c negative flips and d both wrong, in plain arithmetic."""
    n, z = a + b + c + d, 1.959963984540054

    def wilson(x: int) -> tuple[float, float]:
        half = z * (z**2 + 4 * x * (1 - x / n)) ** 0.5
        return (2 * x + z**2 - half) / (2 * (n + z**2)), (2 * x + z**2 + half) / (2 * (n + z**2))

    (new_low, new_high), (old_low, old_high) = wilson(a + b), wilson(a + c)
    margins = (a + b) * (c + d) * (a + c) * (b + d)
    top = a * d - b * c
    top = max(top - n / 2, 0) if top > 0 else top
    phi = top / margins**0.5 if margins else 0.0
    new, old = (a + b) / n, (a + c) / n
    down, up = new - new_low, old_high - old
    below = max(0.0, down**2 - 2 * phi * down * up + up**2) ** 0.5
    down, up = old - old_low, new_high - new
    above = max(0.0, down**2 - 2 * phi * down * up + up**2) ** 0.5
    return max(-1.0, new - old - below), min(1.0, new - old + above)


@quick
@given(tables)
def test_newcombe_is_its_formula(table: tuple[int, int, int, int]) -> None:
    assert stats.paired_difference_interval(*table, method="newcombe") == pytest.approx(
        newcombe_by_hand(*table), abs=1e-9
    )


@quick
@given(tables, st.sampled_from(["tango", "newcombe"]))
def test_difference_intervals_contain_the_difference_and_mirror(
    table: tuple[int, int, int, int], method: stats.PairedMethod
) -> None:
    both_right, negative, positive, both_wrong = table
    low, high = stats.paired_difference_interval(*table, method=method)
    swapped = stats.paired_difference_interval(both_right, positive, negative, both_wrong, method=method)
    difference = (positive - negative) / sum(table)

    assert -1 <= low <= difference + 1e-12
    assert difference - 1e-12 <= high <= 1
    assert swapped == pytest.approx((-high, -low), abs=1e-9)


def test_the_exact_interval_is_two_bounds() -> None:
    low, high = stats.paired_difference_interval(40, 3, 5, 2, 0.9, "exact")

    assert low == stats.exact_lower_bound(3, 5, 50, 0.95).low
    assert high == -stats.exact_lower_bound(5, 3, 50, 0.95).low
    assert (low, high) == pytest.approx(stats.paired_difference_interval(40, 3, 5, 2, 0.9), abs=0.01)


def test_wrong_tables_and_methods_are_refused() -> None:
    for table in ((0, 0, 0, 0), (5, -1, 2, 3)):
        with pytest.raises(ValueError, match="at least one pair, none negative"):
            stats.paired_difference_interval(*table)
    with pytest.raises(ValueError, match="one of tango, newcombe, exact"):
        stats.paired_difference_interval(1, 1, 1, 1, method="wald")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="level"):
        stats.paired_difference_interval(1, 1, 1, 1, level=0)


real = st.lists(st.floats(-3, 3, allow_nan=False).map(lambda x: round(x, 2)), min_size=2, max_size=9)


@quick
@given(real)
def test_the_permutation_test_is_that_of_scipy(differences: list[float]) -> None:
    values = np.array(differences)
    theirs = scipy.stats.permutation_test(
        (values, np.zeros(values.size)),
        lambda x, y, axis: np.sum(x - y, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf,
    ).pvalue

    assert stats.paired_permutation_test(values) == pytest.approx(theirs, abs=1e-9)


@quick
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=10))
def test_whole_numbers_are_counted_over_all_patterns(differences: list[int]) -> None:
    seen = abs(sum(differences))
    sums = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in product((1, -1), repeat=len(differences))
    ]

    assert stats.paired_permutation_test(differences) == pytest.approx(np.mean(np.array(sums) >= seen), abs=1e-12)


@quick
@given(st.integers(0, 300), st.integers(0, 300), st.integers(1, 50))
def test_right_or_wrong_answers_give_mcnemar(negative: int, positive: int, unchanged: int) -> None:
    differences = np.repeat([-1, 1, 0], [negative, positive, unchanged])

    assert stats.paired_permutation_test(differences) == pytest.approx(
        stats.mcnemar_exact(negative, positive), rel=1e-9
    )


def test_drawn_patterns_come_near_the_t_test_and_repeat() -> None:
    values = np.random.default_rng(5).normal(0.15, 1, size=200)
    drawn = stats.paired_permutation_test(values, seed=1)

    assert drawn == pytest.approx(scipy.stats.ttest_1samp(values, 0).pvalue, abs=0.02)
    assert drawn == stats.paired_permutation_test(values, seed=1) != stats.paired_permutation_test(values, seed=2)
    assert drawn * 10_001 == pytest.approx(round(drawn * 10_001))


def test_no_p_value_is_zero() -> None:
    values = np.linspace(1.01, 2, 40)

    assert stats.paired_permutation_test(values, draws=99) == 0.01
    assert stats.paired_permutation_test(np.zeros(5)) == 1.0


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [[1.0, 2.0]]])
def test_unusable_differences_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="finite differences"):
        stats.paired_permutation_test(values)
    with pytest.raises(ValueError, match="at least one draw"):
        stats.paired_permutation_test([1.0], draws=0)
