from __future__ import annotations

import subprocess
import sys

import pytest

from uphold.core import stats
from uphold.core.stats.types import check_draws, check_level


def test_an_interval_is_a_pair_with_names() -> None:
    low, high = stats.Interval(0.1, 0.2)

    assert (low, high) == (0.1, 0.2) == stats.Interval(low=0.1, high=0.2)


def test_levels_and_draws_are_checked() -> None:
    check_level(0.95)
    check_draws(1)
    with pytest.raises(ValueError, match="not 95"):
        check_level(95)
    with pytest.raises(ValueError, match="at least one draw, not 0"):
        check_draws(0)


def test_importing_statistics_loads_no_heavy_library() -> None:
    code = "import sys, uphold.core.stats; print(*{'scipy', 'torch', 'pandas'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert found.strip() == ""
