from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from tests.conftest import make_record, make_run
from uphold.cli.main import app

RUNNER = CliRunner()


def test_report_reads_what_compare_saved(tmp_path: Path) -> None:
    runs = [
        str(make_run(tmp_path / name, [make_record(i, i % step > 0, name) for i in range(20)], name).path)
        for name, step in (("old", 3), ("new", 4))
    ]
    assert RUNNER.invoke(app, ["compare", *runs, "--out", str(tmp_path / "out")]).exit_code == 0
    again = RUNNER.invoke(app, ["report", str(tmp_path / "out"), "--out", str(tmp_path / "again")])
    assert again.stdout.strip() == str(tmp_path / "again" / "report.html")
    for name in ("report.html", "report.md", "report.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_every_task_of_a_folder_gets_its_report(tmp_path: Path) -> None:
    for name, step in (("old", 3), ("new", 4)):
        for task in ("art", "law"):
            records = [make_record(i, i % step > 0, name) for i in range(20)]
            make_run(tmp_path / name / task, records, name, name=task)
    pair = [str(tmp_path / name) for name in ("old", "new")]
    assert RUNNER.invoke(app, ["compare", *pair, "--out", str(tmp_path / "out"), "--quiet"]).exit_code == 0
    for more, place in (([], "out"), (["--out", str(tmp_path / "again")], "again")):
        found = RUNNER.invoke(app, ["report", str(tmp_path / "out"), *more])
        assert found.stdout.split() == [str(tmp_path / place / task / "report.html") for task in ("art", "law")]
        assert (tmp_path / place / "law" / "report.md").is_file()
