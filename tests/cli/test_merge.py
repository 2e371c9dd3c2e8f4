from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

from tests.merge.engine.checkpoints import decoder, linear, near, save_model
from uphold.cli.merge import merge, size
from uphold.core.errors import UpholdError, UsageError
from uphold.models.fingerprint import weights_hash

RUNNER = CliRunner()
app = typer.Typer()
app.command()(merge)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    base = decoder(0)
    models = [save_model(tmp_path / str(seed), near(base, seed)) for seed in (1, 2)]
    path = tmp_path / "recipe.yml"
    path.write_text(yaml.safe_dump(linear(models, [1, 2])))
    return path


def run(*arguments: Any) -> Any:
    return RUNNER.invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


def test_a_recipe_becomes_a_model(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run(recipe, "--out", out, "--threads", 1)
    assert result.exit_code == 0, result.output
    assert "2 models by linear: 12 tensors" in result.stdout
    assert "merging: 12/12" in result.stderr
    assert f"model: {out}" in result.stderr
    again = run(recipe, "--out", out, "--json", "--quiet")
    content = json.loads(again.stdout)
    assert content["reused"]
    assert content["weights"] == weights_hash(out)


def test_a_dry_run_writes_nothing(recipe: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    result = run(recipe, "--dry-run")
    assert result.exit_code == 0, result.output
    for word in ("method   linear", "tensors  12 (12 merged, 0 copied)", "reads ", "writes ", "memory "):
        assert word in result.stdout
    assert json.loads(run(recipe, "--dry-run", "--json").stdout)["bytes_written"] > 0
    assert sorted(tmp_path.iterdir()) == before


def test_diagnostics_and_shards(recipe: Path, tmp_path: Path) -> None:
    result = run(recipe, "--out", tmp_path / "out", "--diagnostics", "--shard-size", "400", "--threads", 1)
    assert result.exit_code == 0, result.output
    assert "conflicts %" in result.stdout
    assert "model.norm.weight" in result.stdout
    assert (tmp_path / "out/model.safetensors.index.json").is_file()


def test_warnings_are_told(recipe: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(recipe.read_text()) | {"parameters": {"t": 1}}
    recipe.write_text(yaml.safe_dump(content))
    assert "warning: 'linear' has no parameter 't'" in run(recipe, "--out", tmp_path / "out").stderr
    assert "warning: 'linear' has no parameter 't'" in run(recipe, "--dry-run").stdout


def test_what_cannot_be_is_one_line_and_exit_code_2(recipe: Path, tmp_path: Path) -> None:
    for arguments in ([recipe], [tmp_path / "gone.yml", "--dry-run"], [recipe, "--out", recipe]):
        error = run(*arguments).exception
        assert isinstance(error, UpholdError)
        assert error.exit_code == 2
        assert "\n" not in str(error)
    recipe.write_text("merge_methd: linear\nmodels: [{model: a}]\n")
    error = run(recipe, "--dry-run").exception
    assert isinstance(error, UsageError)
    assert "did you mean 'merge_method'" in str(error)


@pytest.mark.parametrize(
    ("text", "count"), [("5GB", 5 * 10**9), ("500 mb", 5 * 10**8), ("1.5GiB", 3 * 2**29), ("1000", 1000)]
)
def test_sizes(text: str, count: int) -> None:
    assert size(text) == count


@pytest.mark.parametrize("text", ["", "5 apples", "-1GB", "0", "GB", "nan"])
def test_sizes_that_are_none(recipe: Path, text: str) -> None:
    with pytest.raises(typer.BadParameter):
        size(text)
    assert run(recipe, "--dry-run", "--shard-size", text).exit_code == 2
