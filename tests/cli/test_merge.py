from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

from tests.conftest import save_tiny_model
from tests.merge.engine.checkpoints import decoder, linear, near, save_model
from uphold.cli.merge import grid, merge, size
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


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two tiny models, the second one with a LoRA."""
    from peft import LoraConfig, get_peft_model

    from uphold.models.load import load

    folder = tmp_path_factory.mktemp("adapted")
    one, other = (str(save_tiny_model(folder / str(seed), seed)) for seed in (1, 2))
    model = get_peft_model(load(other).model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    model.save_pretrained(str(folder / "adapter"), save_embedding_layers=False)
    return one, f"{other}+{folder / 'adapter'}"


@pytest.fixture
def pair(adapted: tuple[str, str], tmp_path: Path) -> Path:
    path = tmp_path / "pair.yml"
    content = {"merge_method": "slerp", "base_model": adapted[0], "models": [{"model": adapted[1]}]}
    path.write_text(yaml.safe_dump({**content, "parameters": {"t": 0.5}}))
    return path


def test_a_merge_is_compared_with_all_of_its_models(
    pair: Path, adapted: tuple[str, str], task_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = run(pair, "--out", out, "--task", task_file, "--threads", 1)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    rows = [line.split() for line in lines if line.startswith("first-letter")]
    assert [row[1] for row in rows[:2]] == [*adapted]
    assert rows[2][:2] == ["first-letter", "30"]
    assert "negative flips" in result.stdout
    reports = [
        Path(line.removeprefix("report: ")) for line in result.stderr.splitlines() if line.startswith("report: ")
    ]
    assert len(reports) == 2
    for path in reports:
        assert path.is_file()
        assert (path.parent / "comparison.json").is_file()
        assert path.is_relative_to(out / "comparisons")
    assert "90 instances asked" in result.stderr

    again = run(pair, "--out", out, "--task", task_file, "--json", "--quiet")
    content = json.loads(again.stdout)
    assert content["reused"]
    assert [one["model"] for one in content["measured"]["against"]] == [*adapted]
    [task] = content["measured"]["synergy"]
    assert task["synergy"] == pytest.approx(task["merged"] - sum(task["parents"]) / 2)


def test_a_search_says_what_it_chose(pair: Path, task_file: Path, tmp_path: Path) -> None:
    result = run(pair, "--out", tmp_path / "out", "--task", task_file, "--search", "t=0.2, 0.8", "--threads", 1)
    assert result.exit_code == 0, result.output
    assert "search on the validation split of first-letter (15 instances)" in result.stdout
    facts = json.loads((tmp_path / "out/uphold-merge.json").read_text())
    assert f"  t: {facts['search']['chosen']['t']}\n" in result.stdout
    assert len(facts["search"]["trials"]) == 2
    assert "negative flips" in result.stdout


def test_grids_as_they_are_typed() -> None:
    assert grid(["t=0.5,1", "normalize=true, False", "weight.2=1e-1,x"]) == {
        "t": [0.5, 1],
        "normalize": [True, False],
        "weight.2": [0.1, "x"],
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--search", "t=0.5"], "add --task TASK"),
        (["--task", "TASK", "--search", "tt=0.5"], "did you mean 't'"),
        (["--task", "TASK", "--search", "t=2"], "expected between 0 and 1"),
        (["--task", "TASK", "--search", "t"], "expected PARAMETER=VALUE"),
        (["--task", "TASK", "--search", "t="], "expected PARAMETER=VALUE"),
        (["--task", "TASK", "--search", "t=1,"], "expected PARAMETER=VALUE"),
        (["--task", "TASK", "--search", "t=1", "--search", "t=0"], "names 't' twice"),
        (["--task", "TASK", "--search", "t=1", "--reference", "no/such/place"], "no/such/place"),
        (["--task", "TASK", "--reference", "embedded:v1"], "--reference goes with --search"),
        (["--task", "TASK", "--dry-run"], "leave out --task"),
        (["--task", "no-such-task"], "unknown task"),
    ],
)
def test_hostile_measuring_is_refused_before_anything_is_written(
    pair: Path, task_file: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    before = sorted(tmp_path.iterdir())
    given = [str(task_file) if argument == "TASK" else argument for argument in arguments]
    error = run(pair, "--out", tmp_path / "out", *given).exception
    assert isinstance(error, UpholdError)
    assert error.exit_code == 2
    assert "\n" not in str(error)
    assert message in str(error)
    assert sorted(tmp_path.iterdir()) == before


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
