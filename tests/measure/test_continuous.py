from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from uphold.core import stats
from uphold.measure import intervals
from uphold.measure.continuous import continuous
from uphold.measure.intervals import SHARES
from uphold.measure.pairs import Arrays, Pairs, pairs_of
from uphold.measure.rates import Rate

quick = settings(max_examples=40, deadline=None, database=None)
# Quarters of a thousand are exact in binary, so that no tie hides in rounding.
scores = st.integers(0, 1024).map(lambda number: number / 1024)
score_pairs = st.lists(st.tuples(scores, scores), min_size=1, max_size=30)


def scored(rows: list[tuple[float, float]]) -> Pairs:
    old, new = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    return pairs_of(Arrays(old, new, old == new))


def rates_of(rows: list[tuple[float, float]], draws: int = 20) -> dict[str, Rate]:
    return {rate.name: rate for rate in continuous(scored(rows), draws=draws)}


def values_of(rows: list[tuple[float, float]]) -> dict[str, float | None]:
    return {name: rate.value for name, rate in rates_of(rows).items()}


def test_the_hand_case_of_the_paper() -> None:
    # D = (+2, 0, -1, -3) in units of a quarter, so that scores lie in [0, 1]
    rates = values_of([(0.25, 0.75), (0.5, 0.5), (0.5, 0.25), (0.75, 0.0)])

    assert rates == {
        "score_old": 0.5,
        "score_new": 0.375,
        "mean_difference": -0.5 / 4,
        "nfr_score": 0.5,
        "pfr_score": 0.25,
        "m_g": 2 / 4,
        "m_r": 2 / 4,
    }


@quick
@given(score_pairs)
def test_the_mean_difference_is_gains_less_losses(rows: list[tuple[float, float]]) -> None:
    rates = values_of(rows)
    gains, losses = rates["pfr_score"] or 0.0, rates["nfr_score"] or 0.0

    assert rates["mean_difference"] == pytest.approx(
        gains * (rates["m_g"] or 0.0) - losses * (rates["m_r"] or 0.0), abs=1e-12
    )
    assert gains + losses <= 1


@quick
@given(score_pairs)
def test_swapping_old_and_new_swaps_gains_and_losses(rows: list[tuple[float, float]]) -> None:
    there, back = values_of(rows), values_of([(new, old) for old, new in rows])

    for name, mirrored in (("nfr_score", "pfr_score"), ("m_r", "m_g"), ("score_old", "score_new")):
        assert there[name] == (None if back[mirrored] is None else pytest.approx(back[mirrored]))


@quick
@given(score_pairs)
def test_a_magnitude_is_undefined_exactly_where_no_score_moved_that_way(rows: list[tuple[float, float]]) -> None:
    rates = values_of(rows)

    assert (rates["m_g"] is None) == all(new <= old for old, new in rows)
    assert (rates["m_r"] is None) == all(new >= old for old, new in rows)


def test_equal_scores_are_ties() -> None:
    rates = rates_of([(0.3, 0.3), (0.7, 0.7)])

    assert rates["nfr_score"].value == rates["pfr_score"].value == rates["mean_difference"].value == 0.0
    assert rates["m_g"] == Rate("m_g", "M_g", None, unit="score", better="higher")
    assert rates["m_r"].value is None


def test_a_difference_from_rounding_is_a_tie() -> None:
    assert 0.1 + 0.2 != 0.3

    assert values_of([(0.1 + 0.2, 0.3), (0.3, 0.1 + 0.2)])["nfr_score"] == 0.0
    assert values_of([(0.3, 0.3 - 1e-6), (0.3, 0.3)])["nfr_score"] == 0.5


def test_right_or_wrong_scores_are_left_to_flips() -> None:
    right = np.array([True, False, True])
    pairs = pairs_of(Arrays(right.astype(float), 1.0 - right, right, right, ~right))

    assert continuous(pairs) == []


def test_partial_credit_beside_right_or_wrong_is_measured() -> None:
    right = np.array([True, False, True])
    pairs = pairs_of(Arrays(np.array([1.0, 0.2, 1.0]), np.array([1.0, 0.4, 1.0]), right, right, right))

    assert {rate.name: rate.value for rate in continuous(pairs, draws=20)}["pfr_score"] == pytest.approx(1 / 3)


def test_only_right_or_wrong_scores_without_a_judgement_are_still_measured() -> None:
    # A judge that happened to give 0 or 1 only.
    assert values_of([(1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (1.0, 0.0)])["nfr_score"] == 0.5


def test_a_magnitude_seen_in_few_draws_only_has_no_interval() -> None:
    # One gain in 40: about 36% of the draws hold none of it, where M_g is undefined.
    rates = rates_of([(0.2, 0.6)] + [(0.5, 0.5)] * 39, draws=500)

    assert rates["m_g"].value == pytest.approx(0.4)
    assert (rates["m_g"].low, rates["m_g"].high) == (None, None)


def test_no_loss_seen_does_not_mean_no_loss_possible() -> None:
    rate = rates_of([(0.2, 0.3)] * 20)["nfr_score"]

    assert (rate.value, rate.low) == (0.0, 0.0)
    assert rate.high == stats.proportion_interval(0, 20, method=SHARES).high


def test_one_instance_alone_has_no_interval_of_means() -> None:
    rates = rates_of([(0.2, 0.3)])

    assert rates["mean_difference"].value == pytest.approx(0.1)
    assert rates["mean_difference"].low is None
    assert rates["nfr_score"].high is not None


def test_the_interval_matches_the_normal_one_on_many_instances() -> None:
    generator = np.random.default_rng(5)
    old = generator.uniform(0.2, 0.6, size=400)
    new = old + generator.normal(0.05, 0.1, size=400)
    rate = rates_of(list(zip(old, new, strict=True)), draws=2000)["mean_difference"]
    half = 1.96 * np.std(new - old) / np.sqrt(400)

    assert rate.low == pytest.approx(np.mean(new - old) - half, abs=0.0015)
    assert rate.high == pytest.approx(np.mean(new - old) + half, abs=0.0015)


def test_the_seed_fixes_the_intervals() -> None:
    pairs = scored([(0.1, 0.4), (0.5, 0.2), (0.9, 0.3), (0.4, 0.6), (0.15, 0.22), (0.33, 0.31)])

    assert continuous(pairs, seed=1) == continuous(pairs, seed=1)
    assert continuous(pairs, seed=1) != continuous(pairs, seed=2)


def test_partial_credit_that_never_changes_says_nothing_new_but_a_noise_floor_shows_its_zeros() -> None:
    def pairs(old: list[float], new: list[float]) -> Pairs:
        scores = np.array(old), np.array(new)
        right = [values == 1.0 for values in scores]
        return pairs_of(Arrays(*scores, scores[0] == scores[1], *right))

    assert continuous(pairs([1.0, 0.0, 0.5], [0.0, 1.0, 0.5])) == []
    assert continuous(pairs([1.0, 0.0, 0.5], [0.0, 1.0, 0.0])) != []
    floor = {rate.name: rate.value for rate in continuous(pairs([1.0, 0.5], [1.0, 0.5]))}
    assert (floor["nfr_score"], floor["pfr_score"], floor["m_r"]) == (0.0, 0.0, None)


def skewed(n: int, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scores of which a third tie, and whose gains are more and larger than the losses."""
    generator = np.random.default_rng(seed)
    old = generator.beta(2, 5, size=n)
    change = generator.choice([0, 1, -1], n, p=[0.35, 0.4, 0.25]) * generator.beta(1, 6, size=n)
    return old, np.clip(old + change, 0, 1)


def test_closed_forms_beyond_many_instances_agree_with_the_bootstrap(monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = skewed(4000)
    pairs = pairs_of(Arrays(old, new, old == new))
    resampled = {rate.name: rate for rate in continuous(pairs, draws=3000)}
    monkeypatch.setattr(intervals, "MANY", 1000)
    closed = {rate.name: rate for rate in continuous(pairs)}

    assert closed.keys() == resampled.keys()
    for name, rate in closed.items():
        other = resampled[name]
        assert rate.value == other.value
        assert rate.low is not None
        assert rate.high is not None
        # Within a tenth of the width: what 3,000 draws can tell.
        width = rate.high - rate.low
        assert rate.low == pytest.approx(other.low, abs=0.1 * width)
        assert rate.high == pytest.approx(other.high, abs=0.1 * width)


def test_beyond_many_instances_nothing_is_read_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = skewed(50)

    def refuse() -> Arrays:
        raise AssertionError("the instances were read")

    pairs = replace(pairs_of(Arrays(old, new, old == new)), read=refuse)
    monkeypatch.setattr(intervals, "MANY", 49)

    assert continuous(pairs)[0].low is not None


def test_a_single_gain_among_many_instances_has_no_interval_of_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "MANY", 10)
    rates = rates_of([(0.2, 0.6)] + [(0.5, 0.5)] * 39)

    assert (rates["m_g"].value, rates["m_g"].low) == (pytest.approx(0.4), None)
    assert (rates["m_r"].value, rates["m_r"].low) == (None, None)


def test_clusters_of_one_instance_give_the_closed_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = skewed(500)
    arrays = Arrays(old, new, old == new)
    by_cluster = continuous(pairs_of(arrays, clusters=np.arange(500)))
    monkeypatch.setattr(intervals, "MANY", 100)

    for rate, other in zip(by_cluster, continuous(pairs_of(arrays)), strict=True):
        assert (rate.name, rate.value) == (other.name, other.value)
        assert rate.low == pytest.approx(other.low, abs=1e-3)
        assert rate.high == pytest.approx(other.high, abs=1e-3)


def test_intervals_widen_with_the_root_of_the_cluster_size() -> None:
    old, new = (np.repeat(values, 9) for values in skewed(300))
    arrays = Arrays(old, new, old == new)
    alone = continuous(pairs_of(arrays), draws=2000)
    by_cluster = continuous(pairs_of(arrays, clusters=np.repeat(np.arange(300), 9)))

    for narrow, wide in zip(alone, by_cluster, strict=True):
        assert wide.value == narrow.value
        assert narrow.low is not None
        assert narrow.high is not None
        assert wide.low is not None
        assert wide.high is not None
        assert (wide.high - wide.low) / (narrow.high - narrow.low) == pytest.approx(3, rel=0.12)
