from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from typer.testing import CliRunner, Result

from tests.cli.test_main import assert_refused, uphold
from tests.conftest import write_task
from tests.gate_runs import instance, update
from uphold.cli.main import app

RUNNER = CliRunner()
GITHUB = ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY")


@pytest.fixture(autouse=True)
def not_on_github(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in GITHUB:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A policy beside two runs with 40 negative flips in 400."""
    update(tmp_path / "runs", negative=40)
    write_policy(tmp_path, "max_nfr: 20%")
    return tmp_path


def write_policy(folder: Path, limit: str, more: str = "old: runs/old\nnew: runs/new\n") -> Path:
    path = folder / "gate.yml"
    path.write_text(f"{more}limits:\n  - {limit}\n")
    return path


def gate(*arguments: str | Path) -> Result:
    return RUNNER.invoke(app, ["gate", *map(str, arguments)])


def test_the_policy_names_the_versions(project: Path) -> None:
    result = gate(project / "gate.yml")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == "gate pass: 1 passed of 1 checks"
    assert result.stderr == ""


@pytest.mark.parametrize(("limit", "code"), [("max_nfr: 20%", 0), ("max_nfr: 2%", 1), ("max_nfr: 12%", 3)])
def test_the_exit_code_is_the_verdict(project: Path, limit: str, code: int) -> None:
    result = gate(write_policy(project, limit))
    assert result.exit_code == code
    verdict = json.loads(gate(project / "gate.yml", "--json").stdout)
    assert verdict["exit_code"] == code
    assert result.stdout.splitlines()[-1].lower().startswith(f"gate {verdict['verdict']}")


def test_inconclusive_can_be_allowed(project: Path) -> None:
    write_policy(project, "max_nfr: 12%")
    result = gate(project / "gate.yml", "--allow-inconclusive")
    assert result.exit_code == 0
    assert "INCONCLUSIVE (allowed)" in result.stdout
    write_policy(project, "max_nfr: 2%")
    assert gate(project / "gate.yml", "--allow-inconclusive").exit_code == 1


def test_versions_on_the_command_line_win(project: Path, tmp_path: Path) -> None:
    old, new = update(tmp_path / "more", negative=0)
    write_policy(project, "max_nfr: 2%")
    assert gate(project / "gate.yml").exit_code == 1
    assert gate(project / "gate.yml", old.path, new.path).exit_code == 0


def test_everything_is_written_and_read_again(project: Path) -> None:
    out = project / "out"
    files = ["--junit", project / "ci" / "gate.xml", "--comment", project / "comment.md"]
    result = gate(write_policy(project, "max_nfr: 2%"), "--out", out, *files)
    assert result.exit_code == 1
    saved = json.loads((out / "gate.json").read_text())
    assert (saved["verdict"], saved["checks"][0]["flips"][0]) == ("fail", instance(0))
    assert ET.parse(project / "ci" / "gate.xml").getroot().get("failures") == "1"
    assert (project / "comment.md").read_text().startswith("<!-- uphold gate -->\n\n> [!CAUTION]")
    for name in ("comparison.json", "report.html", "report.md", "report.json"):
        assert (out / name).is_file()
    again = gate(project / "gate.yml", out)
    assert again.exit_code == 1
    assert again.stdout == result.stdout


def test_several_tasks_are_saved_side_by_side(tmp_path: Path) -> None:
    for version, negative in (("a", 0), ("b", 40)):
        update(tmp_path / version, negative=negative, name=f"task-{version}")
    for role in ("old", "new"):
        for version in ("a", "b"):
            target = tmp_path / "runs" / role / version
            target.parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / version / role).rename(target)
    policy = write_policy(tmp_path, "{task: '*-b', max_nfr: 2%}\n  - max_nfr: 20%")
    result = gate(policy, "--out", tmp_path / "out")
    assert result.exit_code == 1, result.output
    checks = json.loads((tmp_path / "out" / "gate.json").read_text())["checks"]
    assert [(check["task"], check["limit"], check["verdict"]) for check in checks] == [
        ("task-b", 0.02, "fail"),
        ("task-a", 0.2, "pass"),
        ("task-b", 0.2, "pass"),
    ]
    assert len(list((tmp_path / "out").glob("*/gate.json"))) == 2
    assert gate(policy, tmp_path / "out").stdout == result.stdout
    one = write_policy(tmp_path, "max_nfr: 20%", "old: runs/old\nnew: runs/new\ntasks: [task-b]\n")
    for arguments, task in (
        ([], "task-b"),
        (["--task", "task-a"], "task-a"),
        ([tmp_path / "out", "--task", "task-a"], "task-a"),
    ):
        lines = gate(one, *arguments).stdout.splitlines()
        assert lines[1].split()[0] == task
        assert lines[-1] == "gate pass: 1 passed of 1 checks"
    assert_refused(
        uphold("gate", one, tmp_path / "out", "--task", "task-c"), "unknown task 'task-c': did you mean 'task-"
    )


def test_models_are_evaluated_on_the_policys_tasks(model_v1: Path, model_v2: Path, tmp_path: Path) -> None:
    write_task(tmp_path)
    versions = f"old: {model_v1}\nnew: {model_v2}\ntasks: [task.yaml]\n"
    result = gate(write_policy(tmp_path, "{slice: half=low, max_nfr: 99%}", versions), "--quiet")
    assert result.exit_code in (0, 1, 3), result.output
    assert "half=low" in result.stdout


def test_on_github_annotations_go_to_stderr_and_the_summary_is_appended(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = project / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    result = gate(write_policy(project, "max_nfr: 2%"), "--quiet")
    assert result.stderr.splitlines()[0].startswith("::error title=uphold gate%3A task%2C NFR::40 negative flips")
    assert "::" not in result.stdout
    assert summary.read_text().startswith("before\n## gate FAIL: 1 failed of 1 checks\n")


def test_bad_input_is_one_line_and_exit_code_2(project: Path, tmp_path: Path) -> None:
    policy = project / "gate.yml"
    assert_refused(uphold("gate", tmp_path / "absent.yml"), "cannot read the policy")
    assert_refused(uphold("gate", policy, tmp_path / "runs" / "old"), "no comparison in")
    assert_refused(uphold("gate", policy, "only-old"), "'only-old' alone cannot be compared")
    write_policy(project, "max_nrf: 2%")
    assert_refused(uphold("gate", policy), "gate.yml, line 4", "did you mean 'max_nfr'?")
    write_policy(project, "{slice: customer=acne, max_nfr: 2%}")
    assert_refused(uphold("gate", policy), "did you mean 'customer=acme'?")
    write_policy(project, "max_nfr: 2%", "old: runs/old\n")
    assert_refused(uphold("gate", policy), "does not name both old and new")
    write_policy(project, "max_nfr: 2%", "old: runs/old\nnew: runs/old\n")
    assert_refused(uphold("gate", policy), "one and the same run", code=4)
    write_policy(project, "max_nfr: 2%")
    assert_refused(uphold("gate", policy, "--junit", project / "gate.yml" / "x.xml"), "gate.yml is a file")


def test_it_starts_without_torch(project: Path) -> None:
    code = (
        "import sys; from uphold.cli.main import app\n"
        "try: app(sys.argv[1:])\n"
        "except SystemExit as stop: code = stop.code\n"
        "heavy = ('torch', 'transformers', 'peft', 'pandas', 'scipy.stats', 'matplotlib')\n"
        "print([name for name in heavy if name in sys.modules], code, file=sys.stderr)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, "gate", str(project / "gate.yml")],
        capture_output=True, text=True, check=True, env={**os.environ},
    )  # fmt: skip
    assert run.stderr.splitlines()[-1] == "[] 0"


def test_files_that_cannot_be_written_are_refused_before_anything_is_evaluated(tmp_path: Path) -> None:
    policy = write_policy(tmp_path, "max_nfr: 2%", "old: embedded:v1\nnew: embedded:v2\ntasks: [demo]\n")
    for option in ("--junit", "--comment"):
        assert_refused(uphold("gate", policy, option, tmp_path), "is a folder, but a file is needed")
