from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.report.test_pareto import search as made_search
from uphold.cli.main import app
from uphold.core import registry
from uphold.core.errors import TokenizerMismatchError, UsageError
from uphold.repair.uphold import UpholdConfig

RUNNER = CliRunner()
WIDE = {"COLUMNS": "200"}


def test_every_registered_method_is_a_command_with_its_options() -> None:
    assert "muscle" in RUNNER.invoke(app, ["repair", "--help"]).stdout
    text = RUNNER.invoke(app, ["repair", "muscle", "--help"], env=WIDE).stdout
    for option in ("--temperature", "--mask", "--kl-weight", "--no-controls", "--rank", "--epochs", "--seed"):
        assert option in text
    assert "T of the softmaxes of teachers and student" in text


def test_methods_are_listed_by_kind() -> None:
    text = RUNNER.invoke(app, ["repair", "--help"], env=WIDE).stdout
    panels = [line for line in text.splitlines() if line.startswith("╭")]
    assert "Choosing" in panels[1]
    assert "Trained: a compatibility adapter" in panels[2]
    trained = text.index("Trained: a compatibility adapter")
    assert text.index(" search ") < trained < text.index(" muscle ")


def test_an_unknown_method_or_mask_is_refused() -> None:
    assert isinstance(RUNNER.invoke(app, ["repair", "mussel"]).exception, UsageError)
    wrong = RUNNER.invoke(app, ["repair", "muscle", "a", "b", "--task", "demo", "--out", "x", "--mask", "nothing"])
    assert wrong.exit_code == 2
    assert "student-wrong" in wrong.output


@pytest.fixture
def default(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A default method that notes what it was called with."""
    calls: list[Any] = []

    def function(old: Any, new: Any, task: Any, *, out: Any, config: UpholdConfig, progress: Any) -> Any:
        """Repair."""
        calls.append((old, new, config.epochs))
        raise UsageError("enough")

    registry.methods()
    method = registry.Method("repair", "uphold", "", function)
    monkeypatch.setitem(registry._methods, ("repair", "uphold"), method)
    return calls


@pytest.mark.parametrize(
    "typed",
    [
        ["v1", "v2", "--task", "demo", "--out", "x", "--epochs", "3"],
        ["--task", "demo", "--epochs", "3", "v1", "v2", "--out", "x"],
        ["uphold", "v1", "v2", "--task", "demo", "--out", "x", "--epochs", "3"],
    ],
)
def test_two_models_without_a_method_run_the_default_one(typed: list[str], default: list[Any]) -> None:
    result = RUNNER.invoke(app, ["repair", *typed])
    assert str(result.exception) == "enough"
    assert default == [("v1", "v2", 3)]


@pytest.mark.parametrize("typed", [["mussel", "v1", "v2", "--task", "demo"], ["v1", "--task", "demo"]])
def test_anything_else_is_taken_for_a_method(typed: list[str], default: list[Any]) -> None:
    assert "unknown repair method" in str(RUNNER.invoke(app, ["repair", *typed]).exception)
    assert default == []


def test_a_method_may_not_be_called_search(monkeypatch: pytest.MonkeyPatch) -> None:
    registry.methods()
    taken = registry.Method("repair", "search", "", lambda old, new, task, *, out: None)
    monkeypatch.setitem(registry._methods, ("repair", "search"), taken)
    assert "needs another name" in str(RUNNER.invoke(app, ["repair", "--help"]).exception)


def test_a_model_that_is_missing_is_not_only_taken_for_a_misspelt_method(default: list[Any]) -> None:
    assert "two models are needed" in str(RUNNER.invoke(app, ["repair", "v1", "--task", "demo"]).exception)


@pytest.mark.parametrize("method", [["uphold"], []])
@pytest.mark.parametrize("twice", ["task", "out"])
def test_one_task_and_one_folder(method: list[str], twice: str, default: list[Any]) -> None:
    typed = ["repair", *method, "v1", "v2", "--task", "demo", "--out", "x", f"--{twice}", "y"]
    assert f"--{twice} was given 2 times" in str(RUNNER.invoke(app, typed).exception)
    assert default == []


@pytest.mark.parametrize("maker", [["repair", "kd", "v1", "v2"], ["repair", "search", "v1", "v2"], ["adapt", "v1"]])
def test_what_another_method_made_is_not_written_over(maker: list[str], tmp_path: Path) -> None:
    (tmp_path / "repair.json").write_text('{"method": "muscle"}')
    result = RUNNER.invoke(app, [*maker, "--task", "demo", "--out", str(tmp_path)])
    assert "holds a repair by muscle" in str(result.exception)


def test_two_tokenizers_name_the_method_that_takes_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def function(old: Any, new: Any, task: Any, *, out: Any, progress: Any) -> Any:
        """Repair."""
        raise TokenizerMismatchError("two tokenizers")

    registry.methods()
    said = {}
    for name in ("kd", "cross-vocabulary"):
        monkeypatch.setitem(registry._methods, ("repair", name), registry.Method("repair", name, "", function))
        result = RUNNER.invoke(app, ["repair", name, "v1", "v2", "--task", "demo", "--out", str(tmp_path)])
        assert isinstance(result.exception, TokenizerMismatchError)
        said[name] = str(result.exception)
    assert "'uphold repair cross-vocabulary'" in said["kd"]
    assert said["cross-vocabulary"] == "two tokenizers"


def test_no_option_is_cut_off_in_a_terminal_of_80_columns() -> None:
    for name in ("search", *(method.name for method in registry.methods("repair"))):
        text = RUNNER.invoke(app, ["repair", name, "--help"], env={"COLUMNS": "80"}).stdout
        assert "…" not in text, name
        assert max(map(len, text.splitlines())) <= 80


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """What a search is called with; it chooses nothing."""
    calls: list[Any] = []

    def run(*models: Any, out: Path, **options: Any) -> Any:
        calls.append((models, options))
        (out / "trials").mkdir(parents=True)
        found = made_search(out)
        object.__setattr__(found, "chosen", None)
        found.save()
        return found

    monkeypatch.setattr(importlib.import_module("uphold.repair.search"), "search", run)
    return calls


def test_search_passes_on_what_was_typed_and_ends_with_3_where_nothing_helps(asked: list[Any], tmp_path: Path) -> None:
    typed = ["v1", "v2", "--task", "demo", "--out", str(tmp_path / "out"), "--method", "muscle", "--method", "kd"]
    more = ["--budget", "5", "--margin", "1%", "--strict", "--no-controls", "--set", "learning-rate=1e-3", "--quiet"]
    result = RUNNER.invoke(app, ["repair", "search", *typed, *more])
    assert result.exit_code == 3
    [(models, options)] = asked
    assert models == ("v1", "v2", "demo")
    config = options["config"]
    assert (config.methods, config.minutes, config.trials, config.margin) == (("muscle", "kd"), 5, None, 0.01)
    assert (config.strict, config.controls, config.pairs) == (True, False, False)
    assert options["options"] == {"learning_rate": "1e-3"}
    assert "none to ship" in result.stdout
    assert (tmp_path / "out" / "search.html").is_file()


def test_search_for_programs_and_a_wrong_option(asked: list[Any], tmp_path: Path) -> None:
    typed = ["repair", "search", "v1", "v2", "--task", "demo", "--out", str(tmp_path / "out"), "--quiet"]
    values = json.loads(RUNNER.invoke(app, [*typed, "--json"]).stdout)
    assert values["chosen"] is None
    assert [trial["status"] for trial in values["trials"]] == ["finished", "finished", "finished", "failed"]
    assert "expected OPTION=VALUE" in str(RUNNER.invoke(app, [*typed, "--set", "epochs"]).exception)
