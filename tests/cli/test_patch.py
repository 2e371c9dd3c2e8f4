from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from tests.models.patches.patched import change, copy, hashes, network_file, sharded, tensors
from uphold.cli.patch import app
from uphold.core.errors import CorruptError, EmptyError, ModelError, UpholdError, UsageError
from uphold.models.patches.file import load_patch

RUNNER = CliRunner()
WIDE = {"COLUMNS": "200"}


def run(*arguments: Any) -> Any:
    """What a command that succeeds prints, read as JSON."""
    result = RUNNER.invoke(app, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refused(*arguments: Any) -> UpholdError:
    result = RUNNER.invoke(app, [str(one) for one in arguments])
    assert isinstance(result.exception, UpholdError), (result.output, result.exception)
    assert "\n" not in str(result.exception)
    return result.exception


def test_a_patch_from_beginning_to_end(tmp_path: Path, model_v1: Path, model_v2: Path) -> None:
    model = copy(model_v1, tmp_path / "m")
    before = hashes(model)
    all_of_it, some = tmp_path / "all.safetensors", tmp_path / "some.safetensors"
    made = run("make", model_v1, model_v2, "--out", all_of_it, "--quiet")
    assert made["manifest"]["source"] == str(model_v1)
    few = run(
        "make", model_v1, model_v2, "--out", some, "--keep", "10%", "--quantise", "int8",
        "--layers", "model.layers.0.*", "--layers", "re:model.norm.*",
    )  # fmt: skip
    assert set(few["layers"]) == {name for name in made["layers"] if ".0." in name or name == "model.norm.weight"}
    assert few["bytes"] < made["bytes"] / 3

    done = run("apply", all_of_it, some, "--to", model, "--in-place", "--strength", "1", "--strength", "0.5")
    assert [(one["file"], one["strength"]) for one in done["applied"]] == [
        ("all.safetensors", 1),
        ("some.safetensors", 0.5),
    ]
    shown = run("show", model)
    assert [one["id"] for one in shown["applied"]] == [made["id"], few["id"]]

    composed = tmp_path / "composed.safetensors"
    run("compose", all_of_it, some, "--strength", "1", "--strength", "0.5", "--out", composed)
    run("apply", composed, "--to", model_v1, "--out", tmp_path / "copy")
    assert (tmp_path / "copy" / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()

    left = run("remove", model, all_of_it)
    assert [one["id"] for one in left["applied"]] == [few["id"]]
    gone = run("remove", model, few["id"][:8])
    assert gone["restored"] == ["model.safetensors"]
    assert hashes(model) == before
    run("apply", all_of_it, some, "--to", model, "--in-place", "--strength", "0.5")
    assert [one["strength"] for one in run("show", model)["applied"]] == [0.5, 0.5]
    assert run("remove", model, "--all")["applied"] == []
    assert hashes(model) == before
    assert run("show", model)["applied"] == []


def test_what_people_read(tmp_path: Path) -> None:
    cnn = network_file(tmp_path / "cnn.safetensors")
    after = tmp_path / "after.pt"
    torch.save({name: value + 1 for name, value in tensors(cnn).items()}, after)
    patch = tmp_path / "p.safetensors"
    made = RUNNER.invoke(app, ["make", str(cnn), str(after), "--out", str(patch)])
    assert "4 tensors, 2 tensors replaced" in made.stdout
    assert "make a patch: 6/6" in made.stderr
    text = RUNNER.invoke(app, ["show", str(patch)]).stdout
    assert "made from" in text
    assert "features.10.weight" in text
    assert "replaced (int64)" in text
    assert "no patch is applied" in RUNNER.invoke(app, ["show", str(cnn)]).stdout
    done = RUNNER.invoke(app, ["apply", str(patch), "--to", str(cnn), "--in-place", "--quiet"])
    assert "p.safetensors x 1; 1 file written" in done.stdout
    assert done.stderr == ""
    assert "1 patch applied" in RUNNER.invoke(app, ["show", str(cnn)]).stdout
    removed = RUNNER.invoke(app, ["remove", str(cnn), "--all", "--quiet"]).stdout
    assert "no patch; 1 file written\n1 file restored: every byte as before the first patch (SHA-256)" in removed


def test_changes_that_are_lost_to_rounding_are_said(tmp_path: Path) -> None:
    model = sharded(tmp_path / "m")
    patch = change(model, 1).save(tmp_path / "p.safetensors")
    text = RUNNER.invoke(app, ["apply", str(patch), "--to", str(model), "--in-place", "--strength", "0.01"]).stdout
    assert "changes are lost to rounding" in text


def test_a_patch_for_other_weights_needs_force(tmp_path: Path, model_v1: Path, model_v2: Path) -> None:
    patch = tmp_path / "p.safetensors"
    run("make", model_v1, model_v2, "--out", patch, "--keep", "0.01")
    error = refused("apply", patch, "--to", model_v2, "--out", tmp_path / "out")
    assert "give --force" in str(error)
    assert not (tmp_path / "out").exists()
    done = run("apply", patch, "--to", model_v2, "--out", tmp_path / "out", "--force")
    assert done["applied"][0]["forced"] is True
    other = network_file(tmp_path / "cnn.safetensors")
    assert "architecture" in str(refused("apply", patch, "--to", other, "--in-place", "--force"))


def test_wrong_usage_is_one_line(tmp_path: Path, model_v1: Path, model_v2: Path) -> None:
    patch, out, other = tmp_path / "p.safetensors", tmp_path / "out", tmp_path / "c.safetensors"
    run("make", "embedded:v1", "embedded:v2", "--out", patch)
    cases: list[tuple[type[UpholdError], str, list[Any]]] = [
        (EmptyError, "none differs", ["make", model_v1, model_v1, "--out", patch]),
        (EmptyError, "by more than 1e+09", ["make", model_v1, model_v2, "--threshold", "1e9", "--out", patch]),
        (UsageError, "unknown layer", ["make", model_v1, model_v2, "--layers", "nothing", "--out", patch]),
        (UsageError, "unknown quantiser", ["make", model_v1, model_v2, "--quantise", "int2", "--out", patch]),
        (UsageError, "saved as a .safetensors", ["make", model_v1, model_v2, "--out", tmp_path / "p.bin"]),
        (UsageError, "a patch needs two versions", ["make", model_v1, "embedded:v1", "--out", patch]),
        (ModelError, "no model at", ["make", model_v1, tmp_path / "none", "--out", patch]),
        (UsageError, "say where to", ["apply", patch, "--to", "embedded:v1"]),
        (UsageError, "say where to", ["apply", patch, "--to", "embedded:v1", "--in-place", "--out", out]),
        (UsageError, "makes a patched copy", ["apply", patch, "--to", "embedded:v1", "--in-place"]),
        (UsageError, "2 strengths for 1 patches", ["compose", patch, "--out", other, "--strength", 1, "--strength", 2]),
        (UsageError, "finite", ["apply", patch, "--to", "embedded:v1", "--out", out, "--strength", "nan"]),
        (CorruptError, "is no patch", ["apply", model_v1 / "model.safetensors", "--to", "embedded:v1", "--out", out]),
        (UsageError, "same patch is there twice", ["compose", patch, patch, "--out", tmp_path / "c.safetensors"]),
        (UsageError, "say which patches", ["remove", model_v1]),
        (UsageError, "say which patches", ["remove", model_v1, patch, "--all"]),
        (UsageError, "nothing to take off", ["remove", model_v1, "--all"]),
        (ModelError, "no model at", ["show", tmp_path / "none"]),
    ]  # fmt: skip
    before = hashes(tmp_path)
    for kind, match, arguments in cases:
        error = refused(*arguments)
        assert isinstance(error, kind), (arguments, error)
        assert match in str(error)
    assert hashes(tmp_path) == before
    assert load_patch(patch).names


def test_only_a_patch_is_replaced_by_a_patch(tmp_path: Path, model_v1: Path, model_v2: Path) -> None:
    model = copy(model_v1, tmp_path / "m")
    weights, patch, other = model / "model.safetensors", tmp_path / "p.safetensors", tmp_path / "q.safetensors"
    run("make", model, model_v2, "--out", patch)
    run("make", model, model_v2, "--keep", "10%", "--out", other)
    before = hashes(tmp_path)
    (tmp_path / "folder.safetensors").mkdir()
    for place in (weights, tmp_path / "folder.safetensors"):
        assert "is no patch" in str(refused("make", model, model_v2, "--out", place))
        assert "is no patch" in str(refused("compose", patch, other, "--out", place))
    assert "one of the patches" in str(refused("compose", patch, other, "--out", other))
    assert hashes(tmp_path) == before
    run("make", model, model_v2, "--keep", "20%", "--out", patch)
    assert hashes(tmp_path) != before


def test_a_patch_that_was_cut_off_is_not_shown_as_a_model_without_patches(tmp_path: Path) -> None:
    patch, cut = tmp_path / "p.safetensors", tmp_path / "cut.safetensors"
    run("make", "embedded:v1", "embedded:v2", "--out", patch)
    for size in (0, 1000, 20_000):
        cut.write_bytes(patch.read_bytes()[:size])
        assert isinstance(refused("show", cut), CorruptError)


@pytest.mark.parametrize("command", ["make", "apply", "remove", "compose", "show", "signature", "neurons"])
def test_every_command_has_help(command: str) -> None:
    assert command in RUNNER.invoke(app, ["--help"], env=WIDE).stdout
    assert RUNNER.invoke(app, [command, "--help"], env=WIDE).exit_code == 0
