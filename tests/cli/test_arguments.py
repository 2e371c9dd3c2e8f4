from __future__ import annotations

from typer.testing import CliRunner

from uphold.cli.main import app

RUNNER = CliRunner()


def test_numbers_out_of_range_are_wrong_usage() -> None:
    for option, value in (("--batch-size", "0"), ("--seed", "-1"), ("--max-nfr", "1.5")):
        run = RUNNER.invoke(app, ["compare", "a", "b", option, value])
        assert run.exit_code == 2, option
        assert option in run.output


def test_what_is_required_is_named() -> None:
    assert "--task" in RUNNER.invoke(app, ["adapt", "base", "--out", "x"]).output
    assert "OLD" in RUNNER.invoke(app, ["compare"]).output
