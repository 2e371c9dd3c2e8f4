from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from uphold.core import stats

quick = settings(max_examples=50, deadline=None, database=None)


@quick
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=50), st.sampled_from([0.8, 0.95, 0.99]))
def test_the_interval_is_that_of_scipy(values: list[float], level: float) -> None:
    sample = np.array(values)
    if sample.std() < 1e-9:
        return
    theirs = scipy.stats.ttest_1samp(sample, 0).confidence_interval(level)

    assert stats.mean_interval(values, level) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_by_hand() -> None:
    # Mean 2, standard deviation 1, three values, t(2) quantile 4.302653.
    assert stats.mean_interval([1, 2, 3]) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5), abs=1e-6)
    assert stats.mean_interval([0.5, 0.5]) == (0.5, 0.5)


@pytest.mark.parametrize("values", [[], [1.0], [1.0, float("inf")]])
def test_unusable_values_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="at least two finite values"):
        stats.mean_interval(values)
