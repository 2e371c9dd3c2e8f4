from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.cli.test_main import assert_refused, uphold
from tests.conftest import make_record, make_run
from uphold.cli.main import app
from uphold.core.errors import NotComparableError, StorageError, UsageError

RUNNER = CliRunner()


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    """Three versions: 10, 8 and 12 of 20 right."""
    made = []
    for name, right in (("v1", range(10)), ("v2", range(4, 12)), ("v3", range(12))):
        records = [make_record(i, i in right, "yes \x1b[31m" if i in right else "no") for i in range(20)]
        make_run(tmp_path / name, records, f"{name}\x1b[31m")
        made.append(str(tmp_path / name))
    return made


def test_the_table_is_printed(folders: list[str]) -> None:
    result = RUNNER.invoke(app, ["history", *folders])
    assert result.exit_code == 0
    assert "task: 20 instances, 3 versions" in result.stdout
    assert "        4  recovered" in result.stdout
    assert "\x1b" not in result.stdout


def test_json_and_files(folders: list[str], tmp_path: Path) -> None:
    result = RUNNER.invoke(app, ["history", *folders, "--json", "--out", str(tmp_path / "out")])
    values = json.loads(result.stdout)
    assert values["versions"][1]["previous"]["negative"] == 4
    assert json.loads((tmp_path / "out/history.json").read_text()) == values
    assert result.stderr.strip().endswith("history.html")
    assert (tmp_path / "out/history.md").is_file()


def test_what_cannot_be_followed_is_refused(folders: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for arguments, kind, text in (
        (folders[:1], UsageError, "2 to 62 runs, not 1"),
        ([folders[0], folders[0]], NotComparableError, "one and the same run"),
        ([folders[0], "./nothing"], UsageError, "neither a stored run nor another tool's log"),
        ([*folders, "--task", "tusk"], UsageError, "did you mean 'task'?"),
        ([*folders, "--out", str(tmp_path / "file")], StorageError, "is a file"),
    ):
        result = RUNNER.invoke(app, ["history", *arguments])
        assert isinstance(result.exception, kind)
        assert text in str(result.exception)
        assert result.stdout == ""


def test_runs_of_other_settings_need_a_word(folders: list[str], tmp_path: Path) -> None:
    make_run(tmp_path / "x", [make_record(i, True, "a") for i in range(15)], "x", scorer="exact.v1")
    arguments = [*folders, str(tmp_path / "x")]
    assert isinstance(RUNNER.invoke(app, ["history", *arguments]).exception, NotComparableError)
    assert "15 instances, 4 versions" in RUNNER.invoke(app, ["history", *arguments, "--allow-mismatch"]).stdout


def test_torch_is_not_needed(folders: list[str], tmp_path: Path) -> None:
    code = (
        "import sys; from uphold.cli.main import app\n"
        "try: app(sys.argv[1:])\n"
        "except SystemExit as stop: code = stop.code\n"
        "print([name for name in ('torch', 'transformers', 'peft') if name in sys.modules], code)"
    )
    command = [sys.executable, "-c", code, "history", *folders, "--out", str(tmp_path / "out"), "--quiet"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "[] 0"


def test_exit_codes(folders: list[str]) -> None:
    assert_refused(uphold("history", folders[0]), "2 to 62 runs, not 1")
    assert_refused(uphold("history", folders[0], folders[0]), "one and the same run", code=4)


def test_logs_are_followed_as_runs_are(tmp_path: Path) -> None:
    for version, said in (("v1", "abc"), ("v2", "axc"), ("v3", "abx")):
        rows = [f"{number},{answer},{'abc'[number]}" for number, answer in enumerate(said)]
        (tmp_path / f"{version}.csv").write_text("\n".join(["nr,said,gold", *rows]))
    logs = [str(tmp_path / f"{version}.csv") for version in ("v1", "v2", "v3")]
    result = RUNNER.invoke(app, ["history", *logs, "--columns", "id=nr,output=said", "--json"])
    values = json.loads(result.stdout)
    assert {entry["marks"]: entry["count"] for entry in values["patterns"]} == {"111": 1, "101": 1, "110": 1}
