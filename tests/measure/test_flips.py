from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from uphold.core import stats
from uphold.measure.flips import FlipMatrix, flip_matrix, flips
from uphold.measure.intervals import SHARES
from uphold.measure.pairs import Arrays, Pairs, pairs_of
from uphold.measure.rates import Rate

quick = settings(max_examples=50, deadline=None, database=None)

Answer = tuple[int, int, int]  # gold, what the old model says, what the new model says


def answers(options: int, smallest: int = 1) -> st.SearchStrategy[list[Answer]]:
    option = st.integers(0, options - 1)
    return st.lists(st.tuples(option, option, option), min_size=smallest, max_size=40)


def answered(rows: list[Answer]) -> Pairs:
    gold, old, new = (np.array(column) for column in zip(*rows, strict=True))
    return judged_pairs(old == gold, new == gold, old == new)


def judged_pairs(old: NDArray[np.bool_], new: NDArray[np.bool_], same: NDArray[np.bool_], **more: Any) -> Pairs:
    return pairs_of(Arrays(old.astype(float), new.astype(float), same, old, new), **more)


def pairs_of_counts(both_right: int, negative: int, positive: int, both_wrong: int, moved: int = 0) -> Pairs:
    """Pairs with these counts; `moved` of the instances wrong in both have another wrong answer."""
    rows: list[Answer] = [(0, 0, 0)] * both_right + [(0, 0, 1)] * negative + [(0, 1, 0)] * positive
    return answered(rows + [(0, 1, 2)] * moved + [(0, 1, 1)] * (both_wrong - moved))


def rates_of(pairs: Pairs) -> dict[str, Rate]:
    return {rate.name: rate for rate in flips(pairs, draws=40)}


def values_of(pairs: Pairs) -> dict[str, float]:
    return {name: float("nan") if rate.value is None else rate.value for name, rate in rates_of(pairs).items()}


def test_every_rate_of_a_case_counted_by_hand() -> None:
    # 10 instances: 4 stay right, 2 break, 1 is mended, 3 stay wrong (2 of those with another wrong answer).
    rates = values_of(pairs_of_counts(4, 2, 1, 3, moved=2))

    assert rates == pytest.approx(
        {
            "accuracy_old": 0.6,
            "accuracy_new": 0.5,
            "gain": -0.1,
            "nfr": 0.2,
            "pfr": 0.1,
            "nfr_mc": 0.4,
            "correct_but_changed": 0.0,
            "flips": 0.3,
            "btc": 4 / 6,
            "bec": 3 / 4,
            "nfi": 0.4,
            "relative_nfr": 0.2 / (0.6 * 0.5),
        }
    )


def test_two_right_answers_that_differ_are_correct_but_changed() -> None:
    right = np.array([True, True, True, False])
    pairs = judged_pairs(right, right, np.array([True, False, False, False]))

    rates = values_of(pairs)

    assert rates["correct_but_changed"] == 0.5
    assert rates["nfr_mc"] == 0.25
    assert rates["nfr"] == rates["pfr"] == 0.0


@quick
@given(answers(4))
def test_accuracy_moves_by_positive_minus_negative_flips(rows: list[Answer]) -> None:
    rates = values_of(answered(rows))

    assert rates["accuracy_new"] - rates["accuracy_old"] == pytest.approx(rates["pfr"] - rates["nfr"], abs=1e-12)
    assert rates["gain"] == pytest.approx(rates["pfr"] - rates["nfr"], abs=1e-12)
    assert rates["flips"] == pytest.approx(rates["pfr"] + rates["nfr"], abs=1e-12)


@quick
@given(answers(4))
def test_negative_flips_stay_within_their_bounds(rows: list[Answer]) -> None:
    rates = values_of(answered(rows))
    error_new = 1 - rates["accuracy_new"]

    assert rates["nfr"] <= min(rates["accuracy_old"], error_new) + 1e-12
    assert rates["nfr"] <= rates["nfr_mc"] + 1e-12
    assert rates["nfr_mc"] <= error_new + 1e-12


@quick
@given(answers(2))
def test_with_two_options_inconsistency_flips_are_negative_flips(rows: list[Answer]) -> None:
    rates = values_of(answered(rows))

    assert rates["nfr_mc"] == pytest.approx(rates["nfr"], abs=1e-12)
    assert rates["correct_but_changed"] == 0.0


@quick
@given(answers(3))
def test_ratios_follow_from_rate_and_accuracy(rows: list[Answer]) -> None:
    rates = values_of(answered(rows))
    old, error_new = rates["accuracy_old"], 1 - rates["accuracy_new"]

    if old > 0:
        assert rates["btc"] == pytest.approx(1 - rates["nfr"] / old)
    if old < 1:
        assert rates["bec"] == pytest.approx(1 - rates["pfr"] / (1 - old))
    if error_new > 1e-9:
        assert rates["nfi"] == pytest.approx(rates["nfr"] / error_new)
    if old > 0 and error_new > 1e-9:
        assert rates["relative_nfr"] == pytest.approx(rates["nfr"] / (old * error_new))


@quick
@given(answers(3))
def test_swapping_old_and_new_swaps_the_two_kinds_of_flip(rows: list[Answer]) -> None:
    there = values_of(answered(rows))
    back = values_of(answered([(gold, new, old) for gold, old, new in rows]))

    assert (back["nfr"], back["pfr"]) == (there["pfr"], there["nfr"])
    assert (back["accuracy_old"], back["accuracy_new"]) == (there["accuracy_new"], there["accuracy_old"])
    assert back["gain"] == pytest.approx(-there["gain"], abs=1e-12)
    assert back["correct_but_changed"] == there["correct_but_changed"]


@quick
@given(answers(3), st.randoms(use_true_random=False))
def test_the_order_of_the_instances_changes_no_value_and_no_interval(
    rows: list[Answer], random_source: random.Random
) -> None:
    mixed = list(rows)
    random_source.shuffle(mixed)

    assert flips(answered(mixed), draws=40) == flips(answered(rows), draws=40)


@quick
@given(answers(3))
def test_equal_answers_never_flip(rows: list[Answer]) -> None:
    rates = values_of(answered([(gold, old, old) for gold, old, _ in rows]))

    assert [rates[name] for name in ("nfr", "pfr", "nfr_mc", "flips", "correct_but_changed", "gain")] == [0.0] * 6


@quick
@given(answers(3))
def test_intervals_are_ordered_and_stay_in_range(rows: list[Answer]) -> None:
    for rate in flips(answered(rows), draws=200):
        if rate.low is not None and rate.high is not None:
            lowest, highest = (-1, 1) if rate.name == "gain" else (0, float("inf") if rate.unit == "ratio" else 1)
            assert lowest <= rate.low <= rate.high <= highest


def test_independent_errors_have_relative_nfr_one() -> None:
    # accuracies 0.6 and 0.5: 100 * 0.6 * 0.5 = 30 negative flips if errors are independent
    assert values_of(pairs_of_counts(30, 30, 20, 20))["relative_nfr"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("counts", "undefined"),
    [
        pytest.param((3, 2, 0, 0), {"bec"}, id="old always right"),
        pytest.param((3, 0, 2, 0), {"nfi", "relative_nfr"}, id="new always right"),
        pytest.param((0, 0, 2, 3), {"btc", "relative_nfr"}, id="old never right"),
        pytest.param((5, 0, 0, 0), {"bec", "nfi", "relative_nfr"}, id="both always right"),
        pytest.param((0, 0, 0, 5), {"btc", "relative_nfr"}, id="both never right"),
        pytest.param((2, 1, 1, 2), set(), id="some of each"),
    ],
)
def test_a_rate_over_nothing_is_undefined(counts: tuple[int, int, int, int], undefined: set[str]) -> None:
    rates = rates_of(pairs_of_counts(*counts))

    assert {name for name, rate in rates.items() if rate.value is None} == undefined
    for name in undefined:
        assert (rates[name].low, rates[name].high) == (None, None)
        assert str(rates[name]).endswith("undefined")


def test_intervals_of_shares_are_binomial_over_their_denominator() -> None:
    # 40 stay right, 9 break, 12 are mended, 39 stay wrong.
    rates = rates_of(pairs_of_counts(40, 9, 12, 39))

    for name, successes, trials in (
        ("nfr", 9, 100),
        ("flips", 21, 100),
        ("btc", 40, 49),
        ("bec", 39, 51),
        ("nfi", 9, 48),
    ):
        expected = stats.proportion_interval(successes, trials, method=SHARES)
        assert (rates[name].low, rates[name].high) == expected


def test_the_interval_of_the_gain_is_that_of_paired_shares() -> None:
    rate = rates_of(pairs_of_counts(40, 9, 12, 39))["gain"]

    assert (rate.low, rate.high) == stats.paired_difference_interval(40, 9, 12, 39)


def test_no_flip_seen_does_not_mean_no_flip_possible() -> None:
    rates = rates_of(pairs_of_counts(60, 0, 0, 40))

    for name, successes, trials in (("nfr", 0, 100), ("btc", 60, 60), ("bec", 40, 40), ("nfi", 0, 40)):
        rate = rates[name]
        assert rate.low is not None
        assert rate.high is not None
        assert rate.low < rate.high
        assert (rate.low, rate.high) == stats.proportion_interval(successes, trials, method=SHARES)
    # The NFR's upper end over accuracy(old) 0.6 times error(new) 0.4.
    relative, nfr = rates["relative_nfr"], rates["nfr"]
    assert nfr.high is not None
    assert (relative.value, relative.low) == (0.0, 0.0)
    assert relative.high == pytest.approx(nfr.high / 0.24)


def test_the_interval_of_the_relative_nfr_is_near_that_of_its_logarithm() -> None:
    # Large sample: var(log x) by the delta method over the four shares.
    a, c, b, d = 4000, 900, 1200, 3900
    n = a + b + c + d
    rate = {rate.name: rate for rate in flips(pairs_of_counts(a, c, b, d))}["relative_nfr"]
    shares = np.array([a, c, b, d]) / n
    old, wrong = shares[0] + shares[1], shares[1] + shares[3]
    slope = np.array([-1 / old, 1 / shares[1] - 1 / old - 1 / wrong, 0, -1 / wrong])
    error = np.sqrt((shares @ slope**2 - (shares @ slope) ** 2) / n)

    assert rate.value is not None
    assert rate.low == pytest.approx(rate.value * np.exp(-1.96 * error), abs=4e-3)
    assert rate.high == pytest.approx(rate.value * np.exp(1.96 * error), abs=4e-3)


# ---- clusters ----


def clustered(size: int, clusters: int, seed: int = 0, together: float = 1.0) -> tuple[Pairs, NDArray[np.int64]]:
    """Pairs in clusters whose instances share their outcome with the probability `together`."""
    generator = np.random.default_rng(seed)
    outcome = np.repeat(generator.choice(4, clusters, p=[0.3, 0.1, 0.2, 0.4]), size)
    own = generator.choice(4, size * clusters, p=[0.3, 0.1, 0.2, 0.4])
    outcome = np.where(generator.uniform(size=size * clusters) < together, outcome, own)
    old, new = outcome >= 2, outcome % 2 == 1
    numbers = np.repeat(np.arange(clusters), size)
    return judged_pairs(old, new, old == new, clusters=numbers), numbers


def test_clusters_of_one_instance_change_next_to_nothing() -> None:
    plain = rates_of(replace(clustered(1, 400)[0], cluster_cells=None, cluster_sums=None))
    by_cluster = rates_of(clustered(1, 400)[0])

    for name, rate in plain.items():
        assert by_cluster[name].value == rate.value
        tolerance = 0.05 if name == "relative_nfr" else 2e-3
        assert by_cluster[name].low == pytest.approx(rate.low, abs=tolerance)
        assert by_cluster[name].high == pytest.approx(rate.high, abs=tolerance)


def test_intervals_widen_with_the_root_of_the_cluster_size() -> None:
    # Nine instances that always agree know as much as one.
    pairs, _ = clustered(9, 100)
    alone = rates_of(replace(pairs, cluster_cells=None, cluster_sums=None))

    for name, rate in rates_of(pairs).items():
        narrow = alone[name]
        assert rate.value == narrow.value
        if rate.value in (0.0, 1.0):
            continue
        assert rate.high is not None
        assert rate.low is not None
        assert narrow.high is not None
        assert narrow.low is not None
        assert (rate.high - rate.low) / (narrow.high - narrow.low) == pytest.approx(3, rel=0.15)


def test_without_a_flip_a_cluster_counts_as_one_instance() -> None:
    right = np.repeat([True, False], 50)
    rates = rates_of(judged_pairs(right, right, right == right, clusters=np.arange(100) // 5))

    assert (rates["nfr"].low, rates["nfr"].high) == pytest.approx(stats.proportion_interval(0, 20, method=SHARES))
    assert (rates["gain"].low, rates["gain"].high) == stats.paired_difference_interval(0, 0, 0, 20)
    assert rates["relative_nfr"].high == pytest.approx((rates["nfr"].high or 0) / 0.25)


def test_a_share_over_one_cluster_only_has_no_interval() -> None:
    old = np.array([True, True, False, False, False, False])
    rates = rates_of(judged_pairs(old, ~old, old != old, clusters=np.array([0, 0, 1, 1, 2, 2])))

    assert (rates["btc"].value, rates["btc"].low, rates["btc"].high) == (0.0, None, None)
    assert rates["bec"].low is not None


def test_the_seed_fixes_the_intervals() -> None:
    pairs = pairs_of_counts(40, 9, 12, 39)

    assert flips(pairs, seed=3) == flips(pairs, seed=3)
    assert flips(pairs, seed=3) != flips(pairs, seed=4)


def test_a_lower_level_gives_a_narrower_interval() -> None:
    pairs = pairs_of_counts(40, 9, 12, 39)
    wide = {rate.name: rate for rate in flips(pairs, level=0.99)}["nfr"]
    narrow = {rate.name: rate for rate in flips(pairs, level=0.5)}["nfr"]

    assert wide.low is not None
    assert narrow.low is not None
    assert wide.high is not None
    assert narrow.high is not None
    assert wide.low < narrow.low < 0.09 < narrow.high < wide.high


def test_the_matrix_counts_the_four_outcomes() -> None:
    matrix = flip_matrix(pairs_of_counts(4, 2, 1, 3, moved=2))

    assert matrix == FlipMatrix(both_right=4, negative_flips=2, positive_flips=1, both_wrong=3)
    assert matrix is not None
    assert matrix.total == 10


def test_cells_are_old_right_new_right_same_answer() -> None:
    cells = pairs_of_counts(4, 2, 1, 3, moved=2).cells

    assert cells is not None
    assert cells.tolist() == [2, 1, 1, 0, 2, 0, 0, 4]


def test_continuous_scores_have_no_flip_matrix() -> None:
    scores = np.array([0.2, 0.7])
    pairs = pairs_of(Arrays(scores, scores, scores == scores))

    assert flips(pairs) == []
    assert flip_matrix(pairs) is None


# ---- the numbers that MUSCLE published (per 10,000 instances, so that two decimals of a per cent are counts) ----

# task, pair: old, new, after the repair, NFR, change of NFR, that change in % of the NFR
PUBLISHED_ACCURACY = [
    ("HellaSwag Llama", 7274, 7291, 7953, 1027, -417, -40.60),
    ("HellaSwag Phi 1.5->2", 6976, 7802, 7786, 309, +24, +7.77),
    ("HellaSwag Phi 1->1.5", 3238, 6976, 6986, 247, -13, -5.26),
    ("HellaSwag Vicuna", 7219, 7154, 7810, 1048, -406, -38.74),
    ("PIQA Llama", 7486, 7476, 7927, 1159, -397, -34.25),
    ("PIQA Phi 1.5->2", 7465, 7878, 7894, 620, -11, -1.77),
    ("PIQA Phi 1->1.5", 5903, 7465, 7470, 778, -5, -0.64),
    ("PIQA Vicuna", 7470, 7552, 7889, 990, -288, -29.09),
    ("GSM8K Llama", 2445, 3309, 3666, 849, -91, -10.72),
    ("GSM8K Phi 1.5->2", 3002, 4818, 5068, 588, -171, -29.08),
    ("GSM8K Phi 1->1.5", 341, 3002, 2699, 201, -4, -1.99),
    ("GSM8K Vicuna", 2672, 2991, 3184, 1160, -99, -8.53),
]
# PFR before and after, from PFR = accuracy(new) - accuracy(old) + NFR
PUBLISHED_PFR = {
    "HellaSwag Llama": (0.1044, 0.1289),
    "HellaSwag Phi 1.5->2": (0.1135, 0.1143),
    "HellaSwag Phi 1->1.5": (0.3985, 0.3982),
    "HellaSwag Vicuna": (0.0983, 0.1233),
    "PIQA Llama": (0.1149, 0.1203),
    "PIQA Phi 1.5->2": (0.1033, 0.1038),
    "PIQA Phi 1->1.5": (0.2340, 0.2340),
    "PIQA Vicuna": (0.1072, 0.1121),
    "GSM8K Llama": (0.1713, 0.1979),
    "GSM8K Phi 1.5->2": (0.2404, 0.2483),
    "GSM8K Phi 1->1.5": (0.2862, 0.2555),
    "GSM8K Vicuna": (0.1479, 0.1573),
}
# SAMSum is scored by ROUGE-1: pair, NFR, change of NFR, that change in %
PUBLISHED_ROUGE = [
    ("Llama", 4896, -781, -15.95),
    ("Phi 1.5->2", 5470, -1502, -27.46),
    ("Phi 1->1.5", 3260, -574, -17.61),
    ("Vicuna", 4969, -1098, -22.10),
]
# Masks on PIQA Llama: change of NFR, in %, change of PFR, change of accuracy
PUBLISHED_MASKS = [
    ("student wrong", -397, -34.25, +54, +451),
    ("old right", -229, -19.76, -60, +168),
    ("KL to old", -299, -25.80, -82, +217),
    ("CE and default", -310, -26.75, +38, +348),
    ("CE and token likelihood", -212, -18.29, -49, +163),
    ("CE and sequence likelihood", -196, -16.91, +5, +201),
]


def published(old: int, new: int, nfr: int) -> dict[str, float]:
    """Our rates on 10,000 instances with these accuracies and this NFR."""
    negative, positive = nfr, new - old + nfr
    return values_of(pairs_of_counts(old - negative, negative, positive, 10_000 - old - positive))


def percentage_is_consistent(nfr: int, change: int, percentage: float) -> bool:
    """Whether `percentage` is change / nfr for some true values that round to the printed ones."""
    slack = 100 * (0.5 / nfr) * (1 + abs(change) / nfr) + 0.005
    return abs(100 * change / nfr - percentage) <= slack


@pytest.mark.parametrize("row", PUBLISHED_ACCURACY, ids=lambda row: row[0])
def test_published_rows_satisfy_the_identities(row: tuple[str, int, int, int, int, int, float]) -> None:
    name, old, new, repaired, nfr, change, percentage = row
    before, after = published(old, new, nfr), published(old, repaired, nfr + change)

    assert (before["accuracy_old"], before["accuracy_new"]) == pytest.approx((old / 1e4, new / 1e4))
    assert after["accuracy_new"] == pytest.approx(repaired / 1e4)
    assert (before["pfr"], after["pfr"]) == pytest.approx(PUBLISHED_PFR[name])
    assert before["nfr"] == pytest.approx(nfr / 1e4)
    relative = 100 * (after["nfr"] - before["nfr"]) / before["nfr"]
    assert relative == pytest.approx(100 * change / nfr)
    assert percentage_is_consistent(nfr, change, percentage)


@pytest.mark.parametrize(("pair", "nfr", "change", "percentage"), PUBLISHED_ROUGE)
def test_published_rouge_rows_agree_with_their_percentage(pair: str, nfr: int, change: int, percentage: float) -> None:
    assert percentage_is_consistent(nfr, change, percentage)
    assert not percentage_is_consistent(nfr, change, percentage + 1)


@pytest.mark.parametrize(("mask", "nfr_change", "percentage", "pfr_change", "accuracy_change"), PUBLISHED_MASKS)
def test_published_masks_change_accuracy_by_their_flips(
    mask: str, nfr_change: int, percentage: float, pfr_change: int, accuracy_change: int
) -> None:
    # PIQA Llama before the repair: accuracies 74.86 and 74.76, NFR 11.59, so PFR 11.49.
    negative, positive = 1159 + nfr_change, 1149 + pfr_change
    after = values_of(pairs_of_counts(7486 - negative, negative, positive, 10_000 - 7486 - positive))

    assert 1e4 * after["accuracy_new"] - 7476 == pytest.approx(accuracy_change, abs=1.5)
    assert 1e4 * after["nfr"] - 1159 == pytest.approx(nfr_change)
    assert percentage_is_consistent(1159, nfr_change, percentage)


def test_the_published_headline_is_half_an_accuracy_gain() -> None:
    before, after = published(7274, 7291, 1027), published(7274, 7953, 610)

    assert (before["pfr"], after["nfr"], after["pfr"]) == pytest.approx((0.1044, 0.0610, 0.1289))
    assert (before["nfi"], after["nfi"]) == pytest.approx((0.379, 0.298), abs=5e-4)
    assert (before["relative_nfr"], after["relative_nfr"]) == pytest.approx((0.52, 0.41), abs=5e-3)
    assert after["relative_nfr"] / before["relative_nfr"] - 1 == pytest.approx(-0.21, abs=5e-3)
