from __future__ import annotations

from typer.testing import CliRunner

from uphold.cli.main import app
from uphold.core.errors import UsageError

RUNNER = CliRunner()


def test_every_registered_method_is_a_command_with_its_options() -> None:
    assert "muscle" in RUNNER.invoke(app, ["repair", "--help"]).stdout
    text = RUNNER.invoke(app, ["repair", "muscle", "--help"], env={"COLUMNS": "200"}).stdout
    for option in ("--temperature", "--mask", "--kl-weight", "--no-controls", "--rank", "--epochs", "--seed"):
        assert option in text
    assert "T of both softmaxes" in text


def test_an_unknown_method_or_mask_is_refused() -> None:
    assert isinstance(RUNNER.invoke(app, ["repair", "mussel"]).exception, UsageError)
    wrong = RUNNER.invoke(app, ["repair", "muscle", "a", "b", "--task", "demo", "--out", "x", "--mask", "nothing"])
    assert wrong.exit_code == 2
    assert "student-wrong" in wrong.output
