from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from uphold.core.errors import CorruptError, ModelError
from uphold.models.fingerprint import files_fingerprint, module_fingerprint, weights_hash
from uphold.models.load import load
from uphold.models.reference import find_model


def test_the_hash_is_of_the_content_not_of_the_path_or_the_sharding(model_v1: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(model_v1, tmp_path / "elsewhere")
    assert weights_hash(copy) == weights_hash(model_v1)
    tensors = load_file(copy / "model.safetensors")
    names = sorted(tensors)
    (copy / "model.safetensors").unlink()
    save_file({name: tensors[name] for name in names[:5]}, copy / "model-1.safetensors")
    save_file({name: tensors[name] for name in names[5:]}, copy / "model-2.safetensors")
    assert weights_hash(copy) == weights_hash(model_v1)


def test_one_changed_weight_changes_the_hash(model_v1: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(model_v1, tmp_path / "changed")
    tensors = load_file(copy / "model.safetensors")
    first = min(tensors)
    tensors[first].view(-1)[0] += 1e-3
    save_file(tensors, copy / "model.safetensors")
    assert weights_hash(copy) != weights_hash(model_v1)


def test_two_models_differ_and_the_name_is_only_a_name(model_v1: Path, model_v2: Path) -> None:
    one, two = files_fingerprint(find_model(model_v1)), files_fingerprint(find_model(model_v2))
    assert one["weights"] != two["weights"]
    assert one["tokenizer"] == two["tokenizer"]
    assert one["name"] == str(model_v1)


def test_a_loaded_model_is_hashed_by_its_weights(model_v1: Path) -> None:
    loaded = load(model_v1)
    before = module_fingerprint(loaded.model, "x")["weights"]
    with torch.no_grad():
        next(loaded.model.parameters()).view(-1)[0] += 1
    assert module_fingerprint(loaded.model, "x")["weights"] != before


def test_a_cut_off_weight_file_is_named(model_v1: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(model_v1, tmp_path / "cut")
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CorruptError, match=r"model\.safetensors is not a whole safetensors file"):
        weights_hash(copy)
    path.write_bytes(b"")
    with pytest.raises(CorruptError, match="not a whole safetensors file"):
        weights_hash(copy)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has no weights"):
        weights_hash(tmp_path)
