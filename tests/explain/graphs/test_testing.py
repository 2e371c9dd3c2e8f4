from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from uphold.core.errors import EmptyError
from uphold.explain.graphs.config import GraphConfig
from uphold.explain.graphs.testing import paired_p, select, unpaired_z

AUTHORS = GraphConfig(compat="authors")


def test_paired_p_is_the_t_test_of_scipy() -> None:
    values = np.random.default_rng(0).normal(-0.2, 1, (6, 15))
    assert paired_p(values) == pytest.approx(stats.ttest_1samp(values, 0, axis=1, alternative="less").pvalue)
    assert paired_p(values, two_sided=True) == pytest.approx(stats.ttest_1samp(values, 0, axis=1).pvalue)


def test_equal_differences_are_certain_and_none_is_nothing() -> None:
    values = np.array([[-1.0, -1.0], [0.0, 0.0], [1.0, 1.0]])
    assert paired_p(values).tolist() == [0, 1, 1]
    assert paired_p(values, two_sided=True).tolist() == [0, 1, 0]


def test_type_one_rates_before_any_fallback_are_the_nominal_ones() -> None:
    random = np.random.default_rng(0)
    clean = random.normal(5, 2, (4000, 30))
    fresh = random.normal(5, 2, (4000, 30))
    assert np.mean(paired_p(fresh - clean) <= 0.05) == pytest.approx(0.05, abs=0.012)
    rates = [unpaired_z(fresh[k : k + 1], clean[k])[0] < -1.65 for k in range(4000)]
    assert np.mean(rates) == pytest.approx(0.05, abs=0.012)


def test_the_adjustment_selects_nothing_among_many_units_without_effect() -> None:
    noise = np.random.default_rng(1).normal(0, 1, (200, 30))
    assert len(select(noise, np.zeros(30), 0.0, GraphConfig()).causes) <= 1


def test_pairs_see_what_the_spread_between_images_hides() -> None:
    clean = np.linspace(1, 20, 20)
    cut = np.stack([clean - 0.5 + 0.01 * np.sin(clean), clean])
    assert select(cut, clean, 10.0, GraphConfig()).causes == (0,)
    assert abs(unpaired_z(cut, clean)[0]) < 1.65


def test_significance_is_not_importance() -> None:
    clean = np.linspace(1, 20, 20)
    cut = np.stack([clean - 0.05, clean - 0.2])
    assert select(cut, clean, 10.0, GraphConfig()).causes == (1,)
    assert select(cut, clean, 10.0, GraphConfig(min_effect=0.0)).causes == (0, 1)


def test_units_that_raise_the_logit_are_no_causes() -> None:
    clean = np.linspace(1, 20, 20)
    assert select((clean + 3)[None], clean, 10.0, GraphConfig()).causes == ()


def test_authors_z_and_fallbacks() -> None:
    clean = np.array([1.0, 2.0, 3.0, 4.0])
    strong = select(np.stack([clean - 9, clean]), clean, 1.0, AUTHORS)
    assert (strong.causes, strong.fallback) == ((0,), "")
    weak = select(np.stack([clean - 0.1, clean, clean + 0.1]), clean, 1.0, AUTHORS)
    assert (weak.causes, weak.fallback) == ((0,), "relative")
    none = select(np.stack([clean + 0.1, clean + 0.2, clean]), clean, 1.0, AUTHORS)
    assert (none.causes, none.fallback) == ((2,), "lowest")


def test_authors_single_image_keeps_units_that_raise_the_logit_a_little() -> None:
    assert select(np.array([[1.0], [1.04], [1.06]]), np.array([1.0]), 1.0, AUTHORS).causes == (0, 1)


def test_one_image_is_too_few_for_pairs() -> None:
    with pytest.raises(EmptyError, match="at least 2 images"):
        select(np.array([[1.0]]), np.array([2.0]), 1.0, GraphConfig())


def test_units_that_were_not_cut_are_no_causes_and_count_as_tests() -> None:
    clean = np.linspace(1, 20, 20)
    cut = np.stack([clean - 1 - 0.1 * np.sin(clean)] * 2)
    found = select(cut, clean, 10.0, GraphConfig(), np.array([True, False]))
    assert found.causes == (0,)
    assert found.q[0] == pytest.approx(2 * found.p[0])
    assert select(cut, clean, 10.0, AUTHORS, np.array([True, False])).causes == (0,)
