from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from uphold.core.errors import StorageError, UsageError
from uphold.models.checkpoint import INDEX, open_checkpoint
from uphold.models.checkpoint_writer import CheckpointWriter
from uphold.models.fingerprint import weights_hash

TENSORS = {
    "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "b": torch.tensor([1.5, -2.0, 3.0], dtype=torch.bfloat16),
    "n": torch.tensor(7),
    "flags": torch.tensor([True, False]),
    "empty": torch.zeros(0, 4),
}


def announced(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    return {name: (value.dtype, tuple(value.shape)) for name, value in tensors.items()}


def written(out: Path, tensors: Mapping[str, torch.Tensor] = TENSORS, shard_size: int = 10**9) -> Path:
    with CheckpointWriter(out, announced(tensors), shard_size=shard_size) as writer:
        for name, value in tensors.items():
            writer.write(name, value)
    return out


def test_what_is_written_is_what_safetensors_reads(tmp_path: Path) -> None:
    out = written(tmp_path / "out")
    assert [path.name for path in out.iterdir()] == ["model.safetensors"]
    found = load_file(out / "model.safetensors")
    assert found.keys() == TENSORS.keys()
    assert all(found[name].equal(value) and found[name].dtype == value.dtype for name, value in TENSORS.items())
    with safe_open(out / "model.safetensors", "pt") as opened:
        assert opened.metadata() == {"format": "pt"}


def test_shards_have_the_usual_names_and_an_index(tmp_path: Path) -> None:
    out = written(tmp_path / "out", shard_size=24)
    index = json.loads((out / INDEX).read_text())
    assert index["metadata"]["total_size"] == 24 + 6 + 8 + 2
    assert index["weight_map"]["a"] == "model-00001-of-00002.safetensors"
    assert weights_hash(out) == weights_hash(written(tmp_path / "one"))
    assert open_checkpoint(out).tensor("n").item() == 7


def test_a_tensor_larger_than_a_shard_has_one_of_its_own(tmp_path: Path) -> None:
    out = written(tmp_path / "out", {"x": torch.ones(2), "y": torch.ones(100), "z": torch.ones(2)}, shard_size=16)
    assert len(list(out.glob("*.safetensors"))) == 3


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_parts_in_any_order_give_the_same_file(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("writer")
    values = torch.randn(50, generator=torch.Generator().manual_seed(1))
    cuts = sorted({0, 50, *data.draw(st.lists(st.integers(1, 49), max_size=6))})
    parts = data.draw(st.permutations(list(pairwise(cuts))))
    with CheckpointWriter(folder / "parts", announced({"w": values})) as writer:
        for start, stop in parts:
            writer.write("w", values[start:stop], start)
    whole = written(folder / "whole", {"w": values})
    assert (folder / "parts/model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_a_tensor_that_is_not_contiguous_is_stored_in_row_major_order(tmp_path: Path) -> None:
    value = torch.arange(6.0).reshape(2, 3).T
    out = written(tmp_path / "out", {"w": value})
    assert open_checkpoint(out).tensor("w").equal(value)


def test_an_error_leaves_the_old_folder_and_nothing_else(tmp_path: Path) -> None:
    out = written(tmp_path / "out")
    before = weights_hash(out)

    def interrupted() -> None:
        with CheckpointWriter(out, announced(TENSORS)) as writer:
            writer.write("a", TENSORS["a"])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert weights_hash(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_is_not_complete_is_not_kept(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="4 tensors were not written completely"),
        CheckpointWriter(tmp_path / "out", announced({**TENSORS, "m": torch.ones(1)})) as writer,
    ):
        writer.write("a", TENSORS["a"])
    assert list(tmp_path.iterdir()) == []


def test_values_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="do not fit"), CheckpointWriter(tmp_path / "o", announced(TENSORS)) as writer:
        writer.write("a", torch.ones(7))
    with pytest.raises(ValueError, match="do not fit"), CheckpointWriter(tmp_path / "o", announced(TENSORS)) as writer:
        writer.write("a", torch.ones(2), 5)
    with pytest.raises(ValueError, match="do not fit"), CheckpointWriter(tmp_path / "o", announced(TENSORS)) as writer:
        writer.write("a", torch.ones(1, dtype=torch.float64))


def test_a_full_disk_is_said_before_anything_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int, start: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StorageError, match="no space left"), CheckpointWriter(tmp_path / "out", announced(TENSORS)):
        pytest.fail("the block must not start")
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_write_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no tensors"):
        CheckpointWriter(tmp_path, {})
    with pytest.raises(UsageError, match="shard size"):
        CheckpointWriter(tmp_path, announced(TENSORS), shard_size=0)
    with pytest.raises(UsageError, match="which safetensors does not have"):
        CheckpointWriter(tmp_path, {"w": (torch.complex128, (1,))})
