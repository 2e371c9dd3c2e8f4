from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from uphold.core import stats

quick = settings(max_examples=50, deadline=None, database=None)
levels = st.sampled_from([0.5, 0.8, 0.9, 0.95, 0.99])


@st.composite
def of_trials(draw: st.DrawFn) -> tuple[int, int]:
    trials = draw(st.integers(1, 5000))
    return draw(st.integers(0, trials)), trials


@quick
@given(of_trials(), levels)
def test_the_interval_is_that_of_scipy_and_statsmodels(counts: tuple[int, int], level: float) -> None:
    ours = stats.proportion_interval(*counts, level)
    theirs = scipy.stats.binomtest(*counts).proportion_ci(level, method="exact")

    assert ours == pytest.approx((theirs.low, theirs.high), abs=1e-9)
    assert ours == pytest.approx(proportion_confint(*counts, alpha=1 - level, method="beta"), abs=1e-9)


@quick
@given(of_trials(), levels)
def test_the_upper_bound_is_one_sided(counts: tuple[int, int], level: float) -> None:
    theirs = scipy.stats.binomtest(*counts, alternative="less").proportion_ci(level, method="exact")

    assert stats.proportion_upper_bound(*counts, level) == pytest.approx(theirs.high, abs=1e-9)


def test_bounds_with_a_closed_form() -> None:
    # No success in n: 1 - tail ** (1/n). Only successes: tail ** (1/n).
    assert stats.proportion_interval(0, 10) == pytest.approx((0.0, 1 - 0.025**0.1))
    assert stats.proportion_interval(10, 10) == pytest.approx((0.025**0.1, 1.0))
    assert stats.proportion_upper_bound(0, 100, 0.95) == pytest.approx(1 - 0.05**0.01)
    assert stats.proportion_upper_bound(7, 7) == 1.0


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (-1, 5), (6, 5), (0, -3)])
def test_impossible_counts_are_refused(successes: int, trials: int) -> None:
    with pytest.raises(ValueError, match="0 <= successes <= trials"):
        stats.proportion_interval(successes, trials)


@quick
@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_is_that_of_statsmodels(negative: int, positive: int) -> None:
    theirs = mcnemar([[5, negative], [positive, 5]], exact=True).pvalue if negative + positive else 1.0

    assert stats.mcnemar_exact(negative, positive) == pytest.approx(theirs, abs=1e-9)
    assert stats.mcnemar_exact(positive, negative) == stats.mcnemar_exact(negative, positive)


def test_mcnemar_by_hand() -> None:
    assert stats.mcnemar_exact(0, 0) == 1.0
    assert stats.mcnemar_exact(5, 0) == pytest.approx(2 / 32)
    assert stats.mcnemar_exact(8, 1) == pytest.approx(2 * (1 + 9) / 512)
    assert stats.mcnemar_exact(4, 4) == 1.0


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
