from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from uphold.core.errors import DataError, EmptyError, NotComparableError, UsageError
from uphold.core.records import Record
from uphold.importers import import_log, is_log
from uphold.measure.comparison import compare_runs


def spec(**changes: Any) -> dict[str, Any]:
    config = {"completion_fns": ["gpt-4"], "eval_spec": {"cls": "Match", "args": {"n": 1}}, "seed": 1, "max_samples": 5}
    head = {
        "completion_fns": ["gpt-4"],
        "eval_name": "colours.dev.v0",
        "base_eval": "colours",
        "split": "dev",
        "run_config": config,
        "created_by": "",
        "run_id": "r",
        "created_at": "now",
    }
    return {"spec": head | changes}


def events(number: int, correct: bool = True, first: int = 0) -> list[dict[str, Any]]:
    """What `Match` records of a sample: what was asked, and whether it was right."""
    common = {"run_id": "r", "sample_id": f"colours.dev.{number}", "created_by": "", "created_at": "now"}
    said = f"answer {number}" if correct else "nothing"
    prompt = [{"role": "system", "content": "be short"}, {"role": "user", "content": f"question {number}"}]
    match = {"correct": correct, "expected": [f"answer {number}"], "picked": said if correct else None, "sampled": said}
    return [
        {**common, "event_id": first, "type": "sampling", "data": {"prompt": prompt, "sampled": [said]}},
        {**common, "event_id": first + 1, "type": "match", "data": match},
    ]


def write(path: Path, lines: list[dict[str, Any]], head: dict[str, Any] | None = None, end: bool = True) -> Path:
    report = [{"final_report": {"accuracy": 0.5}, "run_id": "r"}] if end else []
    path.write_text("".join(json.dumps(line) + "\n" for line in [head or spec(), *lines, *report]))
    return path


def records(path: Path, **options: Any) -> dict[str, Record]:
    [run] = import_log(path, **options)
    return {record.target: record for record in run.records()}


def test_events_become_records_whatever_their_order(tmp_path: Path) -> None:
    lines = [*events(0, True, 0), *events(1, False, 2)]
    path = write(tmp_path / "log.jsonl", lines)
    assert is_log(path)
    [run] = import_log(path, columns={"sample": "sample_id"})
    found = {record.target: record for record in run.records()}
    right, wrong = found["answer 0"], found["answer 1"]
    assert (right.correct, right.score, right.output, right.answer) == (True, 1.0, "answer 0", "answer 0")
    assert (wrong.correct, wrong.output, wrong.answer) == (False, "nothing", "nothing")
    assert right.input == "system: be short\n\nuser: question 0"
    assert right.tags == {"sample": "colours.dev.0"}
    assert (run.name, run.fingerprint["task"]["name"]) == ("gpt-4", "colours.dev.v0")
    assert run.fingerprint["task"]["metric"] == "match"
    shuffled = write(tmp_path / "shuffled.jsonl", lines[::-1])
    assert records(shuffled, columns={"sample": "sample_id"}) == found


def test_flips_of_two_logs(tmp_path: Path) -> None:
    old = write(tmp_path / "old.jsonl", [line for n in range(5) for line in events(n, n < 3)])
    new = write(
        tmp_path / "new.jsonl",
        [line for n in reversed(range(5)) for line in events(n, n in (0, 4))],
        spec(completion_fns=["gpt-5"]),
    )
    matrix = compare_runs(import_log(old)[0], import_log(new)[0]).matrix
    assert matrix is not None
    assert (matrix.both_right, matrix.negative_flips, matrix.positive_flips, matrix.both_wrong) == (1, 2, 1, 1)


def test_of_many_samplings_the_first_is_the_models(tmp_path: Path) -> None:
    grader = {
        "sample_id": "colours.dev.0",
        "event_id": 7,
        "type": "sampling",
        "data": {"prompt": "grade", "sampled": "A"},
    }
    [found] = records(write(tmp_path / "log.jsonl", [grader, *events(0)])).values()
    assert found.output == "answer 0"


def metrics(number: int, **data: Any) -> dict[str, Any]:
    return {"sample_id": f"colours.dev.{number}", "event_id": 9, "type": "metrics", "data": data}


def test_metrics_are_chosen_by_name(tmp_path: Path) -> None:
    [only] = records(write(tmp_path / "a.jsonl", [events(0)[0], metrics(0, accuracy=0.25)])).values()
    assert (only.correct, only.score) == (None, 0.25)
    several = write(tmp_path / "b.jsonl", [events(0)[0], metrics(0, f1=0.5, exact=True)])
    with pytest.raises(UsageError, match="has the metrics f1, exact: choose one with metric"):
        import_log(several)
    assert [record.correct for record in records(several, metric="exact").values()] == [True]
    with pytest.raises(UsageError, match="unknown metric 'f2': did you mean 'f1'"):
        import_log(several, metric="f2")
    assert [
        record.score for record in records(write(tmp_path / "c.jsonl", [*events(0), metrics(0, f1=1)])).values()
    ] == [1]


def test_samples_without_a_judgement_are_counted(tmp_path: Path) -> None:
    error = {"sample_id": "colours.dev.2", "type": "error", "data": {"type": "Timeout", "message": "late"}}
    path = write(tmp_path / "log.jsonl", [*events(0), events(1)[0], error], end=False)
    [run] = import_log(path)
    assert run.fingerprint["log"]["notes"] == [
        "the log has no final report (the evaluation was killed), samples read: 3",
        "samples without a judgement, left out: 1",
        "samples that ended in an error, left out: 1",
    ]
    assert [record.score for record in run.records()].count(None) == 2


@pytest.mark.parametrize(
    ("head", "key"),
    [
        (spec(split="test"), "split"),
        (spec(run_config={"eval_spec": {"cls": "Match", "args": {"n": 1}}, "seed": 2, "max_samples": 5}), "seed"),
        (spec(run_config={"eval_spec": {"cls": "Fuzzy", "args": {"n": 1}}, "seed": 1, "max_samples": 5}), "eval_spec"),
    ],
)
def test_other_settings_are_not_comparable(tmp_path: Path, head: dict[str, Any], key: str) -> None:
    [old] = import_log(write(tmp_path / "old.jsonl", events(0)))
    [new] = import_log(write(tmp_path / "new.jsonl", events(0), head))
    ours, theirs = old.fingerprint["task"], new.fingerprint["task"]
    assert {name for name in ours if ours[name] != theirs[name]} == {key}
    with pytest.raises(NotComparableError, match=key):
        compare_runs(old, new)


def test_malformed_logs(tmp_path: Path) -> None:
    twice = [*events(0), {**events(0, False)[1]}]
    with pytest.raises(DataError, match=r"line 4: sample colours.dev.0 was matched twice"):
        import_log(write(tmp_path / "a.jsonl", twice))
    with pytest.raises(EmptyError, match="no event of a sample"):
        import_log(write(tmp_path / "b.jsonl", []))
    with pytest.raises(DataError, match="neither 'match' nor 'metrics'"):
        import_log(write(tmp_path / "c.jsonl", [events(0)[0]]))
    with pytest.raises(DataError, match=r"the metric 'f1' is '7': expected"):
        import_log(write(tmp_path / "d.jsonl", [metrics(0, f1=7)]))
    with pytest.raises(DataError, match=r"spec: completion_fns: input should be a valid list"):
        import_log(write(tmp_path / "e.jsonl", events(0), spec(completion_fns=5)))
    headless = tmp_path / "f.jsonl"
    headless.write_text("".join(json.dumps(line) + "\n" for line in events(0)))
    with pytest.raises(DataError, match="its beginning is missing"):
        import_log(headless)
