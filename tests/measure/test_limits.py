from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from uphold.core import stats
from uphold.measure import limits
from uphold.measure.limits import ClusterSums, Evidence, ScoreSums


def sums_of(differences: list[float]) -> ScoreSums:
    d = np.array(differences)
    return ScoreSums(len(d), float(d.sum()), float((d * d).sum()), int((d < -1e-9).sum()), int((d > 1e-9).sum()))


def clusters(negative: list[int], positive: list[int], sizes: list[int]) -> ClusterSums:
    a, b = np.array(negative), np.array(positive)
    return ClusterSums(np.array(sizes), a, b, a, (b - a).astype(float), (a + b).astype(float))


def test_a_share_passes_fails_or_neither() -> None:
    # Without a flip the upper bound is 1 - 0.05^(1/n): 149 instances are the first to show 2%.
    assert limits.check_share(0, 149, 0.02, 0.05).kept
    assert not limits.check_share(0, 148, 0.02, 0.05).kept
    few = limits.check_share(0, 148, 0.02, 0.05)
    assert few.high == pytest.approx(1 - 0.05 ** (1 / 148), abs=1e-12)
    assert (few.value, few.low, few.p_broken) == (0, 0, 1)
    many = limits.check_share(12, 200, 0.02, 0.05)
    assert many.p_broken == pytest.approx(scipy.stats.binom.sf(11, 200, 0.02), rel=1e-9)
    assert many.low > 0.02
    assert limits.settle([few, many], 0.05) == ["inconclusive", "fail"]


@pytest.mark.parametrize(("count", "limit"), [(20, 0.05), (50, 0.02), (100, 0.1), (400, 0.01)])
def test_a_share_at_its_limit_errs_at_most_as_often_as_alpha(count: int, limit: float) -> None:
    found = [limits.check_share(events, count, limit, 0.05) for events in range(count + 1)]
    chance = scipy.stats.binom.pmf(range(count + 1), count, limit)
    passes = sum(p for p, one in zip(chance, found, strict=True) if one.kept)
    fails = sum(p for p, one in zip(chance, found, strict=True) if one.p_broken <= 0.05)
    assert passes <= 0.05
    assert fails <= 0.05


@given(st.integers(1, 300), st.data(), st.floats(0.005, 0.5), st.floats(0.005, 0.4))
def test_bounds_and_p_value_of_a_share_agree(count: int, data: st.DataObject, limit: float, alpha: float) -> None:
    one = limits.check_share(data.draw(st.integers(0, count)), count, limit, alpha)
    assert one.low <= one.value <= one.high
    assert one.kept == (one.high <= limit)
    if abs(one.low - limit) > 1e-9:
        assert (one.p_broken <= alpha) == (one.low > limit)
    assert not (one.kept and one.p_broken <= alpha)


@given(st.integers(0, 200), st.integers(0, 200), st.floats(0.005, 0.5))
def test_more_flips_never_help(flips: int, more: int, limit: float) -> None:
    few, many = (limits.check_share(min(200, events), 200, limit, 0.05) for events in (flips, flips + more))
    assert few.kept >= many.kept
    assert few.p_broken >= many.p_broken


def test_accuracy_is_the_exact_test_both_ways() -> None:
    one = limits.check_accuracy(700, 30, 40, 230, 0.02, 0.05)
    test = stats.non_inferiority_paired(700, 30, 40, 230, 0.02)
    assert (one.value, one.low, one.high) == (0.01, test.low, test.high)
    assert one.kept is test.holds is True
    worse = limits.check_accuracy(600, 100, 20, 280, 0.02, 0.05)
    assert worse.value == -0.08
    assert worse.high < -0.02
    assert worse.p_broken < 2e-4
    assert limits.settle([one, worse], 0.05) == ["pass", "fail"]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 60), st.integers(0, 12), st.integers(0, 12), st.integers(1, 60), st.floats(0, 0.3))
def test_accuracy_never_both_passes_and_fails(a: int, b: int, c: int, d: int, margin: float) -> None:
    one = limits.check_accuracy(a, b, c, d, margin, 0.05)
    assert one.low <= one.value <= one.high
    assert not (one.kept and one.p_broken <= 0.05)


def test_mean_score_is_the_t_test_with_one_more_instance() -> None:
    d = np.random.default_rng(1).normal(-0.03, 0.1, 200).tolist()
    one = limits.check_mean_score(sums_of(d), 0.02, 0.05)
    quantile = scipy.stats.t.ppf(0.95, 199)
    worst, best = np.array([*d, -1.0]), np.array([*d, 1.0])
    assert one.value == pytest.approx(np.mean(d), abs=1e-12)
    assert one.low == pytest.approx(worst.mean() - quantile * scipy.stats.sem(worst), abs=1e-9)
    assert one.high == pytest.approx(best.mean() + quantile * scipy.stats.sem(best), abs=1e-9)
    t = (best.mean() + 0.02) / scipy.stats.sem(best)
    assert one.p_broken == pytest.approx(scipy.stats.t.cdf(t, 199), abs=1e-9)
    assert one.limit == -0.02
    plain = scipy.stats.ttest_1samp(d, 0).confidence_interval(0.90)
    assert one.low < plain.low < plain.high < one.high


@pytest.mark.parametrize(("count", "rate"), [(300, 0.01), (1000, 0.01), (1000, 0.05)])
def test_rare_large_falls_seldom_pass(count: int, rate: float) -> None:
    generator = np.random.default_rng(11)
    passes = 0
    for _ in range(400):
        changes = np.where(generator.random(count) < rate, -1.0, generator.normal(0, 0.01, count))
        passes += limits.check_mean_score(sums_of(changes.tolist()), rate, 0.05).kept
    # 20 expected at most, 4.4 standard error; a plain t test passes 80 of the first.
    assert passes <= 36


def test_few_changed_scores_get_exact_bounds() -> None:
    one = limits.check_mean_score(sums_of([-1.0] * 3 + [0.5] * 2 + [0.0] * 995), 0.01, 0.05)
    assert one.value == pytest.approx(-0.002)
    assert one.low == -stats.proportion_upper_bound(3, 1000, 0.95)
    assert one.high == stats.proportion_upper_bound(2, 1000, 0.95)
    assert one.kept
    assert one.p_broken == 1
    unchanged = limits.check_mean_score(sums_of([0.0] * 50), 0.01, 0.05)
    assert not unchanged.kept
    assert limits.settle([unchanged], 0.05) == ["inconclusive"]


def test_scores_that_all_change_alike() -> None:
    one = limits.check_mean_score(sums_of([-0.25] * 64), 0.1, 0.05)
    assert one.low < one.value == -0.25 < one.high < -0.1
    assert limits.settle([one], 0.05) == ["fail"]
    best = limits.check_mean_score(sums_of([1.0] * 64), 0.0, 0.05)
    assert best.kept
    assert best.p_broken == 1
    worst = limits.check_mean_score(sums_of([-1.0] * 64), 0.1, 0.05)
    assert worst.low == -1
    assert limits.settle([worst], 0.05) == ["fail"]


def test_settle_corrects_failures_but_not_passes() -> None:
    def evidence(p: float, kept: bool = False) -> Evidence:
        return Evidence(0.1, 0.05, 0.2, 0.04, kept, p, 100, 100)

    assert limits.settle([evidence(0.03)], 0.05) == ["fail"]
    # Holm: 0.01 * 4, 0.02 * 3 = 0.06, then nothing more is rejected.
    found = [evidence(0.02), evidence(0.01), evidence(0.03), evidence(1, kept=True)]
    assert limits.settle(found, 0.05) == ["inconclusive", "fail", "inconclusive", "pass"]
    assert limits.settle([], 0.05) == []


def test_a_policy_of_several_slices_errs_at_most_as_often_as_alpha() -> None:
    # Four slices and their whole, all exactly at their limits: the worst case for failures. Then one slice is broken.
    generator = np.random.default_rng(7)
    any_fails = passes = 0
    for _ in range(1000):
        flips = generator.binomial(200, 0.04, 4)
        parts = [limits.check_share(int(own), 200, 0.04, 0.05) for own in flips]
        whole = limits.check_share(int(flips.sum()), 800, 0.04, 0.05)
        any_fails += "fail" in limits.settle([*parts, whole], 0.05)
        flips = np.append(generator.binomial(200, 0.001, 3), generator.binomial(200, 0.04))
        broken = [limits.check_share(int(own), 200, 0.0399999, 0.05) for own in flips]
        passes += set(limits.settle(broken, 0.05)) == {"pass"}
    # 50 expected at most, 6.9 standard error.
    assert any_fails <= 65
    assert passes <= 65


def test_clusters_of_one_instance_count_as_instances() -> None:
    events = np.array([1] * 20 + [0] * 380)
    plain = limits.check_share(20, 400, 0.1, 0.05)
    one = limits.check_clustered_share(events, np.ones(400, int), 0.1, 0.05)
    assert (one.value, one.count, one.independent) == (plain.value, 400, 400)
    assert (one.low, one.high, one.p_broken) == pytest.approx((plain.low, plain.high, plain.p_broken), abs=1e-12)


def test_clusters_that_flip_as_a_whole_count_as_one_each() -> None:
    events = np.array([10] * 20 + [0] * 80)
    one = limits.check_clustered_share(events, np.full(100, 10), 0.3, 0.05)
    assert 80 < one.independent < 100
    assert one.high > limits.check_share(200, 1000, 0.3, 0.05).high + 0.03


def test_without_an_event_clusters_count_as_one_each() -> None:
    one = limits.check_clustered_share(np.zeros(149, int), np.full(149, 20), 0.02, 0.05)
    assert one.independent == 149
    assert one.kept
    assert not limits.check_clustered_share(np.zeros(148, int), np.full(148, 20), 0.02, 0.05).kept


def test_clustered_accuracy_of_single_instances_is_the_exact_test() -> None:
    negative, positive = [1] * 30 + [0] * 970, [0] * 30 + [1] * 40 + [0] * 930
    plain = limits.check_accuracy(700, 30, 40, 230, 0.02, 0.05)
    one = limits.check_clustered_accuracy(clusters(negative, positive, [1] * 1000), 0.02, 0.05)
    assert one == plain


def test_clustered_scores_are_the_sandwich_with_one_more_cluster() -> None:
    generator = np.random.default_rng(3)
    sizes = generator.integers(2, 9, 60)
    parts = [generator.normal(generator.normal(-0.02, 0.05), 0.1, size) for size in sizes]
    totals, squares = (np.array([float((part**power).sum()) for part in parts]) for power in (1, 2))
    falls, rises = (np.array([int((sign * part > 0).sum()) for part in parts]) for sign in (-1, 1))
    sums = ClusterSums(sizes, falls, rises, falls * 0, totals, squares)
    one = limits.check_clustered_mean(sums, 0.05, 0.05)
    plain, count = stats.clustered_mean(totals, sizes, 0.90), sizes.sum()
    alike = plain.standard_error**2 * count / (squares.sum() / count - plain.value**2)
    worst, best = (
        stats.clustered_mean(np.append(totals, side * alike), np.append(sizes, alike), 0.90) for side in (-1, 1)
    )
    quantile = scipy.stats.t.ppf(0.95, 59)
    assert one.value == pytest.approx(totals.sum() / sizes.sum(), abs=1e-12)
    assert one.low == pytest.approx(worst.value - quantile * worst.standard_error, abs=1e-9)
    assert one.high == pytest.approx(best.value + quantile * best.standard_error, abs=1e-9)
    assert one.independent == pytest.approx(count / alike)
    assert one.low < plain.low < plain.high < one.high
    few = limits.check_clustered_mean(clusters([1] * 3 + [0] * 57, [0] * 60, [5] * 60), 0.05, 0.05)
    assert few.low == -limits.check_clustered_share(np.array([1] * 3 + [0] * 57), np.full(60, 5), 1.0, 0.05).high


def test_a_broken_limit_on_clusters_seldom_passes() -> None:
    generator = np.random.default_rng(5)
    passes = fails = 0
    for _ in range(300):
        sizes = generator.integers(5, 15, 100)
        events = generator.binomial(sizes, generator.beta(0.05 * 4, 0.95 * 4, 100))
        one = limits.check_clustered_share(events, sizes, 0.05, 0.05)
        passes += one.kept
        fails += one.p_broken <= 0.05
    # 15 expected at most, 3.8 standard error.
    assert passes <= 26
    assert fails <= 26


def test_how_many_instances_a_share_needs() -> None:
    needed = limits.needed_for_share(limits.check_share(0, 100, 0.02, 0.05), 0.05)
    assert needed == 149
    assert limits.needed_for_share(limits.check_share(3, 100, 0.02, 0.05), 0.05) is None
    clustered = limits.check_clustered_share(np.zeros(50, int), np.full(50, 2), 0.02, 0.05)
    assert limits.needed_for_share(clustered, 0.05) == 298
    hopeless = Evidence(0.02 - 1e-9, 0.01, 0.03, 0.02, False, 1.0, 100, 100)
    assert limits.needed_for_share(hopeless, 0.05) is None


def test_how_many_instances_a_margin_needs() -> None:
    # 2% negative, 2% positive flips: (1.645 + 0.842)^2 * 0.04 / 0.01^2.
    one = limits.check_accuracy(192, 4, 4, 0, 0.01, 0.05)
    assert limits.needed_for_difference(one, 0.04, 0.05) == 2474
    without = limits.check_accuracy(100, 0, 0, 0, 0.01, 0.05)
    assert limits.needed_for_difference(without, 0.0, 0.05) == 299
    assert limits.check_accuracy(299, 0, 0, 0, 0.01, 0.05).kept
    worse = limits.check_accuracy(90, 8, 2, 0, 0.01, 0.05)
    assert limits.needed_for_difference(worse, 0.1, 0.05) is None
