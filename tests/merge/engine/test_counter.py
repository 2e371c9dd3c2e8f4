from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from uphold.merge.engine.counter import uniform


@given(st.integers(0, 2**40), st.integers(0, 200), st.integers(0, 200))
def test_a_number_depends_on_its_element_only(start: int, offset: int, count: int) -> None:
    whole = uniform(3, "w", 1, start, offset + count)
    assert np.array_equal(whole[offset:], uniform(3, "w", 1, start + offset, count))


def test_seeds_tensors_and_models_have_numbers_of_their_own() -> None:
    keys = [(0, "w", 0), (1, "w", 0), (0, "v", 0), (0, "w", 1), (1, "0", 0), (10, "", 0)]
    drawn = {uniform(seed, name, model, 0, 8).tobytes() for seed, name, model in keys}
    assert len(drawn) == len(keys)


def test_numbers_are_uniform_in_the_unit_interval() -> None:
    found = uniform(0, "w", 0, 0, 200_000)
    assert found.dtype == np.float32
    assert found.min() >= 0
    assert found.max() < 1
    assert stats.kstest(found, "uniform").pvalue > 1e-4
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.01


def test_the_numbers_are_the_same_in_every_version() -> None:
    assert (uniform(0, "w", 0, 0, 4) * 2**24).astype(int).tolist() == [7684518, 14227970, 9846061, 3036225]
