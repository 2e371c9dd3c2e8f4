from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from uphold.core.errors import DataError, NotComparableError, UsageError
from uphold.core.records import Record
from uphold.importers import import_log, is_log
from uphold.measure.comparison import compare_runs

OLD = {"id": "openai:chat:gpt-4o", "label": "old"}
NEW = {"id": "openai:chat:gpt-5", "label": "new"}


def result(number: int, success: bool = True, provider: Any = OLD, **changes: Any) -> dict[str, Any]:
    """An `EvaluateResult` of version 3."""
    asserts = [{"type": "contains", "value": f"answer {number}"}, {"type": "latency", "metricOnly": True}]
    return {
        "promptIdx": 0,
        "testIdx": number,
        "testCase": {"vars": {"n": number}, "assert": asserts, "metadata": {"topic": "ab"[number % 2]}},
        "promptId": "0123abcd",
        "provider": provider,
        "prompt": {"raw": f"Question {number}?", "label": "Question {{n}}?"},
        "vars": {"n": number},
        "response": {"output": f"answer {number if success else 'none'}", "tokenUsage": {"total": 5}},
        "failureReason": 0 if success else 1,
        "success": success,
        "score": 1.0 if success else 0.4,
        "latencyMs": 12,
        "gradingResult": {"pass": success, "score": 1, "reason": ""},
        "namedScores": {"tone": 0.5},
        "tokenUsage": {"total": 7},
    } | changes


def failed(number: int, **changes: Any) -> dict[str, Any]:
    """A call that came back with an error."""
    return result(number, False, response=None, error="429", failureReason=2, score=0, **changes)


def write(path: Path, results: list[dict[str, Any]], **changes: Any) -> Path:
    """An `OutputFile` of schema 3."""
    summary = {"version": 3, "timestamp": "2026-01-02", "prompts": [], "results": results, "stats": {}}
    config = {
        "description": "support questions",
        "providers": [
            {**OLD, "config": {"temperature": 0.5, "apiKey": "sk-1"}},
            {**NEW, "config": {"temperature": 0.5}},
        ],
    }
    log = {"evalId": "eval-1", "results": summary, "config": config, "metadata": {"promptfooVersion": "0.120.0"}}
    path.write_text(json.dumps(log | changes))
    return path


def records(path: Path | str, **options: Any) -> dict[str, Record]:
    [run] = import_log(path, **options)
    return {record.input: record for record in run.records()}


def test_results_become_records(tmp_path: Path) -> None:
    path = write(tmp_path / "log.json", [result(0), result(1, False), failed(2)])
    assert is_log(path)
    [run] = import_log(path, columns={"topic": "topic"})
    found = {record.input: record for record in run.records()}
    assert (run.name, run.fingerprint["task"]["name"]) == ("old", "support questions")
    assert run.fingerprint["versions"]["promptfoo"] == "0.120.0"
    assert run.fingerprint["task"]["gen_kwargs"] == {"temperature": 0.5}
    assert "sk-1" not in json.dumps(run.fingerprint)
    assert [(found[f"Question {n}?"].correct, found[f"Question {n}?"].score) for n in range(3)] == [
        (True, 1.0),
        (False, 0.0),
        (None, None),
    ]
    right = found["Question 0?"]
    assert (right.output, right.target, right.tokens, right.tags) == (
        "answer 0",
        "contains answer 0",
        7,
        {"topic": "a"},
    )
    assert run.fingerprint["log"]["notes"] == ["results without an answer because the call failed, left out: 1"]


def test_providers_of_one_log_are_compared_with_each_other(tmp_path: Path) -> None:
    old = [result(n, n < 3) for n in range(5)]
    new = [result(n, n in (0, 4), NEW) for n in range(5)]
    path = write(tmp_path / "log.json", [entry for both in zip(old, new[::-1], strict=True) for entry in both])
    with pytest.raises(UsageError, match=r"2 models \(new, old\): type .*log.json#MODEL"):
        import_log(path)
    [before], [after] = import_log(f"{path}#old"), import_log(f"{path}#new")
    matrix = compare_runs(before, after).matrix
    assert matrix is not None
    assert (matrix.both_right, matrix.negative_flips, matrix.positive_flips, matrix.both_wrong) == (1, 2, 1, 1)
    with pytest.raises(NotComparableError, match="one and the same run"):
        compare_runs(before, import_log(f"{path}#old")[0])


def test_jsonl_is_read_like_json(tmp_path: Path) -> None:
    results = [result(0), result(1, False)]
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in results))
    assert is_log(path)
    assert records(path) == records(write(tmp_path / "log.json", results))


def test_version_2_is_read_too(tmp_path: Path) -> None:
    """Its providers have ids only, its tests have no case of their own, and failures no reason."""
    rows = []
    for number in range(2):
        row = result(number, provider={"id": "openai:chat:gpt-4o"}, error=None)
        for name in ("testCase", "promptId", "failureReason", "promptIdx", "testIdx"):
            del row[name]
        rows.append(row)
    rows[1] |= {"success": False, "error": "time out", "response": None}
    del rows[1]["response"]
    path = tmp_path / "log.json"
    summary = {"version": 2, "timestamp": "t", "results": rows, "stats": {}, "table": {"head": {}, "body": []}}
    path.write_text(json.dumps({"evalId": None, "results": summary, "config": {}}))
    found = records(path)
    assert [(found[f"Question {n}?"].correct) for n in range(2)] == [True, None]
    assert import_log(path)[0].name == "openai:chat:gpt-4o"


def test_repeated_tests_are_told_apart(tmp_path: Path) -> None:
    [run] = import_log(write(tmp_path / "log.json", [result(0), result(0, False), result(1)]))
    assert run.count == 3
    assert run.fingerprint["log"]["notes"] == ["results that repeat a test, told apart by their order: 1"]


@pytest.mark.parametrize(("metric", "score"), [("score", 0.4), ("tone", 0.5), ("success", 0.0)])
def test_scores_can_be_chosen(tmp_path: Path, metric: str, score: float) -> None:
    path = write(tmp_path / "log.json", [result(0, False)])
    assert records(path, metric=metric)["Question 0?"].score == score
    assert records(path, metric=metric)["Question 0?"].correct is (False if metric == "success" else None)


def test_scores_that_are_none(tmp_path: Path) -> None:
    path = write(tmp_path / "log.json", [result(0, score=7)])
    with pytest.raises(DataError, match=r"the metric 'score' is 7.0: expected a number in \[0, 1\]"):
        import_log(path, metric="score")
    with pytest.raises(UsageError, match="unknown metric 'ton': did you mean 'tone'"):
        import_log(path, metric="ton")


@pytest.mark.parametrize(
    ("changes", "differing"),
    [
        ({"prompt": {"raw": "Other 0?", "label": "x"}}, {"prompts"}),
        ({"testCase": {"vars": {"n": 0}, "assert": []}}, {"prompts", "targets"}),
    ],
)
def test_other_questions_are_not_comparable(tmp_path: Path, changes: dict[str, Any], differing: set[str]) -> None:
    [old] = import_log(write(tmp_path / "old.json", [result(0)]))
    [new] = import_log(write(tmp_path / "new.json", [result(0, provider=NEW, **changes)]))
    ours, theirs = old.fingerprint["task"], new.fingerprint["task"]
    assert {key for key in ours if ours[key] != theirs[key]} == differing
    with pytest.raises(NotComparableError, match="prompts"):
        compare_runs(old, new)


def test_malformed_results(tmp_path: Path) -> None:
    row = result(0)
    del row["success"]
    with pytest.raises(DataError, match="result 1: success: field required"):
        import_log(write(tmp_path / "a.json", [row]))
    with pytest.raises(DataError, match="result 1: expected a JSON object, found list"):
        import_log(write(tmp_path / "b.json", [[]]))  # type: ignore[list-item]
    path = write(tmp_path / "c.json", [])
    path.write_text('{"evalId": "e", "results": {"version": 3, "timestamp": "t"}}')
    with pytest.raises(DataError, match=r"results\.results: expected a list, found NoneType"):
        import_log(path)
    with pytest.raises(DataError, match="holds no samples"):
        import_log(write(tmp_path / "d.json", []))
