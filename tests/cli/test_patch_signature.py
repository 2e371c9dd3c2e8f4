from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from safetensors.torch import save_file
from typer.testing import CliRunner

from tests.conftest import save_tiny_model, write_task
from uphold.cli import patch
from uphold.cli.patch_signature import signature
from uphold.core.errors import ModelError, NotComparableError, StorageError, UsageError
from uphold.models.checkpoint import open_checkpoint
from uphold.models.patches.file import load_patch
from uphold.models.patches.patch import scale
from uphold.repair.signature_choice import Choice, Trial
from uphold.repair.signatures import signature as make_signature

APP = typer.Typer()
APP.command()(signature)


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(APP, [str(one) for one in arguments])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("three")
    return [save_tiny_model(root / f"model-{seed}", seed) for seed in range(3)]


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = []
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        state = {f"{layer}.weight": torch.randn(4, 4, generator=generator) for layer in (0, 2, 10, 12)}
        paths.append(tmp_path / f"{seed}.safetensors")
        save_file(state, paths[-1])
    return paths


def test_model_folders(folders: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "p.safetensors"

    found = run(*folders, "--layers", 2, "--out", out)

    assert found.exit_code == 0, found.output
    assert "model.embed_tokens" in found.stdout
    assert "model.layers.0" in found.stdout
    assert "model.layers.1" not in found.stdout
    made = load_patch(out)
    assert made.manifest.scale == 1
    assert found.stdout.startswith(f"{out}: patch {made.id[:12]} (signature)")


def test_single_files_in_forward_order(files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "p.safetensors"
    found = run(*files, "--layers", 2, "--quantise", "int8", "--out", out, "--json", "--quiet")
    assert found.exit_code == 0, found.output
    values = json.loads(found.stdout)
    assert list(values["sizes"]) == ["0", "2"]
    assert list(values["layers"]) == ["0.weight", "2.weight"]
    assert values["manifest"]["quantiser"] == "int8"
    assert values["id"] == load_patch(out).id
    assert values["bytes"] == 32


def test_adapter_folders(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("initial", "standard", "robust")]
    name = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
    for seed, folder in enumerate(folders):
        folder.mkdir()
        generator = torch.Generator().manual_seed(seed)
        state = {name.format(layer, part): torch.randn(4, 4, generator=generator) for layer in (0, 1) for part in "AB"}
        save_file(state, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text("{}")
    out = tmp_path / "p.safetensors"
    found = run(*folders, "--layers", 2, "--out", out)
    assert found.exit_code == 0, found.output
    assert load_patch(out).names == tuple(name.format(layer, part) for layer in (0, 1) for part in "AB")


def test_layers_by_name_and_strength(files: list[Path], tmp_path: Path) -> None:
    for options, times in (((), 0.5), (("--authors",), 0.25)):
        out = tmp_path / "p.safetensors"
        found = run(*files, "--layers", "10,0", "--strength", 0.5, *options, "--out", out, "--json")
        assert found.exit_code == 0, found.output
        assert json.loads(found.stdout)["manifest"]["scale"] == times
        assert load_patch(out).names == ("0.weight", "10.weight")
        said = run(*files, "--layers", "10,", "--strength", 0.5, *options, "--out", out).stdout
        assert f"counts {times:g} times wherever it is applied at strength 1" in said
        assert load_patch(out).names == ("10.weight",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "7 layers are asked for, but this model has 3 before its head"),
        (("--layers", "0"), "0 layers are asked for"),
        (("--layers", "9" * 30), "this model has 3 before its head"),
        (("--layers", "-3"), "no tensor belongs to the layer '-3'"),
        (("--layers", ","), "no layers are named"),
        (("--layers", "0,nothing"), "no tensor belongs to the layer 'nothing'"),
        (("--layers", "1", "--quantise", "int3"), "unknown quantiser 'int3'"),
        (("--layers", "1", "--strength", "nan"), "strength is a finite number"),
    ],
)
def test_wrong_options_are_refused_and_nothing_is_written(
    files: list[Path], tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    out = tmp_path / "p.safetensors"
    found = run(*files, *options, "--out", out)
    assert isinstance(found.exception, UsageError)
    assert message in str(found.exception)
    assert "\n" not in str(found.exception)
    assert not out.exists()


def test_layers_and_strength_are_chosen_on_tasks(folders: list[Path], tmp_path: Path) -> None:
    clean, hard = tmp_path / "clean", tmp_path / "hard"
    for folder in (clean, hard):
        folder.mkdir()
    tasks = ("--task", write_task(clean, 24), "--damaged-task", write_task(hard, 24, name="hard"))
    out = tmp_path / "p.safetensors"

    found = run(*folders, *tasks, "--budget", "100%", "--out", out, "--json")

    values = json.loads(found.stdout)
    trials = values["choice"]["trials"]
    assert len(trials) == 12
    assert values["choice"]["budget"] == 1
    better = max(one["robust"] for one in trials) > values["choice"]["before"]["robust"]
    assert found.exit_code == (0 if better else 3)
    assert out.exists() == better


def test_what_is_chosen_is_written(files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, chosen = Trial(0, 0.0, 0.9, 0.5), Trial(1, 0.5, 0.88, 0.7)
    patch = scale(make_signature(*files, layers=1), 0.5)
    choice = Choice(before, (chosen,), 0.1, chosen, patch)
    monkeypatch.setattr("uphold.repair.signature_choice.choose_on_tasks", lambda *_, **__: choice)
    out = tmp_path / "p.safetensors"

    found = run(*files, "--task", "a", "--damaged-task", "b", "--budget", "10%", "--out", out)

    assert found.exit_code == 0, found.output
    assert load_patch(out).id == patch.id
    assert "chosen: 1 layer, strength 0.5: clean 88.00%, robust 70.00% (budget 10.00 points)" in found.stdout
    assert "counts 0.5 times wherever it is applied at strength 1" in found.stdout


def test_where_nothing_within_the_budget_helps_no_patch_is_written(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, asked = Trial(0, 0.0, 0.9, 0.5), []

    def nothing(*arguments: Any, **options: Any) -> Choice:
        asked.append((arguments, options["budget"], options["quantiser"]))
        return Choice(before, (Trial(1, 1.0, 0.8, 0.7),), options["budget"], None, None)

    monkeypatch.setattr("uphold.repair.signature_choice.choose_on_tasks", nothing)
    out = tmp_path / "p.safetensors"

    found = run(*files, "--task", "a", "--damaged-task", "b", "--quantise", "int4", "--out", out)

    assert found.exit_code == 3
    assert asked == [((*map(str, files), "a", "b"), 0.02, "int4")]
    assert found.stdout.endswith("nothing within the budget is more robust: do not patch (budget 2.00 points)\n")
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--task", "demo"), "needs --task and --damaged-task, both"),
        (("--damaged-task", "demo"), "needs --task and --damaged-task, both"),
        (("--budget", "2%"), "needs --task and --damaged-task, both"),
        (("--task", "demo", "--damaged-task", "demo", "--layers", "1"), "leave out --layers"),
        (("--task", "demo", "--damaged-task", "demo", "--strength", "1"), "leave out --layers"),
    ],
)
def test_a_choice_needs_both_tasks_and_no_settings(
    files: list[Path], tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    found = run(*files, *options, "--out", tmp_path / "p.safetensors")
    assert isinstance(found.exception, UsageError)
    assert message in str(found.exception)


def test_wrong_models_are_refused(files: list[Path], folders: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "p.safetensors"
    for three, message in (
        ((files[0], files[1], files[1]), "nothing is left"),
        ((files[0], files[1], folders[2]), "the robust model"),
        ((files[0], tmp_path / "absent.safetensors", files[2]), "absent"),
    ):
        found = run(*three, "--layers", 1, "--out", out)
        assert isinstance(found.exception, UsageError | ModelError)
        assert message in str(found.exception)
        assert not out.exists()
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    assert isinstance(run(*folders[:2], f"{folders[2]}+{adapter}", "--layers", 1, "--out", out).exception, UsageError)


def test_an_old_patch_survives_a_failure(files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "p.safetensors"
    assert run(*files, "--layers", 1, "--out", out).exit_code == 0
    before = out.read_bytes()
    assert run(*files, "--layers", 9, "--out", out).exit_code != 0
    assert out.read_bytes() == before
    wrong = run(*files, "--layers", 1, "--out", tmp_path / "p.bin")
    assert isinstance(wrong.exception, UsageError | StorageError)


def test_made_applied_and_taken_off_as_typed(folders: list[Path], tmp_path: Path) -> None:
    out, target = tmp_path / "p.safetensors", tmp_path / "model"
    shutil.copytree(folders[1], target)
    before = {path.name: path.read_bytes() for path in target.iterdir()}

    def typed(*arguments: Any) -> None:
        found = CliRunner().invoke(patch.app, [str(one) for one in arguments])
        assert found.exit_code == 0, found.output

    typed("signature", *folders, "--layers", 1, "--out", out)
    typed("apply", out, "--to", target, "--in-place", "--strength", 0.5)
    with open_checkpoint(target) as after, open_checkpoint(folders[1]) as clean:
        name = "model.embed_tokens.weight"
        change = after.tensor(name) - clean.tensor(name)
        assert torch.allclose(change, 0.5 * load_patch(out).deltas[name].tensor(), atol=1e-6)
        assert torch.equal(after.tensor("lm_head.weight"), clean.tensor("lm_head.weight"))
    typed("remove", target, "--all")
    assert {path.name: path.read_bytes() for path in target.iterdir() if path.name in before} == before


def test_models_of_two_starts_are_remarked_upon(files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "p.safetensors"
    found = run(*files, "--layers", 3, "--out", out)
    assert (
        "remark: in 0, 2, 10 the signature is about as large as the weights: were STANDARD and ROBUST" in found.stderr
    )
    with open_checkpoint(files[1]) as standard:
        near = {name: standard.tensor(name).clone() for name in standard.infos}
    near["0.weight"][0] += 0.1
    save_file(near, files[2])
    found = run(*files, "--layers", 3, "--out", out, "--quiet")
    assert (found.exit_code, found.stderr) == (0, "")


def test_signatures_of_two_starts_are_not_combined_unless_forced(files: list[Path], tmp_path: Path) -> None:
    one, other, both = (tmp_path / f"{name}.safetensors" for name in ("one", "other", "both"))
    assert run(*files, "--layers", 1, "--out", one).exit_code == 0
    assert run(files[2], files[1], files[0], "--layers", 1, "--out", other).exit_code == 0
    for arguments in (("compose", one, other, "--out", both), ("apply", one, other, "--to", files[1], "--out", both)):
        typed = [str(argument) for argument in arguments]
        found = CliRunner().invoke(patch.app, typed)
        assert isinstance(found.exception, NotComparableError)
        assert "started from different weights (0.weight differs)" in str(found.exception)
        assert not both.exists()
        assert CliRunner().invoke(patch.app, [*typed, "--force"]).exit_code == 0
        both.unlink() if both.is_file() else shutil.rmtree(both)


def test_a_standard_model_that_is_the_initial_one_is_remarked_upon(files: list[Path], tmp_path: Path) -> None:
    found = run(files[0], files[0], files[2], "--layers", 1, "--out", tmp_path / "p.safetensors", "--json")
    assert "this is ROBUST minus INITIAL" in found.stderr
    assert json.loads(found.stdout)["bytes"] == 64
