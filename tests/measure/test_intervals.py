from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import t

from uphold.core import stats
from uphold.measure import intervals
from uphold.measure.intervals import (
    bootstrap_intervals,
    cluster_mean_interval,
    cluster_share_interval,
    corrected_interval,
    mean_interval,
    share_interval,
)
from uphold.measure.pairs import Moment


def ratio(sums: stats.Floats) -> stats.Floats:
    return np.asarray(sums[:, :1] / sums[:, 1:])


def test_a_share_has_the_interval_of_the_chosen_method(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "SHARES", "jeffreys")

    assert share_interval(3, 40, 0.9) == stats.proportion_interval(3, 40, 0.9, method="jeffreys")


def test_a_mean_has_the_t_interval_of_its_moments() -> None:
    values = np.array([0.1, 0.4, 0.35, 0.8])
    moment = Moment(4, float(values.mean()), float(values.var(ddof=1)))

    expected = t.interval(0.95, 3, loc=values.mean(), scale=values.std(ddof=1) / 2)
    assert mean_interval(moment, 0.95) == pytest.approx(expected, rel=1e-9)
    assert mean_interval(Moment(1, 0.5, 0.0), 0.95) is None


def test_clusters_without_an_instance_that_counts_do_not_count() -> None:
    successes, sizes = np.array([1.0, 3.0, 0.0, 2.0]), np.array([4.0, 4.0, 0.0, 5.0])
    kept = sizes > 0

    for interval in (cluster_share_interval, cluster_mean_interval):
        assert interval(successes, sizes, 0.95) == interval(successes[kept], sizes[kept], 0.95)
        assert interval(successes[1:3], sizes[1:3], 0.95) is None


def test_the_bootstrap_of_a_mean_is_near_its_t_interval() -> None:
    values = np.random.default_rng(2).normal(0.5, 0.1, size=300)
    sums = np.stack([values, np.ones(300)], axis=1)

    (interval,) = bootstrap_intervals(sums, ratio, 4000, 0.95, 0)
    assert interval == pytest.approx(stats.mean_interval(values), abs=1e-3)


def test_one_unit_cannot_be_resampled() -> None:
    assert bootstrap_intervals(np.ones((1, 2)), ratio, 100, 0.95, 0) == [None]


def test_where_there_is_no_corrected_interval_the_percentiles_stand_in() -> None:
    # All draws lie above the value, so that the bias correction is infinite.
    drawn = np.linspace(1, 2, 101)

    assert corrected_interval(0.5, drawn, np.array([0.4, 0.6]), 0.95) == stats.percentile_interval(drawn)


def test_beyond_many_units_only_the_percentiles_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(2).exponential(size=60)
    sums = np.stack([values, np.ones(60)], axis=1)
    (corrected,) = bootstrap_intervals(sums, ratio, 2000, 0.95, 0)
    monkeypatch.setattr(intervals, "MANY", 50)
    (plain,) = bootstrap_intervals(sums, ratio, 2000, 0.95, 0)

    assert plain == stats.percentile_interval(stats.bootstrap_clusters(sums, ratio, 2000, 0)[:, 0])
    assert corrected != plain
