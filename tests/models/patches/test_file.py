from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from uphold.core.errors import CorruptError, DataError, StorageError, UpholdError, UsageError
from uphold.models.patches.delta import Delta
from uphold.models.patches.file import KEY, is_patch, load_patch
from uphold.models.patches.patch import Manifest, Patch
from uphold.models.patches.quantise import scheme


@pytest.fixture
def patch() -> Patch:
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(6, 5, generator=generator)
    deltas = {
        "dense": Delta.dense(whole),
        "sparse": Delta.sparse((6, 5), torch.tensor([2, 7]), torch.tensor([1.0, -1.0])),
        "columns": Delta.slices((6, 5), 1, [4, 1], torch.ones(2, 6)),
        "few/columns": Delta.slices((6, 5), 1, [4, 1], torch.ones(2, 6)).quantised(scheme("int4")),
        "lögarithm": Delta.dense(whole).quantised(scheme("log")),
        "levels": Delta.dense(whole).quantised(scheme("linear:5")),
    }
    put = {"mean": torch.ones(3).bfloat16(), "count": torch.tensor(3)}
    facts = {"prompt": "def f(", "target": 3}
    manifest = Manifest(
        "test", dict.fromkeys([*deltas, *put], "0" * 64), paper="arXiv:2302.12480", figures={"before": 0.5}, facts=facts
    )
    return Patch(deltas, manifest, put)


def test_a_patch_comes_back_as_it_was(tmp_path: Path, patch: Patch) -> None:
    path = patch.save(tmp_path / "p.safetensors")
    loaded = load_patch(path)
    assert is_patch(path)
    assert loaded.id == patch.id
    assert repr(loaded) == f"<Patch {patch.id[:12]} (test), 8 tensors>"
    assert loaded.manifest == patch.manifest
    for name, delta in patch.deltas.items():
        assert torch.equal(loaded.deltas[name].tensor(), delta.tensor())
        assert loaded.deltas[name].dim == delta.dim
    assert loaded.replacements["mean"].dtype == torch.bfloat16
    assert torch.equal(loaded.replacements["count"], torch.tensor(3))


def test_equal_patches_are_equal_bytes(tmp_path: Path, patch: Patch) -> None:
    one, two = (
        patch.save(tmp_path / "1.safetensors"),
        load_patch(tmp_path / "1.safetensors").save(tmp_path / "2.safetensors"),
    )
    assert one.read_bytes() == two.read_bytes()


def test_saving_over_the_file_that_it_came_from(tmp_path: Path, patch: Patch) -> None:
    path = patch.save(tmp_path / "p.safetensors")
    loaded = load_patch(path)
    loaded.save(path)
    assert load_patch(path).id == patch.id


def test_what_cannot_be_saved_is_refused(tmp_path: Path, patch: Patch) -> None:
    with pytest.raises(UsageError, match=r"\.safetensors"):
        patch.save(tmp_path / "p.bin")
    bad = Patch({"a": Delta.dense(torch.tensor([float("nan")]))}, Manifest("test", {"a": ""}))
    with pytest.raises(UsageError, match="finite"):
        bad.save(tmp_path / "p.safetensors")
    with pytest.raises(UsageError, match="plain JSON"):
        replace(patch, manifest=replace(patch.manifest, facts={"x": object()})).save(tmp_path / "p.safetensors")
    with pytest.raises(StorageError):
        patch.save(Path("/proc/p.safetensors"))
    assert not list(tmp_path.iterdir())


def change(path: Path, edit: Callable[[Any, dict[str, torch.Tensor]], Any]) -> None:
    """Write a patch file again after `edit` had its way with the header's JSON and the tensors."""
    with safe_open(path, "pt") as file:
        content = json.loads(file.metadata()[KEY])
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    content = edit(content, tensors) or content
    save_file(tensors, path, metadata={KEY: content if isinstance(content, str) else json.dumps(content)})


EDITS: dict[str, Callable[[Any, dict[str, torch.Tensor]], Any]] = {
    "no json": lambda content, tensors: "{",
    "nan": lambda content, tensors: json.dumps(content).replace('"scale": 1.0', '"scale": NaN'),
    "deep": lambda content, tensors: "[" * 100_000,
    "a list": lambda content, tensors: "[]",
    "another format": lambda content, tensors: content | {"format": 2},
    "no manifest": lambda content, tensors: content.pop("manifest") and None,
    "strange manifest": lambda content, tensors: content["manifest"].update(evil=1),
    "manifest of other types": lambda content, tensors: content["manifest"].update(facts="x"),
    "scale as text": lambda content, tensors: content["manifest"].update(scale="2"),
    "pristine lacks one": lambda content, tensors: content["manifest"]["pristine"].pop("dense") and None,
    "huge shape": lambda content, tensors: content["deltas"]["dense"].update(shape=[2**40, 2**40]),
    "negative shape": lambda content, tensors: content["deltas"]["dense"].update(shape=[-6, -5]),
    "another shape": lambda content, tensors: content["deltas"]["dense"].update(shape=[5, 5]),
    "dimension": lambda content, tensors: content["deltas"]["columns"].update(dim=7),
    "dimension of nothing": lambda content, tensors: content["deltas"]["dense"].update(dim=0),
    "no values": lambda content, tensors: tensors.pop("values/dense") is None,
    "more values": lambda content, tensors: tensors.update({"values/other": torch.ones(2)}),
    "foreign tensor": lambda content, tensors: tensors.update({"model.weight": torch.ones(2)}),
    "nan values": lambda content, tensors: tensors["values/dense"].fill_(float("nan")) is None,
    "double values": lambda content, tensors: tensors.update({"values/dense": tensors["values/dense"].double()}),
    "index outside": lambda content, tensors: tensors["indices/sparse"].fill_(99) is None,
    "index twice": lambda content, tensors: tensors["indices/sparse"].fill_(1) is None,
    "negative index": lambda content, tensors: tensors["indices/sparse"].fill_(-1) is None,
    "codes outside": lambda content, tensors: tensors["codes/levels"].fill_(255) is None,
    "no quantiser": lambda content, tensors: content["deltas"]["levels"].update(quantiser="pickle"),
    "levels": lambda content, tensors: content["deltas"]["levels"].update(low=1e400),
    "levels as text": lambda content, tensors: content["deltas"]["levels"].update(high="9"),
    "count": lambda content, tensors: content["deltas"]["levels"].update(count=10**15),
    "both": lambda content, tensors: tensors.update({"replacement/dense": torch.ones(2)}),
}


@pytest.mark.parametrize("what", EDITS)
def test_a_hostile_file_is_refused_in_one_line(tmp_path: Path, patch: Patch, what: str) -> None:
    path = patch.save(tmp_path / "p.safetensors")
    change(path, EDITS[what])
    with pytest.raises(CorruptError) as caught:
        load_patch(path)
    assert "p.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_file_is_no_patch(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    (tmp_path / "p.pt").write_bytes(b"\x80\x04.")
    for name in ("model.safetensors", "text.safetensors", "p.pt"):
        assert not is_patch(tmp_path / name)
        with pytest.raises(CorruptError):
            load_patch(tmp_path / name)
    with pytest.raises(DataError, match="no patch at"):
        load_patch(tmp_path / "none.safetensors")
    with pytest.raises(DataError, match="no patch at"):
        load_patch(tmp_path)


def test_a_file_that_is_cut_off_or_damaged_never_gives_another_patch(tmp_path: Path, patch: Patch) -> None:
    path = patch.save(tmp_path / "p.safetensors")
    data = path.read_bytes()
    for end in (0, 4, 8, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:end])
        with pytest.raises(CorruptError):
            load_patch(path)
    chance = random.Random(0)
    for _ in range(150):
        broken = bytearray(data)
        broken[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(broken)
        # Numbers and texts can change unseen; the id then says that it is another patch.
        with contextlib.suppress(UpholdError):
            assert load_patch(path).id != patch.id
