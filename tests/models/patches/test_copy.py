from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.models.patches.patched import change, copy, hashes, network_file, sharded, tensors
from tests.models.patches.test_place import in_memory, same
from uphold.core.errors import UsageError
from uphold.core.storage import read_json
from uphold.models.load import load
from uphold.models.patches.copy import apply_to_copy
from uphold.models.patches.make import make
from uphold.models.patches.place import apply_in_place


def test_a_patched_copy_of_a_folder_in_shards(tmp_path: Path) -> None:
    model = sharded(tmp_path / "m")
    before = hashes(model)
    patch, other = change(model, 1), change(model, 2, list(tensors(model))[:1])
    done = apply_to_copy(model, [patch, other], tmp_path / "out", [0.5, 2.0], files=["p", "q"])
    assert hashes(model) == before
    assert same(tensors(tmp_path / "out"), in_memory(model, [other, patch], [2.0, 0.5]))
    assert set(done.files) == {path.name for path in (tmp_path / "out").glob("*.safetensors")}
    assert (tmp_path / "out" / "notes" / "a.txt").read_text() == "mine"
    facts = read_json(tmp_path / "out" / "uphold.json")["patches"]
    assert [(one["id"], one["strength"], one["file"]) for one in facts] == [(patch.id, 0.5, "p"), (other.id, 2.0, "q")]
    others = {path.name for path in model.iterdir()} - set(done.files)
    assert {path.name for path in (tmp_path / "out").iterdir()} == others | set(done.files) | {"uphold.json"}


def test_patches_that_are_on_it_in_place_are_part_of_the_sum(tmp_path: Path) -> None:
    model = sharded(tmp_path / "m")
    original = copy(model, tmp_path / "original")
    first, second = change(model, 1), change(model, 2, how="int8")
    apply_in_place(model, [first])
    apply_to_copy(model, [second], tmp_path / "out", [0.25])
    assert same(tensors(tmp_path / "out"), in_memory(original, [second, first], [0.25, 1.0]))
    assert not (tmp_path / "out" / "uphold-patches").exists()


def test_one_file(tmp_path: Path) -> None:
    cnn = network_file(tmp_path / "cnn.safetensors")
    patch = change(cnn, 1, ["features.0.weight"])
    apply_to_copy(cnn, [patch], tmp_path / "new.safetensors")
    assert same(tensors(tmp_path / "new.safetensors"), in_memory(cnn, [patch], [1.0]))
    header = int.from_bytes(cnn.read_bytes()[:8], "little") + 8
    assert cnn.read_bytes()[:header] == (tmp_path / "new.safetensors").read_bytes()[:header]


def test_a_file_that_torch_wrote_becomes_one_safetensors_file(tmp_path: Path) -> None:
    cnn = network_file(tmp_path / "cnn.safetensors")
    patch = change(cnn, 1, ["features.0.weight"])
    torch.save(tensors(cnn), tmp_path / "cnn.pt")
    before = {path.name for path in tmp_path.iterdir()}
    with pytest.raises(UsageError, match=r"name a \.safetensors file"):
        apply_to_copy(tmp_path / "cnn.pt", [patch], tmp_path / "new.pt")
    done = apply_to_copy(tmp_path / "cnn.pt", [patch], tmp_path / "new.safetensors")
    assert done.files == ["new.safetensors"]
    assert same(tensors(tmp_path / "new.safetensors"), in_memory(cnn, [patch], [1.0]))
    assert {path.name for path in tmp_path.iterdir()} == before | {"new.safetensors"}


def test_weights_that_torch_wrote_become_safetensors(tmp_path: Path, model_v1: Path, model_v2: Path) -> None:
    old = copy(model_v1, tmp_path / "old")
    torch.save(tensors(old), old / "pytorch_model.bin")
    (old / "model.safetensors").unlink()
    patch = make(old, model_v2)
    done = apply_to_copy(old, [patch], tmp_path / "new")
    assert done.files == ["model.safetensors"]
    assert not (tmp_path / "new" / "pytorch_model.bin").exists()
    assert same(tensors(tmp_path / "new"), in_memory(model_v1, [patch], [1.0]))
    assert load(tmp_path / "new").model is not None


def test_an_embedded_model(tmp_path: Path) -> None:
    patch = make("embedded:v1", "embedded:v2", keep=0.1)
    apply_to_copy("embedded:v1", [patch], tmp_path / "out")
    assert load(tmp_path / "out").tokenizer is not None


def test_another_place_is_needed(tmp_path: Path) -> None:
    cnn = network_file(tmp_path / "cnn.safetensors")
    patch = change(cnn, 1, ["features.0.weight"])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("mine")
    model = sharded(tmp_path / "m")
    whole = change(model, 1)
    for source, one, out, match in (
        (cnn, patch, tmp_path / "out", "name a .safetensors file"),
        (cnn, patch, cnn, "already"),
        (model, whole, tmp_path / "full", "already"),
        (model, whole, model, "folder of the model itself"),
        (model, whole, model / "sub", "folder of the model itself"),
    ):
        before = hashes(tmp_path)
        with pytest.raises(UsageError, match=match):
            apply_to_copy(source, [one], out)
        assert hashes(tmp_path) == before


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    cnn = network_file(tmp_path / "cnn.safetensors")
    patch = change(cnn, 1, ["half"])
    with pytest.raises(UsageError, match="overflows"):
        apply_to_copy(cnn, [patch], tmp_path / "out.safetensors", [1e9])
    assert [path.name for path in tmp_path.iterdir()] == ["cnn.safetensors"]
