from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uphold.core import stats
from uphold.core.stats.anytime import BETS

quick = settings(max_examples=40, deadline=None, database=None)
flips = st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=1, max_size=60)


def e_by_hand(values: list[float], null: float, low: float, high: float, side: str) -> float:
    total = 0.0
    for bet in BETS:
        product = 1.0
        for x in values:
            product *= 1 + bet * ((x - null) / (null - low) if side == "greater" else (null - x) / (high - null))
        total += product
    return total / len(BETS)


@quick
@given(flips, st.floats(-0.8, 0.8), st.sampled_from(["greater", "less"]))
def test_it_is_the_average_of_products(values: list[float], null: float, side: str) -> None:
    process = stats.EProcess(null, -1, 1, side)  # type: ignore[arg-type]
    process.update(values)
    steps = [e_by_hand(values[: n + 1], null, -1, 1, side) for n in range(len(values))]

    assert np.exp(process.log_e) == pytest.approx(steps[-1], rel=1e-9)
    assert process.p == pytest.approx(min(1.0, 1 / max(steps)), rel=1e-9)
    assert process.count == len(values)


@quick
@given(flips, st.integers(0, 60))
def test_pieces_counts_and_order_lead_to_the_same_evidence(values: list[float], cut: int) -> None:
    whole, pieces, counted = (stats.EProcess(-0.1, -1, 1) for _ in range(3))
    whole.update(values)
    pieces.update(values[:cut])
    pieces.update(values[cut:])
    counted.update_counts({value: values.count(value) for value in (1.0, 0.0, -1.0)})

    assert pieces.log_e == pytest.approx(whole.log_e, abs=1e-9)
    assert pieces.p == pytest.approx(whole.p, rel=1e-9)
    assert counted.log_e == pytest.approx(whole.log_e, abs=1e-9)
    assert counted.p >= whole.p - 1e-12
    assert counted.count == whole.count


@pytest.mark.parametrize(("null", "side"), [(0.02, "less"), (0.02, "greater"), (0.3, "greater")])
def test_a_step_costs_nothing_on_average_under_the_null(null: float, side: stats.Side) -> None:
    one, zero = (stats.EProcess(null, side=side) for _ in range(2))
    one.update([1.0])
    zero.update([0.0])

    assert null * np.exp(one.log_e) + (1 - null) * np.exp(zero.log_e) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize(("null", "low", "side"), [(0.02, 0.0, "greater"), (0.05, 0.0, "less"), (0.0, -1.0, "greater")])
def test_peeking_after_every_instance_rejects_no_more_often_than_promised(
    null: float, low: float, side: stats.Side
) -> None:
    generator = np.random.default_rng(7)
    rejected = 0
    for _ in range(400):
        process = stats.EProcess(null, low, 1.0, side)
        if low == 0:
            process.update((generator.random(1500) < null).astype(float))
        else:
            process.update(generator.choice([-1.0, 0.0, 1.0], p=[0.03, 0.94, 0.03], size=1500))
        rejected += process.p <= 0.05

    # At most 5%, and 3.3 standard errors of 400 runs.
    assert rejected / 400 <= 0.05 + 3.3 * (0.05 * 0.95 / 400) ** 0.5


def test_it_finds_what_is_there() -> None:
    clean, broken = stats.EProcess(0.02, side="less"), stats.EProcess(0.02, side="greater")
    clean.update(np.zeros(300))
    broken.update((np.arange(300) % 12 == 0).astype(float))

    assert clean.p <= 0.05
    assert broken.p <= 0.05


def test_evidence_once_seen_stays_seen() -> None:
    process = stats.EProcess(0.1, side="greater")
    process.update(np.ones(5))
    least = process.p
    process.update(np.zeros(200))

    assert process.p == least < 0.01
    assert np.exp(-process.log_e) > 1


def test_it_starts_without_evidence_and_takes_nothing() -> None:
    process = stats.EProcess(0.1)
    process.update([])
    process.update_counts({})
    process.update_counts({1.0: 0})

    assert (process.p, process.log_e, process.count) == (1.0, 0.0, 0)


def test_long_samples_stay_finite() -> None:
    process = stats.EProcess(0.5, side="greater")
    process.update_counts({1.0: 10_000_000})

    assert np.isfinite(process.log_e)
    assert process.p == 0.0


@pytest.mark.parametrize("null", [0.0, 1.0, -0.1, float("nan")])
def test_a_null_at_the_edge_is_refused(null: float) -> None:
    with pytest.raises(ValueError, match="low < null < high"):
        stats.EProcess(null)


def test_other_misuse_is_refused() -> None:
    with pytest.raises(ValueError, match="greater or less"):
        stats.EProcess(0.1, side="two-sided")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must lie in"):
        stats.EProcess(0.1).update([0.5, 1.5])
    with pytest.raises(ValueError, match="must lie in"):
        stats.EProcess(0.1).update([float("nan")])
    with pytest.raises(ValueError, match="must lie in"):
        stats.EProcess(0.1).update_counts({2.0: 1})
    with pytest.raises(ValueError, match="cannot be negative"):
        stats.EProcess(0.1).update_counts({1.0: -1})
    with pytest.raises(ValueError, match="level"):
        stats.confidence_sequence({0: 5}, level=2)


@quick
@given(st.integers(0, 50), st.integers(0, 2000), st.integers(0, 50), st.sampled_from([0.8, 0.95]))
def test_the_sequence_holds_the_means_that_are_not_rejected(down: int, same: int, up: int, level: float) -> None:
    counts = {-1.0: down, 0.0: same, 1.0: up}
    low, high = stats.confidence_sequence(counts, -1, 1, level)
    threshold = np.log(2 / (1 - level))

    def log_e(null: float, side: stats.Side) -> float:
        process = stats.EProcess(null, -1, 1, side)
        process.update_counts(counts)
        return process.log_e

    if down + same + up:
        mean = (up - down) / (down + same + up)
        assert -1 <= low <= mean <= high <= 1
        if low > -1:
            assert log_e(low, "greater") == pytest.approx(threshold, abs=1e-6)
        if high < 1:
            assert log_e(high, "less") == pytest.approx(threshold, abs=1e-6)
    else:
        assert (low, high) == (-1, 1)


def test_the_sequence_narrows_and_is_wider_than_an_interval_for_one_look() -> None:
    widths = []
    for n in (100, 1000, 10_000):
        low, high = stats.confidence_sequence({0: n - n // 50, 1: n // 50})
        fixed = stats.proportion_interval(n // 50, n)
        assert low < fixed.low
        assert fixed.high < high
        widths.append(high - low)

    assert widths == sorted(widths, reverse=True)
