from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from uphold.core import stats


def test_the_multinomial_bootstrap_agrees_with_resampled_indices() -> None:
    counts = np.array([40, 11, 3, 0, 26])
    labels = np.repeat(np.arange(5), counts)
    generator = np.random.default_rng(11)
    indices = generator.integers(0, 80, size=(20_000, 80))
    brute = np.stack([(labels[indices] == label).mean(axis=1) for label in range(5)], axis=1)

    ours = stats.bootstrap_shares(counts, 20_000, seed=12)

    assert ours.shape == brute.shape
    assert ours.sum(axis=1) == pytest.approx(np.ones(20_000))
    # Standard errors: sqrt(p(1-p)/80)/sqrt(20000) < 0.0004 for means, about 2% of 0.003 for covariances.
    assert ours.mean(axis=0) == pytest.approx(brute.mean(axis=0), abs=0.002)
    assert np.cov(ours.T) == pytest.approx(np.cov(brute.T), abs=0.0002)
    quantiles = [0.025, 0.5, 0.975]
    assert np.quantile(ours, quantiles, axis=0) == pytest.approx(np.quantile(brute, quantiles, axis=0), abs=0.0126)
    assert (ours[:, 3] == 0).all()


def test_resampled_rows_agree_with_the_normal_approximation() -> None:
    rows = np.random.default_rng(1).normal(size=(200, 2))
    draws = stats.bootstrap_rows(rows, lambda sample: sample.mean(axis=1), 4000, seed=2)

    assert draws.shape == (4000, 2)
    assert draws.mean(axis=0) == pytest.approx(rows.mean(axis=0), abs=0.006)
    assert draws.std(axis=0) == pytest.approx(rows.std(axis=0) / np.sqrt(200), rel=0.06)


def test_rows_stay_paired_when_resampled() -> None:
    column = np.arange(50.0)
    draws = stats.bootstrap_rows(
        np.stack([column, column + 3], axis=1),
        lambda sample: sample[..., 1].mean(1, keepdims=True) - sample[..., 0].mean(1, keepdims=True),
        100,
        0,
    )

    assert draws == pytest.approx(np.full((100, 1), 3.0))


def test_small_chunks_hold_little_and_give_as_many_draws() -> None:
    largest = 0

    def watch(sample: stats.Floats) -> stats.Floats:
        nonlocal largest
        largest = max(largest, sample.size)
        return sample.mean(axis=1)

    draws = stats.bootstrap_rows(np.ones((10, 2)), watch, 25, seed=0, chunk_values=60)

    assert draws.shape == (25, 2)
    assert largest == 60


def test_a_seed_repeats_itself_and_the_global_generator_stays_untouched() -> None:
    counts, rows = np.array([5, 6, 7]), np.arange(20.0).reshape(10, 2)
    before = np.random.get_state()[1].tolist()  # type: ignore[index, union-attr]

    shares = [stats.bootstrap_shares(counts, 50, seed).tolist() for seed in (1, 1, 2)]
    means = [stats.bootstrap_rows(rows, lambda sample: sample.mean(1), 50, seed).tolist() for seed in (1, 1, 2)]

    assert shares[0] == shares[1] != shares[2]
    assert means[0] == means[1] != means[2]
    assert np.random.get_state()[1].tolist() == before  # type: ignore[index, union-attr]


def test_percentiles() -> None:
    draws = np.arange(1001.0)

    assert stats.percentile_interval(draws) == pytest.approx((25.0, 975.0))
    assert stats.percentile_interval(draws, 0.5) == pytest.approx((250.0, 750.0))


def test_few_undefined_draws_are_left_out_many_leave_no_interval() -> None:
    few = np.array([np.nan] * 5 + [1.0] * 95)
    many = np.array([np.nan] * 6 + [1.0] * 94)

    assert stats.percentile_interval(few) == (1.0, 1.0)
    assert stats.percentile_interval(many) is None
    assert stats.percentile_interval(np.full(10, np.nan)) is None


def test_clusters_of_one_are_resampled_like_instances() -> None:
    counts = np.array([40, 11, 3, 26])
    cells = np.eye(4)[np.repeat(np.arange(4), counts)]
    clustered = stats.bootstrap_clusters(cells, lambda sums: sums / 80, 20_000, seed=1)
    plain = stats.bootstrap_shares(counts, 20_000, seed=2)

    assert clustered.shape == plain.shape
    assert clustered.mean(axis=0) == pytest.approx(plain.mean(axis=0), abs=0.002)
    assert np.cov(clustered.T) == pytest.approx(np.cov(plain.T), abs=0.0002)


def test_clusters_are_drawn_whole() -> None:
    generator = np.random.default_rng(3)
    cells = generator.integers(0, 5, size=(30, 2))
    indices = generator.integers(0, 30, size=(20_000, 30))
    brute = cells[indices].sum(axis=1)
    ratio = brute[:, 0] / brute.sum(axis=1)

    ours = stats.bootstrap_clusters(cells, lambda sums: sums[:, 0] / sums.sum(axis=1), 20_000, 4, chunk_values=5000)

    assert ours.shape == (20_000,)
    assert np.quantile(ours, [0.025, 0.5, 0.975]) == pytest.approx(np.quantile(ratio, [0.025, 0.5, 0.975]), abs=0.004)
    again = stats.bootstrap_clusters(cells, lambda sums: sums[:, 0] / sums.sum(axis=1), 50, 4)
    assert again.tolist() == stats.bootstrap_clusters(cells, lambda sums: sums[:, 0] / sums.sum(axis=1), 50, 4).tolist()


def test_one_cluster_cannot_be_resampled() -> None:
    with pytest.raises(ValueError, match="at least two clusters"):
        stats.bootstrap_clusters([[3, 4]], lambda sums: sums, 10, 0)
    with pytest.raises(ValueError, match="at least one draw"):
        stats.bootstrap_clusters([[3, 4], [1, 2]], lambda sums: sums, 0, 0)


@pytest.mark.parametrize("level", [0.8, 0.95])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_bca_is_that_of_scipy_on_the_same_draws(seed: int, level: float) -> None:
    sample = np.random.default_rng(seed).exponential(size=40)
    first = scipy.stats.bootstrap((sample,), np.mean, n_resamples=999, rng=np.random.default_rng(seed))
    theirs = scipy.stats.bootstrap(
        (sample,), np.mean, n_resamples=0, bootstrap_result=first, confidence_level=level, method="BCa"
    ).confidence_interval
    jackknife = np.array([np.delete(sample, i).mean() for i in range(40)])

    ours = stats.bca_interval(sample.mean(), first.bootstrap_distribution, jackknife, level)

    assert ours == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_bca_takes_equal_jackknife_values_together() -> None:
    draws = np.random.default_rng(0).normal(0.4, 0.1, size=2000)
    values, times = np.array([0.39, 0.41, 0.44]), np.array([30, 15, 5])

    assert stats.bca_interval(0.4, draws, values, weights=times) == pytest.approx(
        stats.bca_interval(0.4, draws, np.repeat(values, times)), abs=1e-12
    )
    assert stats.bca_interval(0.4, draws, [*values, np.nan], weights=[*times, 0]) == stats.bca_interval(
        0.4, draws, values, weights=times
    )


def test_bca_without_skew_or_bias_is_the_percentile_interval() -> None:
    draws = np.linspace(-1, 1, 2001)

    assert stats.bca_interval(0.0, draws, [-0.1, 0.1]) == pytest.approx(stats.percentile_interval(draws), abs=1e-9)


def test_bca_does_not_exist_everywhere() -> None:
    draws = np.linspace(0, 1, 101)

    assert stats.bca_interval(2.0, draws, [1.0, 2.0]) is None
    assert stats.bca_interval(0.5, draws, [0.5, 0.5]) is None
    assert stats.bca_interval(0.5, draws, [0.5, np.nan]) is None
    assert stats.bca_interval(float("nan"), draws, [0.4, 0.6]) is None
    assert stats.bca_interval(0.5, np.full(10, np.nan), [0.4, 0.6]) is None
    with pytest.raises(ValueError, match="level"):
        stats.bca_interval(0.5, draws, [0.4, 0.6], 1.2)
