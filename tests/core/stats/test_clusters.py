from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.contingency_tables import mcnemar

from uphold.core import stats
from uphold.core.stats import clusters

quick = settings(max_examples=40, deadline=None, database=None)


@st.composite
def grouped(draw: st.DrawFn) -> list[list[int]]:
    return draw(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=6), min_size=3, max_size=25))


def sums_and_sizes(groups: list[list[int]]) -> tuple[list[int], list[int]]:
    return [sum(group) for group in groups], [len(group) for group in groups]


@quick
@given(grouped(), st.sampled_from([0.9, 0.95]))
def test_the_error_is_that_of_statsmodels(groups: list[list[int]], level: float) -> None:
    values = np.concatenate(groups).astype(float)
    labels = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    ours = stats.clustered_mean(*sums_and_sizes(groups), level)
    if ours.standard_error < 1e-9:
        return
    theirs = sm.OLS(values, np.ones(values.size)).fit(
        cov_type="cluster", cov_kwds={"groups": labels, "df_correction": True}, use_t=True
    )

    assert ours.value == pytest.approx(float(theirs.params[0]), abs=1e-9)
    assert ours.standard_error == pytest.approx(float(theirs.bse[0]), abs=1e-9)
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs.conf_int(1 - level)[0]), abs=1e-9)
    assert ours.clusters == len(groups)


@quick
@given(st.lists(st.floats(-3, 3), min_size=2, max_size=40))
def test_clusters_of_one_give_students_interval(values: list[float]) -> None:
    ours = stats.clustered_mean(values, np.ones(len(values)), squares=np.square(values))

    assert (ours.low, ours.high) == pytest.approx(stats.mean_interval(values), abs=1e-9)
    if np.std(values) > 1e-3:
        assert ours.effective_size == pytest.approx(len(values), rel=1e-9)


@quick
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from(["clopper-pearson", "wilson", "jeffreys"]))
def test_shares_of_clusters_of_one_give_the_binomial_interval(
    successes: int, failures: int, method: stats.ProportionMethod
) -> None:
    values = np.repeat([1, 0], [successes, failures])
    ours = stats.clustered_share(values, np.ones_like(values), method=method)

    assert (ours.low, ours.high) == pytest.approx(
        stats.proportion_interval(successes, successes + failures, method=method), abs=1e-9
    )


@pytest.mark.parametrize("copies", [2, 5])
def test_copies_of_an_instance_add_nothing(copies: int) -> None:
    values = np.repeat([1, 0], [12, 38])
    once, often = (stats.clustered_mean(times * values, np.full(50, times)) for times in (1, copies))

    assert often.standard_error == pytest.approx(once.standard_error)
    assert often.effective_size == pytest.approx(50, rel=0.02)
    share = stats.clustered_share(copies * values, np.full(50, copies))
    assert (share.low, share.high) == pytest.approx(stats.proportion_interval(12, 50), abs=0.01)


def test_without_a_success_the_clusters_are_the_instances() -> None:
    share = stats.clustered_share([0, 0, 0, 0], [5, 3, 9, 1])

    assert (share.low, share.high) == stats.proportion_interval(0, 4)
    assert share.effective_size == 4
    assert share.standard_error == 0


def test_a_few_large_clusters_count_as_few() -> None:
    # By Kish's formula 90^2 / (2 * 40^2 + 10) = 2.5 clusters.
    sizes, flips = [40, 40] + [1] * 10, [4, 0] + [0, 1] * 5
    unequal = stats.clustered_share(flips, sizes)
    assert unequal.effective_size == pytest.approx(8100 / 3210)
    assert unequal.high > stats.clustered_share([2] * 12, [8] * 12).high + 0.2


def test_unequal_clusters_seldom_miss_the_truth_from_below() -> None:
    generator = np.random.default_rng(2)
    missed = 0
    for _ in range(400):
        sizes = np.ceil(generator.lognormal(1.5, 0.8, 60))
        flips = generator.binomial(sizes.astype(int), generator.beta(0.05 * 2, 0.95 * 2, 60))
        missed += stats.clustered_share(flips, sizes, 0.9).high < 0.05
    # 20 expected at most, 4.4 standard error.
    assert missed <= 33


def test_a_design_effect_seen_in_two_clusters_is_not_trusted() -> None:
    flips, sizes = np.repeat([2, 1, 0], [1, 1, 38]), np.full(40, 10)
    share = stats.clustered_share(flips, sizes)
    plain = stats.clustered_mean(flips, sizes)

    assert plain.effective_size is not None
    assert share.effective_size == 40 < plain.effective_size
    mirrored = stats.clustered_share(sizes - flips, sizes)
    assert (mirrored.low, mirrored.high) == pytest.approx((1 - share.high, 1 - share.low), abs=1e-9)
    # Many clusters with a flip: as many instances as the design effect says, less a little.
    many = stats.clustered_share(np.repeat([3, 0], [60, 140]), np.full(200, 10))
    assert many.effective_size == pytest.approx(
        stats.clustered_mean(np.repeat([3, 0], [60, 140]), np.full(200, 10)).effective_size, rel=0.05
    )


@quick
@given(st.integers(0, 25), st.integers(0, 25), st.integers(2, 60))
def test_the_gain_of_clusters_of_one_has_the_exact_interval(negative: int, positive: int, unchanged: int) -> None:
    down = np.repeat([1, 0, 0], [negative, positive, unchanged])
    up = np.repeat([0, 1, 0], [negative, positive, unchanged])
    estimate = stats.clustered_difference(down, up, np.ones_like(up))

    assert (estimate.low, estimate.high) == pytest.approx(
        stats.paired_difference_interval(unchanged, negative, positive, 0, method="exact"), abs=1e-8
    )
    assert estimate.value == pytest.approx((positive - negative) / up.size)


def test_the_gain_of_copies_is_that_of_the_instances() -> None:
    down, up = np.repeat([1, 0, 0], [12, 9, 79]), np.repeat([0, 1, 0], [12, 9, 79])
    once = stats.clustered_difference(down, up, np.ones(100))
    copied = stats.clustered_difference(5 * down, 5 * up, np.full(100, 5))
    together = stats.clustered_difference(down, up, np.full(100, 5))

    assert copied.low <= once.low
    assert copied.high >= once.high
    assert (copied.low, copied.high) == pytest.approx((once.low, once.high), abs=0.02)
    assert together.high - together.low < 0.5 * (copied.high - copied.low)
    bound = stats.clustered_bound(5 * down, 5 * up, np.full(100, 5), 0.975)
    assert bound.low == copied.low
    with pytest.raises(ValueError, match="fit into the size"):
        stats.clustered_difference([1, 2], [1, 3], [2, 4])
    with pytest.raises(ValueError, match="level"):
        stats.clustered_bound([1, 2], [1, 2], [2, 4], 0.3)


def test_by_hand() -> None:
    # Sums 1, 0, 3 of sizes 2, 2, 4: mean 1/2, residuals 0, -1, 1, error sqrt(3/2 * 2) / 8.
    estimate = stats.clustered_mean([1, 0, 3], [2, 2, 4])

    assert estimate.value == 0.5
    assert estimate.standard_error == pytest.approx(3**0.5 / 8)
    assert estimate.high == pytest.approx(0.5 + scipy.stats.t(2).ppf(0.975) * 3**0.5 / 8)
    assert estimate.effective_size == pytest.approx((0.25 / 7) * 8 / (3 / 64))
    assert estimate.few
    assert not stats.clustered_mean(np.arange(10), np.full(10, 20)).few


def test_the_effective_size_of_scores_needs_their_squares() -> None:
    assert stats.clustered_mean([0.5, 1.25, 2], [3, 2, 4]).effective_size is None
    assert stats.clustered_mean([0.5, 1.25, 2], [3, 2, 4], squares=[0.25, 0.9, 1.2]).effective_size is not None
    assert stats.clustered_mean([-1, 0, 2], [3, 2, 4]).effective_size is None


@quick
@given(st.integers(0, 60), st.integers(0, 60), st.integers(2, 9))
def test_mcnemar_of_clusters_of_one_is_mcnemar(negative: int, positive: int, unchanged: int) -> None:
    down = np.repeat([1, 0, 0], [negative, positive, unchanged])
    up = np.repeat([0, 1, 0], [negative, positive, unchanged])

    assert stats.mcnemar_clustered(down, up) == pytest.approx(stats.mcnemar_exact(negative, positive), rel=1e-9)


def test_mcnemar_counts_a_cluster_that_flips_together_once() -> None:
    # Five clusters of ten equal flips are five observations.
    assert stats.mcnemar_clustered([10] * 5, [0] * 5) == pytest.approx(2 / 32)
    assert stats.mcnemar_clustered([2, 0, 1], [0, 0, 1]) == 1.0


def test_many_flips_take_the_chi_squared_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    negative, positive = generator.poisson(1.0, 600), generator.poisson(1.3, 600)
    counted = stats.mcnemar_clustered(negative, positive)
    monkeypatch.setattr(clusters, "LATTICE", 0)
    approximate = stats.mcnemar_clustered(negative, positive)
    singles = stats.mcnemar_clustered(np.repeat([1, 0], [40, 60]), np.repeat([0, 1], [40, 60]))

    assert approximate == pytest.approx(counted, abs=0.02)
    assert singles == pytest.approx(mcnemar([[0, 40], [60, 0]], exact=False, correction=False).pvalue, abs=1e-9)


def test_the_permutation_of_clusters_is_that_of_their_sums() -> None:
    sums = [0.5, -1.25, 2.0, 0.75, 1.5]

    assert stats.cluster_permutation_test(sums) == stats.paired_permutation_test(sums)


def test_one_cluster_is_refused() -> None:
    with pytest.raises(ValueError, match="at least two clusters"):
        stats.clustered_mean([3], [10])
    with pytest.raises(ValueError, match="at least two clusters"):
        stats.clustered_share([3], [10])
    with pytest.raises(ValueError, match="at least two clusters"):
        stats.mcnemar_clustered([3], [10])
    with pytest.raises(ValueError, match="at least two clusters"):
        stats.cluster_permutation_test([3.0])


def test_impossible_clusters_are_refused() -> None:
    with pytest.raises(ValueError, match="not shapes"):
        stats.clustered_mean([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="positive sizes"):
        stats.clustered_mean([1, 2], [1, 0])
    with pytest.raises(ValueError, match="successes <= size"):
        stats.clustered_share([1, 5], [1, 4])
    with pytest.raises(ValueError, match="mid-p"):
        stats.clustered_share([1, 2], [2, 4], method="mid-p")
    with pytest.raises(ValueError, match="cannot be negative"):
        stats.mcnemar_clustered([1, -2], [2, 4])
    with pytest.raises(ValueError, match="finite sum"):
        stats.cluster_permutation_test([1.0, float("nan")])
