from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from uphold.core.errors import CorruptError, ModelError
from uphold.models.checkpoint import INDEX, open_checkpoint, read_header
from uphold.models.fingerprint import weights_hash

TENSORS = {
    "a.weight": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "b.weight": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "steps": torch.tensor(7),
    "mask": torch.tensor([True, False, True]),
    "empty": torch.zeros(0, 4),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "model.safetensors", {"format": "pt"})
    return tmp_path


def shards(folder: Path) -> Path:
    names = sorted(TENSORS)
    places = {}
    for number, part in enumerate((names[:2], names[2:]), start=1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: TENSORS[name] for name in part}, folder / file)
        places |= dict.fromkeys(part, file)
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))
    return folder


def raw(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def test_every_tensor_is_read_as_it_was_written(folder: Path) -> None:
    with open_checkpoint(folder) as checkpoint:
        assert set(checkpoint.infos) == set(TENSORS)
        for name, value in TENSORS.items():
            assert checkpoint.infos[name].shape == tuple(value.shape)
            assert checkpoint.infos[name].dtype == value.dtype
            assert checkpoint.tensor(name).equal(value)
        assert checkpoint.metadata == {"format": "pt"}
        assert checkpoint.nbytes() == 24 + 4 + 8 + 3


def test_tensors_come_in_the_order_of_the_file(folder: Path) -> None:
    infos = open_checkpoint(folder).infos
    starts = [info.start for info in infos.values() if info.elements]
    assert starts == sorted(starts)


def test_writing_to_a_tensor_leaves_the_file_alone(folder: Path) -> None:
    before = (folder / "model.safetensors").read_bytes()
    checkpoint = open_checkpoint(folder)
    checkpoint.tensor("a.weight").zero_()
    checkpoint.close()
    assert (folder / "model.safetensors").read_bytes() == before
    assert open_checkpoint(folder).tensor("a.weight").equal(TENSORS["a.weight"])


def test_the_content_hash_is_that_of_the_fingerprint(folder: Path, tmp_path: Path) -> None:
    assert open_checkpoint(folder).content_hash() == weights_hash(folder)
    assert open_checkpoint(folder / "model.safetensors").content_hash() == weights_hash(folder)
    other = tmp_path / "other"
    other.mkdir()
    assert open_checkpoint(shards(other)).content_hash() == weights_hash(folder)


def test_shards_are_found_by_their_index(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(shards(tmp_path))
    assert all(checkpoint.tensor(name).equal(value) for name, value in TENSORS.items())


def test_an_unaligned_tensor_is_read(tmp_path: Path) -> None:
    data = b"\x01" + torch.tensor([1.0, 2.0]).numpy().tobytes()
    header = {
        "flag": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "w": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]},
    }
    checkpoint = open_checkpoint(raw(tmp_path / "m.safetensors", header, data))
    assert checkpoint.tensor("w").tolist() == [1.0, 2.0]


def test_torch_files_are_read_without_unpickling_and_tied_names_once(tmp_path: Path) -> None:
    shared = torch.arange(4.0)
    torch.save({"embed": shared, "head": shared, "n": torch.tensor(3)}, tmp_path / "pytorch_model.bin")
    checkpoint = open_checkpoint(tmp_path)
    assert list(checkpoint.infos) == ["embed", "n"]
    assert checkpoint.tied == {"head": "embed"}
    assert checkpoint.tensor("head").equal(shared)
    assert checkpoint.content_hash() == weights_hash(tmp_path)


def test_an_old_torch_file_is_read(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert open_checkpoint(tmp_path / "old.pt").tensor("w").tolist() == [1.0, 1.0]


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return (print, ("unpickled",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"w": Evil()}, "not a state dict of plain tensors"),
        ({"state_dict": {"w": torch.ones(1)}}, "'state_dict' is a dict"),
        ([torch.ones(1)], "holds a list"),
        ({}, "holds no tensors"),
    ],
)
def test_torch_files_with_something_else_are_refused(
    tmp_path: Path, content: object, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(content, tmp_path / "m.pt")
    with pytest.raises(ModelError if "plain" not in message else CorruptError, match=message):
        open_checkpoint(tmp_path / "m.pt")
    assert "unpickled" not in capsys.readouterr().out


def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "header",
    [
        b"{not json",
        [],
        {"w": entry([2], 0, 4)},
        {"w": entry([2], 0, 8)},
        {"w": entry([-1], 0, -4)},
        {"w": entry([1], -4, 0)},
        {"w": {"dtype": "F32"}},
        {"w": 3},
        b'{"w": {"dtype":"U8","shape":[4],"data_offsets":[0,4]}, "w": {"dtype":"U8","shape":[4],"data_offsets":[0,4]}}',
        {"w": entry([1], 0, 4), "v": entry([1], 0, 4)},
        {"__metadata__": 3, "w": entry([1], 0, 4)},
    ],
)
def test_a_header_that_does_not_fit_the_file_is_corrupt(tmp_path: Path, header: object) -> None:
    with pytest.raises(CorruptError, match=r"whole safetensors file|overlap"):
        read_header(raw(tmp_path / "m.safetensors", header, b"\0" * 4))


def test_a_cut_off_file_is_corrupt(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CorruptError, match="ends behind the end"):
        open_checkpoint(folder)
    file.write_bytes(b"\xff" * 20)
    with pytest.raises(CorruptError, match="header"):
        open_checkpoint(folder)


def test_an_unknown_element_type_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="'F4'"):
        read_header(raw(tmp_path / "m.safetensors", {"w": entry([1], 0, 4, "F4")}, b"\0" * 4))


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ({"a.weight": "../secret.safetensors"}, "outside its folder"),
        ({"a.weight": "gone.safetensors"}, "lacks the shard"),
        ({"nothing": "model-00001-of-00002.safetensors"}, "lacks 'nothing'"),
        ({}, "no weight_map"),
        ([], "no weight_map"),
    ],
)
def test_an_index_that_lies_is_refused(tmp_path: Path, places: object, message: str) -> None:
    shards(tmp_path)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": places}))
    with pytest.raises(CorruptError, match=message):
        open_checkpoint(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_file({"w": torch.ones(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(CorruptError, match=r"'w' is in a\.safetensors and in b\.safetensors"):
        open_checkpoint(tmp_path)


def test_nothing_to_open(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has no weights"):
        open_checkpoint(tmp_path)
    with pytest.raises(ModelError, match="no weights at"):
        open_checkpoint(tmp_path / "gone")
    (tmp_path / "notes.txt").write_text("text")
    with pytest.raises(ModelError, match="is not read"):
        open_checkpoint(tmp_path / "notes.txt")


def test_an_adapter_folder_is_a_checkpoint(tmp_path: Path) -> None:
    save_file({"x.lora_A.weight": torch.ones(1, 2)}, tmp_path / "adapter_model.safetensors")
    assert list(open_checkpoint(tmp_path).infos) == ["x.lora_A.weight"]
