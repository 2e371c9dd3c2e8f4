from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.conftest import make_record, make_run
from uphold.core.stats import mean_interval, proportion_interval
from uphold.measure import intervals
from uphold.measure.intervals import SHARES
from uphold.measure.summary import summarise, summary_table


def test_accuracy_with_the_interval_of_a_share(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [make_record(n, n < 7, "a") for n in range(10)], "m")

    summary = summarise(run)

    assert (summary.model, summary.task, summary.count, summary.unscored) == ("m", "task", 10, 0)
    assert summary.score == pytest.approx(0.7)
    assert (summary.low, summary.high) == proportion_interval(7, 10, method=SHARES)
    assert summary.passes == ()


def test_a_mean_score_has_a_bootstrap_interval_and_unscored_instances_are_counted(tmp_path: Path) -> None:
    records = [make_record(n, None, "a", score=n / 10) for n in range(10)]
    records += [make_record(n, None, "a") for n in range(10, 13)]

    summary = summarise(make_run(tmp_path / "run", records))

    assert summary.count == 13
    assert summary.unscored == 3
    assert summary.score == pytest.approx(0.45)
    assert summary.low is not None
    assert summary.high is not None
    assert summary.low < 0.45 < summary.high


def test_many_mean_scores_have_the_t_interval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run", [make_record(n, None, "a", score=n / 100) for n in range(100)])
    resampled = summarise(run)
    monkeypatch.setattr(intervals, "MANY", 99)
    closed = summarise(run)

    assert (closed.low, closed.high) == mean_interval(np.arange(100) / 100)
    assert (closed.low, closed.high) == pytest.approx((resampled.low, resampled.high), abs=0.01)


def test_a_score_that_is_not_a_number_is_unscored(tmp_path: Path) -> None:
    records = [make_record(0, True, "a"), make_record(1, False, "a", float("nan"))]
    summary = summarise(make_run(tmp_path / "run", records))

    assert (summary.score, summary.unscored) == (1.0, 1)


def test_nothing_scored_is_undefined_and_never_zero(tmp_path: Path) -> None:
    summary = summarise(make_run(tmp_path / "run", [make_record(n, None, "a") for n in range(3)]))

    assert (summary.score, summary.low, summary.high, summary.unscored) == (None, None, None, 3)
    assert "unscored" in summary_table([summary])


def test_programs_have_pass_at_k_as_far_as_there_are_samples(tmp_path: Path) -> None:
    records = [make_record(n, n % 2 == 0, "a", tags={"task_id": f"p{n // 10}"}) for n in range(20)]

    passes = summarise(make_run(tmp_path / "run", records)).passes

    assert [(one.k, one.problems, one.samples) for one in passes] == [(1, 2, 20), (10, 2, 20)]
    assert passes[0].value == pytest.approx(0.5)
    assert passes[1].value == 1.0


def test_truncated_prompts_are_told(tmp_path: Path) -> None:
    records = [make_record(n, True, "a", tags={"truncated": "yes"} if n < 2 else {}) for n in range(5)]

    summary = summarise(make_run(tmp_path / "run", records))

    assert summary.truncated == 2
    assert "2 truncated" in summary_table([summary])


def test_columns_of_the_table_line_up(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, [make_record(0, True, "a")], name) for name in ("short", "a longer name")]

    lines = summary_table([summarise(run) for run in runs]).splitlines()

    assert len(lines) == 3
    assert len({line.index("100.00%") for line in lines[1:]}) == 1
