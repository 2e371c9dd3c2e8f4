from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from uphold.measure.hypergeometric import log_mass, upper_tail


@st.composite
def tables(draw: st.DrawFn) -> tuple[int, int, int, int]:
    population = draw(st.integers(1, 3000))
    marked, drawn = draw(st.integers(0, population)), draw(st.integers(0, population))
    hits = draw(st.integers(max(0, drawn + marked - population), min(marked, drawn)))
    return hits, population, marked, drawn


@given(tables())
@settings(max_examples=200, deadline=None)
def test_it_is_the_one_sided_fisher_test(table: tuple[int, int, int, int]) -> None:
    hits, population, marked, drawn = table
    cells = [[hits, drawn - hits], [marked - hits, population - marked - drawn + hits]]

    expected = scipy_stats.fisher_exact(cells, alternative="greater").pvalue

    assert upper_tail([hits], population, marked, [drawn])[0] == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_a_hand_computed_table() -> None:
    # 3 of 4 marked among 4 drawn out of 8: (C(4,3) C(4,1) + 1) / C(8,4) = 17 / 70
    assert upper_tail([3, 4, 0], 8, 4, [4, 4, 4]) == pytest.approx([17 / 70, 1 / 70, 1.0])
    assert np.exp(log_mass(np.array([3]), 8, 4, np.array([4]))) == pytest.approx(16 / 70)


def test_many_tables_at_once_and_at_scale() -> None:
    hits, drawn = np.array([25_000, 25_300, 120, 0]), np.array([2_500_000, 2_500_000, 1000, 10_000_000 - 100_000])

    ours = upper_tail(hits, 10_000_000, 100_000, drawn)

    assert ours == pytest.approx(scipy_stats.hypergeom.sf(hits - 1, 10_000_000, 100_000, drawn), rel=1e-6)


def test_certain_events_have_p_one() -> None:
    assert upper_tail([0, 5, 5], 10, 5, [0, 10, 10]).tolist() == [1.0, 1.0, 1.0]
    assert upper_tail([0], 10, 0, [4]).tolist() == [1.0]
    assert upper_tail([], 10, 5, []).shape == (0,)


@pytest.mark.parametrize(("hits", "population", "marked", "drawn"), [(3, 10, 2, 5), (0, 10, 11, 5), (1, 10, 2, 11)])
def test_impossible_counts_are_refused(hits: int, population: int, marked: int, drawn: int) -> None:
    with pytest.raises(ValueError, match="need"):
        upper_tail(hits, population, marked, drawn)
