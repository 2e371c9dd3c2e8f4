from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.cli.test_main import assert_refused, uphold
from tests.conftest import write_task
from uphold.cli.main import app
from uphold.core.runs import load_run

RUNNER = CliRunner()


def test_models_on_tasks_as_a_table_and_a_closing_line(model_v1: Path, model_v2: Path, tmp_path: Path) -> None:
    task = write_task(tmp_path)

    run = uphold("evaluate", model_v1, model_v2, "--task", task)
    again = uphold("evaluate", model_v1, "--task", task)

    assert run.returncode == 0, run.stderr
    assert str(model_v1) in run.stdout
    assert str(model_v2) in run.stdout
    assert run.stdout.count("first-letter") == 2
    assert "60 instances asked, 0 found in the store" in run.stderr.splitlines()[-1]
    assert "tokens/s" in run.stderr.splitlines()[-1]
    assert "0 instances asked, 30 found in the store" in again.stderr.splitlines()[-1]
    assert "(stored)" in again.stderr


def test_json_names_the_run_that_holds_the_records(model_v1: Path, tmp_path: Path) -> None:
    result = RUNNER.invoke(app, ["evaluate", str(model_v1), "--task", str(write_task(tmp_path)), "--json", "--quiet"])

    [run] = json.loads(result.stdout)["runs"]
    assert run["count"] == 30
    stored = load_run(Path(run["path"]))
    assert run["score"] == sum(record.correct is True for record in stored.records()) / 30


def test_a_dry_run_asks_nothing(model_v1: Path, model_v2: Path, tmp_path: Path) -> None:
    task = str(write_task(tmp_path))

    one = RUNNER.invoke(app, ["evaluate", str(model_v1), "--task", task, "--dry-run"])
    both = RUNNER.invoke(app, ["compare", str(model_v1), str(model_v2), "--task", task, "--dry-run", "--json"])

    assert "30 instances, 0 of them stored; 120 requests" in one.stdout
    estimates = json.loads(both.stdout)["estimates"]
    assert [entry["requests"] for entry in estimates] == [120, 120, 120]
    assert not list((tmp_path / "store").glob("*/run.json"))


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--executor", "rai"], ["unknown executor 'rai'", "'ray'"]),
        (["--split", "tset"], ["unknown split 'tset'", "'test'"]),
    ],
)
def test_mistyped_options_are_answered_in_one_line(
    model_v1: Path, tmp_path: Path, arguments: list[str], parts: list[str]
) -> None:
    run = uphold("evaluate", model_v1, "--task", write_task(tmp_path), *arguments)

    assert_refused(run, *parts)


def test_an_unreachable_endpoint_is_told_in_one_line(tmp_path: Path) -> None:
    run = uphold("evaluate", "http://127.0.0.1:9/v1?retries=0#m", "--task", write_task(tmp_path), "--quiet")

    assert_refused(run, "127.0.0.1:9")
