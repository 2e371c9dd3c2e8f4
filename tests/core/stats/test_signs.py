from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from uphold.core.stats import signs


def test_sums_of_equal_signs_are_binomial() -> None:
    assert signs.sign_sums(np.array([2, 2, 2])) == pytest.approx(
        [1 / 8, 0, 0, 0, 3 / 8, 0, 0, 0, 3 / 8, 0, 0, 0, 1 / 8], abs=1e-15
    )
    assert signs.sign_sums(np.array([1, 2])) == pytest.approx([1 / 4, 0, 1 / 4, 0, 1 / 4, 0, 1 / 4], abs=1e-15)


def test_far_tails_keep_their_digits() -> None:
    assert signs.sign_flip_p(np.ones(300), 1, 0) == pytest.approx(2.0**-299, rel=1e-9)


def test_the_three_ways_of_counting_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.array([0.5, 1.5, -1.0, 2.5, 0.5, 3.0, -0.5, 1.0, 2.0, 0.5, 1.5, 1.5])
    listed = signs.sign_flip_p(values, 1, 0)
    computed = signs.sign_flip_p(2 * values, 1, 0)
    monkeypatch.setattr(signs, "ENUMERATED", 0)
    drawn = signs.sign_flip_p(values, 100_000, 0)

    assert listed == pytest.approx(computed, abs=1e-12)
    assert drawn == pytest.approx(listed, abs=0.005)


def test_ties_survive_rounding() -> None:
    # 0.1 + 0.2 and 0.3 are the same sum in another order.
    values = np.array([0.1, 0.2, -0.3, 0.6])

    assert signs.sign_flip_p(values, 1, 0) == pytest.approx(signs.sign_flip_p(10 * values.round(1), 1, 0))


def test_many_equal_differences_share_a_draw() -> None:
    values = np.tile([0.25, -0.25, 0.25, 0.125], 20_000)
    p = signs.sign_flip_p(values, 2000, 3)

    assert p == pytest.approx(1 / 2001)
    balanced = np.tile([0.25, -0.25, 0.125, -0.125], 20_000) + np.repeat([1e-4, 0.0], [1, 79_999])
    z = balanced.sum() / np.sqrt((balanced**2).sum())
    assert signs.sign_flip_p(balanced, 4000, 3) == pytest.approx(2 * scipy.stats.norm.sf(z), abs=0.03)
