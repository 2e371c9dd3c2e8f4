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
