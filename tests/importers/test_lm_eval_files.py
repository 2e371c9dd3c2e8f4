from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.importers.lm_eval_logs import DATE, results, sample, write_log
from uphold.core.errors import CorruptError
from uphold.importers.lm_eval_files import is_results, is_samples, sample_files


def test_tasks_models_and_dates_of_an_output_path(tmp_path: Path) -> None:
    write_log(tmp_path / "org__old", [sample(0)], task="a_b_2024-01-01")
    write_log(tmp_path / "org__new", [sample(0)], task="a", found=results("a", model="org/new"))
    found = sample_files(tmp_path)
    assert [(file.task, file.model, file.date) for file in found] == [
        ("a", "org/new", DATE),
        ("a_b_2024-01-01", "org/old", DATE),
    ]
    assert found[0].of_task("versions") == 1.0
    assert found[0].of_task("none") is None
    assert found[0].config("batch_size") == 4


def test_results_beside_the_samples_under_their_own_name(tmp_path: Path) -> None:
    """So they are where the output path ends in .json."""
    path = write_log(tmp_path, [sample(0)], found={})
    (tmp_path / f"mine_{DATE}.json").write_text(json.dumps(results()))
    (tmp_path / f"other_{DATE}.json").write_text("{}")
    assert sample_files(path)[0].model == "org/old"
    assert is_results(tmp_path / f"mine_{DATE}.json")
    assert sample_files(tmp_path / f"mine_{DATE}.json") == sample_files(path)


def test_models_are_named_by_what_is_known(tmp_path: Path) -> None:
    for found, name in (
        ({"config": {"model_args": "dtype=x,pretrained=org/a,y=1"}}, "org/a"),
        ({"config": {"model_args": {"pretrained": "org/b"}}}, "org/b"),
        ({"config": {}}, "folder"),
    ):
        path = write_log(tmp_path / "folder", [sample(0)], found={"results": {}, **found})
        assert sample_files(path)[0].model == name


def test_old_names_hold_the_task_behind_the_arguments(tmp_path: Path) -> None:
    path = tmp_path / "pretrained=org-a,dtype=float_long_task.jsonl"
    path.write_text(json.dumps([sample(0)]))
    assert sample_files(path)[0].task == "dtype=float_long_task"
    (tmp_path / "results.json").write_text(json.dumps({"results": {"task": {}, "long_task": {}, "other": {}}}))
    assert sample_files(path)[0].task == "long_task"


def test_what_is_neither(tmp_path: Path) -> None:
    for name, text in (
        ("results_a.json", '{"a": 1}'),
        ("results_b.json", '{"evalId": 1, "results": {"version": 3}}'),
        ("other.json", '{"results": {}}'),
        ("a.jsonl", '{"doc_id": 1}'),
    ):
        (tmp_path / name).write_text(text)
        assert not is_results(tmp_path / name)
        assert not is_samples(tmp_path / name)
    assert not is_samples(tmp_path)


def test_damaged_results_are_named(tmp_path: Path) -> None:
    path = write_log(tmp_path, [sample(0)])
    (tmp_path / f"results_{DATE}.json").write_text('{"results": {')
    with pytest.raises(CorruptError, match=r"results_.*json: not valid JSON"):
        sample_files(path)
