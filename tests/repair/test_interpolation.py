from __future__ import annotations

import pytest

from uphold.core.errors import UsageError
from uphold.repair.bcwi import BcwiConfig
from uphold.repair.fisher_bcwi import FisherBcwiConfig
from uphold.repair.interpolation import InterpolationConfig, Point, choose_alpha
from uphold.repair.soup_bcwi import SoupBcwiConfig

LARGEST, NFR = InterpolationConfig(choose="largest"), InterpolationConfig(choose="nfr")


def points(*rows: tuple[float, float, float]) -> list[Point]:
    return [Point(*row) for row in rows]


def test_the_largest_alpha_that_is_not_less_accurate_than_the_new_model_is_kept() -> None:
    found = points((0.0, 0.70, 0.05), (0.1, 0.72, 0.04), (0.2, 0.69, 0.01), (0.3, 0.70, 0.03), (0.4, 0.60, 0.0))
    assert choose_alpha(found, 0.70, LARGEST) == 0.3
    assert choose_alpha(points((0.0, 0.70, 0.01), (0.1, 0.70, 0.02), (0.2, 0.699, 0.0)), 0.70, LARGEST) == 0.1
    assert choose_alpha(found[:1] + found[-1:], 0.70, LARGEST) == 0.0


def test_the_lowest_nfr_is_looked_for_among_those_about_as_accurate() -> None:
    found = points((0.0, 0.700, 0.05), (0.1, 0.696, 0.02), (0.2, 0.694, 0.01), (0.3, 0.71, 0.03))
    assert choose_alpha(found, 0.70, NFR) == 0.1


def test_of_equals_the_more_accurate_then_the_smaller_alpha_has_fewer_flips() -> None:
    found = points((0.0, 0.70, 0.05), (0.1, 0.70, 0.02), (0.2, 0.71, 0.02), (0.3, 0.71, 0.02))
    assert choose_alpha(found, 0.70, NFR) == 0.2


@pytest.mark.parametrize("config", [LARGEST, NFR])
def test_where_nothing_is_accurate_enough_the_most_accurate_is_kept(config: InterpolationConfig) -> None:
    """A soup can be below the new model at every alpha."""
    assert choose_alpha(points((0.0, 0.60, 0.1), (0.1, 0.62, 0.1), (0.2, 0.61, 0.0)), 0.70, config) == 0.1


def test_grids_go_from_0_to_below_1() -> None:
    assert BcwiConfig().grid == (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    assert BcwiConfig(step=0.5).grid == (0.0, 0.5)
    assert BcwiConfig(step=0.3).grid == (0.0, 0.3, 0.6, 0.9)
    assert FisherBcwiConfig().grid[:9] == (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.4)
    assert FisherBcwiConfig().grid[-5:] == (0.96, 0.98, 0.99, 0.995, 0.999)
    assert len(FisherBcwiConfig(step=0.01).grid) == 104


@pytest.mark.parametrize("alpha", [-0.1, 1.0, 1.5])
def test_an_alpha_that_is_no_mixture_is_refused(alpha: float) -> None:
    with pytest.raises(UsageError, match=r"old_share must be in \[0, 1\)"):
        BcwiConfig(old_share=alpha)


def test_alpha_1_says_what_it_is() -> None:
    with pytest.raises(UsageError, match="1 is the old model itself; keep that one"):
        FisherBcwiConfig(old_share=1)


def test_impossible_options_are_refused() -> None:
    with pytest.raises(UsageError, match=r"step must be in \(0, 0.5\]"):
        BcwiConfig(step=0)
    with pytest.raises(UsageError, match="did you mean 'largest'"):
        BcwiConfig(choose="larges")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="members >= 1"):
        SoupBcwiConfig(members=0)
    with pytest.raises(UsageError, match="must not be negative"):
        FisherBcwiConfig(examples=-1)
