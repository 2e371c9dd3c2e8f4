from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests

from uphold.core import stats

quick = settings(max_examples=80, deadline=None, database=None)
p_values = st.lists(st.floats(0, 1), min_size=1, max_size=40)


@quick
@given(p_values)
def test_benjamini_hochberg_is_that_of_statsmodels(values: list[float]) -> None:
    assert stats.benjamini_hochberg(values) == pytest.approx(multipletests(values, method="fdr_bh")[1], abs=1e-9)


@settings(quick, max_examples=12)
@given(p_values)
def test_holm_is_that_of_statsmodels(values: list[float]) -> None:
    assert stats.holm(values) == pytest.approx(multipletests(values, method="holm")[1], abs=1e-9)


@quick
@given(p_values, st.randoms(use_true_random=False))
def test_order_does_not_matter_and_nothing_gets_smaller(values: list[float], random: np.random.Generator) -> None:
    order = list(range(len(values)))
    random.shuffle(order)  # type: ignore[arg-type]
    for adjust in (stats.benjamini_hochberg, stats.holm):
        adjusted = adjust(values)
        assert adjust(np.array(values)[order]) == pytest.approx(adjusted[order])
        assert (adjusted >= np.array(values) - 1e-12).all()
        assert (adjusted <= 1).all()
    assert (stats.benjamini_hochberg(values) <= stats.holm(values) + 1e-12).all()


def test_by_hand() -> None:
    assert stats.benjamini_hochberg([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.16 / 3, 0.16 / 3, 0.5])
    assert stats.holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert stats.benjamini_hochberg([]).size == stats.holm([]).size == 0


@pytest.mark.parametrize("values", [[0.1, 1.1], [-0.1], [float("nan")]])
def test_what_is_no_p_value_is_refused(values: list[float]) -> None:
    for adjust in (stats.benjamini_hochberg, stats.holm):
        with pytest.raises(ValueError, match="between 0 and 1"):
            adjust(values)
