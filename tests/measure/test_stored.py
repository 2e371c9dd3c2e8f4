from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import make_record, make_run
from uphold.core.errors import NotComparableError, UsageError
from uphold.core.runs import Run, RunStore
from uphold.measure.stored import chosen, matched, stored_runs


def run(folder: Path, task: str, model: str = "model") -> Run:
    return make_run(folder, [make_record(n, n < 3, str(n)) for n in range(5)], model, name=task)


def test_a_run_and_its_folder_are_one_task(tmp_path: Path) -> None:
    made = run(tmp_path / "run", "colours")

    assert stored_runs(made) == {"colours": made}
    assert stored_runs(str(tmp_path / "run")) == {"colours": made}


def test_a_folder_of_runs_holds_one_per_task(tmp_path: Path) -> None:
    made = {name: run(tmp_path / "runs" / name, name) for name in ("b", "a")}

    assert stored_runs(tmp_path / "runs") == made

    run(tmp_path / "runs" / "c", "a", "other")
    with pytest.raises(UsageError, match=r"holds two runs of the task 'a' \(a and c\)"):
        stored_runs(tmp_path / "runs")


def test_models_are_no_runs(model_v1: Path, tmp_path: Path) -> None:
    assert stored_runs(model_v1) is None
    assert stored_runs("embedded:v1") is None
    assert stored_runs("org/name@main") is None
    assert stored_runs("a\0b") is None
    assert stored_runs(object()) is None
    assert stored_runs(tmp_path) is None


def test_a_log_becomes_runs_in_the_store(tmp_path: Path, store: RunStore) -> None:
    rows = [{"id": n, "input": f"question {n}", "output": "yes", "target": "yes", "correct": n % 2} for n in range(6)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    found = stored_runs(tmp_path / "log.jsonl", store=store)

    assert found is not None
    [imported] = found.values()
    assert imported.count == 6
    assert imported.path.is_relative_to(store.root)


def test_tasks_are_chosen_by_name_or_wild_card(tmp_path: Path) -> None:
    runs = {name: run(tmp_path / name, name) for name in ("mmlu_law", "mmlu_art", "piqa")}

    assert chosen(runs, [], "here") == runs
    assert list(chosen(runs, ["mmlu_*"], "here")) == ["mmlu_law", "mmlu_art"]
    brackets = {"task [v2]": next(iter(runs.values()))}
    assert chosen(brackets, ["task [v2]"], "here") == brackets
    with pytest.raises(UsageError, match=r"unknown task 'piqua': did you mean 'piqa'\? It is looked for in here"):
        chosen(runs, ["piqua"], "here")


def test_sides_are_matched_by_task(tmp_path: Path) -> None:
    old = {name: run(tmp_path / "old" / name, name) for name in ("a", "b")}
    new = {name: run(tmp_path / "new" / name, name, "new") for name in ("b", "a", "c")}

    with pytest.raises(NotComparableError, match=r"only the new side has the task c: name .* --allow-mismatch"):
        matched(old, new, allow_mismatch=False)

    pairs, notes = matched(old, new, allow_mismatch=True)
    assert pairs == {"a": (old["a"], new["a"]), "b": (old["b"], new["b"])}
    assert notes == ["mismatch allowed: only the new side has the task c"]


def test_one_run_on_each_side_is_a_pair_whatever_it_is_called(tmp_path: Path) -> None:
    old, new = run(tmp_path / "old", "data/v1.yaml"), run(tmp_path / "new", "v1.yaml", "new")

    assert matched({"data/v1.yaml": old}, {"v1.yaml": new}, False) == ({"data/v1.yaml": (old, new)}, [])


def test_sides_without_a_common_task_are_refused(tmp_path: Path) -> None:
    old = {name: run(tmp_path / "old" / name, name) for name in ("a", "b")}
    new = {"c": run(tmp_path / "new", "c", "new")}

    with pytest.raises(NotComparableError, match="no task is on both sides: old has a, b; new has c"):
        matched(old, new, allow_mismatch=True)
