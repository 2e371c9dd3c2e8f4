from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from typer.testing import CliRunner

from uphold.cli.options import field_docs, with_config_options


@dataclass(frozen=True)
class Base:
    rate: float = 0.5
    """How
    fast."""


@dataclass(frozen=True)
class Config(Base):
    steps: int = 3
    """How long."""
    mode: Literal["a", "b"] = "a"
    plain: bool = True
    """Plainly, in so many `steps`."""
    extra: bool = False


def test_the_string_below_a_field_is_its_help() -> None:
    assert field_docs(Config) == {
        "rate": "How fast.",
        "steps": "How long.",
        "plain": "Plainly, in so many `steps`.",
    }


def test_given_options_become_overrides_and_others_stay_out() -> None:
    import typer

    seen: list[Any] = []

    def command(name: str, overrides: Any = None) -> None:
        """Do it."""
        seen.append((name, overrides))

    app = typer.Typer()
    app.command()(with_config_options(command, Config))
    runner = CliRunner()
    assert runner.invoke(app, ["x", "--steps", "7", "--mode", "b", "--no-plain"]).exit_code == 0
    assert runner.invoke(app, ["x", "--plain", "--extra"]).exit_code == 0
    assert runner.invoke(app, ["x", "--no-extra"]).exit_code == 0
    assert runner.invoke(app, ["x"]).exit_code == 0
    assert seen == [
        ("x", {"steps": 7, "mode": "b", "plain": False}),
        ("x", {"plain": True, "extra": True}),
        ("x", {"extra": False}),
        ("x", {}),
    ]
    assert runner.invoke(app, ["x", "--mode", "c"]).exit_code == 2


def test_the_help_has_a_method_s_own_options_first_with_choices_and_defaults() -> None:
    import typer

    def command(overrides: Any = None) -> None:
        """Do it."""

    app = typer.Typer()
    app.command()(with_config_options(command, Config))
    text = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "120"}).stdout
    own, shared = text.split("Recipe options, shared with other methods")
    for part in (
        "--steps",
        "[default: (3)]",
        "a or b",
        "--no-plain",
        "Turn off: Plainly, in so many --steps.",
        "--extra",
    ):
        assert part in own
    assert "How fast. [default: (0.5)]" in shared
    assert "--no-extra" not in text


def test_defaults_are_those_of_the_paper_s_recipe() -> None:
    from uphold.cli.main import app

    text = CliRunner().invoke(app, ["adapt", "--help"], env={"COLUMNS": "120"}).stdout
    batch = text[text.index("--micro-batch") :]
    assert batch[: batch.index("]") + 1].endswith("[default: (8)]")
