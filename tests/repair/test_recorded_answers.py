from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import write_task
from uphold.core.errors import DataError, UsageError
from uphold.core.records import Record
from uphold.core.runs import Run, RunStore, load_run, write_run
from uphold.repair.recorded_answers import recorded_answers
from uphold.tasks.base import SPLITS, FixedTask, Instance, Split, Task, task_fingerprint
from uphold.tasks.load import load_task
from uphold.tasks.scorers import scorer


def answered(instance: Instance, output: str, logprobs: tuple[float, ...] = (-1.0, -2.0, -3.0, -4.0)) -> Record:
    right = output == instance.target
    return Record(
        instance.id, instance.prompt, instance.target, output, output, right, float(right), instance.options, logprobs
    )


def write_runs(folder: Path, task: Task, name: str = "old", **changes: Any) -> Path:
    """A run per split, in which the model says the right option but for every third instance."""
    for split in SPLITS:
        records = [
            answered(one, one.target if number % 3 else one.options[-1])
            for number, one in enumerate(task.instances(split))
        ]
        header = {
            "model": {"name": name, "weights": name},
            "task": {**task_fingerprint(task, split), **changes},
            "batching": {},
            "seed": 0,
            "versions": {},
        }
        write_run(folder / f"{name}-{split}", records, header)
    return folder


@pytest.fixture
def task(tmp_path: Path) -> FixedTask:
    found = load_task(write_task(tmp_path))
    assert isinstance(found, FixedTask)
    return found


def test_runs_are_matched_by_content(task: FixedTask, tmp_path: Path) -> None:
    found = recorded_answers(write_runs(tmp_path / "runs", task), task, tmp_path / "out")
    assert found.name == "old"
    assert found.task.notes == task.notes
    for split in SPLITS:
        assert found.records(split).keys() == {one.id for one in task.instances(split)}
        assert found.run(split).fingerprint["task"] == task_fingerprint(task, split)
    again = recorded_answers(write_runs(tmp_path / "runs", task), task, tmp_path / "out2")
    assert again.fingerprint == found.fingerprint


def without(folder: Path, split: Split, keep: int) -> None:
    """Leave `keep` records in the run of a split."""
    from uphold.core.runs import load_run

    run = load_run(folder / f"old-{split}")
    write_run(folder / f"old-{split}", list(run.records())[:keep], run.fingerprint)


def test_missing_answers_are_counted_and_left_out_where_it_is_measured(task: FixedTask, tmp_path: Path) -> None:
    folder = write_runs(tmp_path / "runs", task)
    for split in SPLITS:
        without(folder, split, 5)
    found = recorded_answers(folder, task, tmp_path / "out")
    sizes = {split: len(task.instances(split)) for split in SPLITS}
    assert [len(found.task.instances(split)) for split in SPLITS] == [sizes["train"], 5, 5]
    assert f"{sizes['train'] - 5} of {sizes['train']} train instances have no recorded answer: " in found.task.notes[0]
    assert [note.partition(" instances")[0] for note in found.task.notes[1:]] == [
        f"{sizes[split] - 5} of {sizes[split]} {split}" for split in ("validation", "test")
    ]
    assert found.run("test").fingerprint["task"]["count"] == 5


@pytest.mark.parametrize("split", SPLITS)
def test_no_answer_at_all_says_what_to_type(split: Split, task: FixedTask, tmp_path: Path) -> None:
    folder = write_runs(tmp_path / "runs", task)
    for path in (folder / f"old-{split}").iterdir():
        path.unlink()
    (folder / f"old-{split}").rmdir()
    with pytest.raises(UsageError, match=rf"none of the \d+ {split} instances.*uphold evaluate OLD .*--split {split}"):
        recorded_answers(folder, task, tmp_path / "out")


def test_several_models_are_told_apart_by_name(task: FixedTask, tmp_path: Path) -> None:
    write_runs(tmp_path / "runs", task)
    write_runs(tmp_path / "runs", task, "other")
    with pytest.raises(UsageError, match=r"2 models \(old, other\): type .*runs#MODEL"):
        recorded_answers(tmp_path / "runs", task, tmp_path / "out")
    assert recorded_answers(f"{tmp_path / 'runs'}#other", task, tmp_path / "out").name == "other"
    with pytest.raises(UsageError, match="did you mean 'other'"):
        recorded_answers(f"{tmp_path / 'runs'}#othr", task, tmp_path / "out")


def test_a_run_store_serves_as_it_is(task: FixedTask, tmp_path: Path) -> None:
    """With the noise floor's second run of the same model, and runs of another task."""
    folder = write_runs(tmp_path / "runs", task)
    first = recorded_answers(folder, task, tmp_path / "first")
    repeated = first.run("test")
    write_run(folder / "repeated", list(repeated.records()), {**repeated.fingerprint, "batching": {"reverse": True}})
    other = {**repeated.fingerprint, "task": {**repeated.fingerprint["task"], "scorer": "another.v1"}}
    write_run(folder / "scored", list(repeated.records()), other)
    found = recorded_answers(folder, task, tmp_path / "out")
    assert found.fingerprint == first.fingerprint
    assert sorted(found.task.notes) == [
        "recorded answers of old: 1 x repeated run left out (the same model on the same instances)",
        "recorded answers of old: 1 x run of another task, scorer or decoding left out",
    ]


def test_another_task_is_refused_with_what_differs(task: FixedTask, tmp_path: Path) -> None:
    folder = write_runs(tmp_path / "runs", task, delimiter="?")
    with pytest.raises(UsageError, match=r"asked or scored otherwise.*delimiter '\?'"):
        recorded_answers(folder, task, tmp_path / "out")


def test_contradictions_are_refused_and_repetitions_counted(task: FixedTask, tmp_path: Path) -> None:
    runs = list(_runs(write_runs(tmp_path / "runs", task)))
    test = next(run for run in runs if run.fingerprint["task"]["split"] == "test")
    records = list(test.records())
    same = write_run(tmp_path / "same", records[:3], {**test.fingerprint, "seed": 1})
    found = recorded_answers([*runs, same], task, tmp_path / "out")
    assert found.task.notes == (*task.notes, "recorded answers of old: 3 x answer that was recorded twice")
    changed = [replace(records[0], output="d" if records[0].output != "d" else "a")]
    other = write_run(tmp_path / "other", changed, {**test.fingerprint, "seed": 1})
    with pytest.raises(DataError, match=r"has two recorded answers, '.' and '.': keep one"):
        recorded_answers([*runs, other], task, tmp_path / "out")


def _runs(folder: Path) -> list[Run]:
    from uphold.core.runs import load_run

    return [load_run(child) for child in sorted(folder.iterdir())]


def test_an_answer_to_another_prompt_is_left_out(task: FixedTask, tmp_path: Path) -> None:
    runs = _runs(write_runs(tmp_path / "runs", task))
    test = next(run for run in runs if run.fingerprint["task"]["split"] == "test")
    records = list(test.records())
    records[0] = replace(records[0], input="something else")
    wrong = write_run(tmp_path / "wrong", records, test.fingerprint)
    found = recorded_answers([*(run for run in runs if run is not test), wrong], task, tmp_path / "out")
    assert records[0].id not in found.records("test")
    assert "1 x answer to another prompt than the instance of that id has" in found.task.notes[-2]


def write_log(path: Path, task: Task, **changes: Any) -> Path:
    """A table of prompts and replies, as any tool writes one; ids are the tool's own."""
    rows = [
        {"qid": f"{split}-{number}", "prompt": one.prompt + " ", "response": f" {one.target}\n", "gold": "?", **changes}
        for split in SPLITS
        for number, one in enumerate(task.instances(split))
    ]
    rows.append({**rows[0], "qid": "odd", "prompt": "what else?"})
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", ["log.csv", "log.jsonl"])
def test_a_log_is_matched_by_prompt_and_scored_anew(name: str, task: FixedTask, tmp_path: Path) -> None:
    found = recorded_answers(write_log(tmp_path / name, task), task, tmp_path / "out")
    for split in SPLITS:
        records = found.records(split)
        assert records.keys() == {one.id for one in task.instances(split)}
        assert all(record.correct and record.output == record.target and record.tags for record in records.values())
    assert found.task.notes[-1] == "recorded answers of log: 1 x logged answer to a question of no split"


def test_a_reply_that_is_no_option_is_left_out_and_counted(task: FixedTask, tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.jsonl", task)
    lines = log.read_text().splitlines()
    lines[0] = json.dumps({**json.loads(lines[0]), "response": "I cannot say"})
    log.write_text("\n".join(lines))
    found = recorded_answers(log, task, tmp_path / "out")
    assert len(found.records("train")) == len(task.instances("train")) - 1
    assert any("1 x logged answer that is none of the options or empty" in note for note in found.task.notes)


def test_a_log_of_written_answers(tmp_path: Path) -> None:
    rule, function = scorer("exact")
    splits: dict[Split, tuple[Instance, ...]] = {
        split: tuple(Instance(f"{split} {number}", str(number)) for number in range(4)) for split in SPLITS
    }
    splits["test"] += (Instance("twice", "1"), Instance("twice", "2"))
    task = FixedTask("sums", "generate", splits, rule, function)
    log = write_log(tmp_path / "log.jsonl", task)
    found = recorded_answers(log, task, tmp_path / "out")
    assert {record.correct for record in found.records("test").values()} == {True}
    assert len(found.records("test")) == 4
    assert any("2 x logged answer whose prompt several instances have" in note for note in found.task.notes)


def test_what_is_neither_run_nor_log(task: FixedTask, tmp_path: Path, store: RunStore) -> None:
    with pytest.raises(DataError, match=r"holds no recorded answers.*uphold evaluate OLD"):
        recorded_answers(tmp_path / "nothing", task, tmp_path / "out")
    with pytest.raises(UsageError, match="not int"):
        recorded_answers(3, task, tmp_path / "out")


def test_equal_answers_with_other_likelihoods_are_other_answers(task: FixedTask, tmp_path: Path) -> None:
    """They teach something else, so a training that followed the ones must not be taken for one of the others."""
    found = []
    for number, logprobs in enumerate([(), (-1.0, -2.0, -3.0, -4.0), (-4.0, -3.0, -2.0, -1.0)]):
        runs = []
        for run in (load_run(path) for path in sorted(write_runs(tmp_path / "runs", task).iterdir())):
            told = [replace(record, option_logprobs=logprobs) for record in run.records()]
            runs.append(write_run(tmp_path / f"{number}" / run.path.name, told, run.fingerprint))
        found.append(recorded_answers(runs, task, tmp_path / f"out {number}").fingerprint["recorded"])
    assert len(set(found)) == 3


def test_no_runs_are_no_answers(task: FixedTask, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"\[\] holds no recorded answers"):
        recorded_answers([], task, tmp_path / "out")
