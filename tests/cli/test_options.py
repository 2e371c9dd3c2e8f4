from __future__ import annotations

import inspect
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


def test_the_string_below_a_field_is_its_help() -> None:
    assert field_docs(Config) == {"rate": "How fast.", "steps": "How long."}


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
    assert runner.invoke(app, ["x"]).exit_code == 0
    assert seen == [("x", {"steps": 7, "mode": "b", "plain": False}), ("x", {})]
    assert runner.invoke(app, ["x", "--mode", "c"]).exit_code == 2
    assert inspect.signature(with_config_options(command, Config)).parameters.keys() == {
        "name",
        "rate",
        "steps",
        "mode",
        "plain",
    }
