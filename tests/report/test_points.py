from __future__ import annotations

import numpy as np

from uphold.report.points import spread_out


def test_equal_points_are_spread_into_discs_by_number() -> None:
    x, y = np.array([0.0] * 90 + [1.0] * 10), np.array([1.0] * 90 + [0.0] * 10)
    spread_x, spread_y, spread = spread_out(x, y)
    assert spread
    distance = np.hypot(spread_x - x, spread_y - y)
    assert distance.max() < 0.12
    assert distance[90:].max() < distance[:90].max() / 2
    assert len(set(zip(spread_x, spread_y, strict=True))) == 100
    again = spread_out(np.linspace(0, 1, 50), np.linspace(0, 1, 50))
    assert not again[2]
    assert not spread_out(np.array([]), np.array([]))[2]
