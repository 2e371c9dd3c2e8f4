from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.models.patches.patched import change, copy, hashes, network_file, sharded, tensors
from uphold.core.errors import CorruptError, DataError, StorageError, UsageError
from uphold.models.fingerprint import weights_hash
from uphold.models.load import load
from uphold.models.patches.apply import apply
from uphold.models.patches.make import make
from uphold.models.patches.patch import Patch
from uphold.models.patches.place import applied_to, apply_in_place, remove_in_place


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sharded(tmp_path_factory.mktemp("llama") / "m")


@pytest.fixture(scope="module")
def cnn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return network_file(tmp_path_factory.mktemp("cnn") / "cnn.safetensors")


def in_memory(model: Path, patches: list[Patch], strengths: list[float]) -> dict[str, torch.Tensor]:
    found = tensors(model)
    if patches:
        apply(found, patches, strengths, force=True)
    return found


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(value.reshape(-1).view(torch.uint8), other[name].reshape(-1).view(torch.uint8))
        for name, value in one.items()
    )


def test_the_folder_really_is_what_it_is_meant_to_be(llama: Path) -> None:
    assert len(list(llama.glob("model-*.safetensors"))) >= 3
    assert "lm_head.weight" not in tensors(llama)


def patches_for(model: Path) -> list[tuple[Patch, float]]:
    names = list(tensors(model))
    if model.is_dir():
        few = [names[0], names[-1]]
        return [(change(model, 1), 0.5), (change(model, 2, few, "int4"), 2.0), (change(model, 3, few[:1]), -1.0)]
    put = {"bn.running_var": torch.full((4,), 3.0), "bn.num_batches_tracked": torch.tensor(8)}
    return [
        (change(model, 1, ["features.0.weight", "half"], put=put), 0.5),
        (change(model, 2, ["features.0.weight", "features.10.weight"], "log:16"), 2.0),
        (change(model, 3, ["half", "features.2.weight"]), -1.0),
    ]


@pytest.mark.parametrize("kind", ["llama", "cnn"])
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_order_of_coming_and_going_ends_where_it_began(
    kind: str, data: st.DataObject, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> None:
    original: Path = request.getfixturevalue(kind)
    model = copy(original, tmp_path_factory.mktemp("work") / original.name)
    before = hashes(model.parent)
    patches = patches_for(original)
    on: list[int] = []
    for _ in range(data.draw(st.integers(1, 5))):
        number = data.draw(st.integers(0, len(patches) - 1))
        patch, strength = patches[number]
        if number in on:
            on.remove(number)
            remove_in_place(model, [patch.id])
        else:
            on.append(number)
            apply_in_place(model, [patch], [strength])
        expected = in_memory(original, [patches[k][0] for k in on], [patches[k][1] for k in on])
        assert same(tensors(model), expected)
        assert [one.patch.id for one in applied_to(model)] == [patches[k][0].id for k in on]
        if not on:
            assert hashes(model.parent) == before
    if on:
        assert remove_in_place(model).restored
    assert hashes(model.parent) == before


def test_what_is_said_about_it(llama: Path, tmp_path: Path) -> None:
    model = copy(llama, tmp_path / "m")
    patch = change(model, 1)
    seen: list[tuple[int, int]] = []
    done = apply_in_place(
        model, [patch], [0.5], files=["p.safetensors"], progress=lambda what, at, of, note="": seen.append((at, of))
    )
    assert len(done.files) == len(list(model.glob("model-*.safetensors")))
    assert not done.restored
    assert done.asked == sum(delta.elements for delta in patch.deltas.values())
    assert 0 < done.lost < done.asked
    assert seen[-1][0] == seen[-1][1]
    (entry,) = applied_to(model)
    assert (entry.file, entry.strength, entry.forced) == ("p.safetensors", 0.5, False)
    gone = remove_in_place(model, ["p.safetensors"])
    assert gone.restored == done.files
    assert not gone.applied


def test_only_the_files_that_hold_touched_tensors_are_written(llama: Path, tmp_path: Path) -> None:
    model = copy(llama, tmp_path / "m")
    before = {path: path.stat().st_ino for path in model.iterdir()}
    name = next(iter(tensors(model)))
    done = apply_in_place(model, [change(model, 1, [name])])
    assert len(done.files) == 1
    assert [path.name for path, inode in before.items() if path.stat().st_ino != inode] == list(done.files)


def test_a_patched_folder_is_an_ordinary_model(model_v1: Path, model_v2: Path, tmp_path: Path) -> None:
    model = copy(model_v1, tmp_path / "m")
    patch = make(model_v1, model_v2)
    apply_in_place(model, [patch])
    loaded, target = load(model), load(model_v2)
    for name, value in loaded.model.state_dict().items():
        assert torch.allclose(value, target.model.state_dict()[name], atol=1e-6)
    # What is kept to take it off is not taken for weights: the hash is that of a patched copy.
    inside = in_memory(model_v1, [patch], [1.0])
    assert same(tensors(model), inside)
    assert weights_hash(model) != weights_hash(model_v1)
    remove_in_place(model)
    assert weights_hash(model) == weights_hash(model_v1)


def test_an_adapter_folder(tmp_path: Path, model_v1: Path) -> None:
    from peft import LoraConfig, get_peft_model

    folder = tmp_path / "adapter"
    get_peft_model(load(model_v1).model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(folder)
    before, patch = hashes(folder), change(folder, 1)
    expected = in_memory(folder, [patch], [1.0])
    apply_in_place(folder, [patch])
    assert same(tensors(folder), expected)
    assert hashes(folder) != before
    remove_in_place(folder)
    assert hashes(folder) == before


def test_permissions_stay(cnn: Path, tmp_path: Path) -> None:
    model = copy(cnn, tmp_path / "cnn.safetensors")
    model.chmod(0o600)
    apply_in_place(model, [change(model, 1, ["half"])])
    assert model.stat().st_mode & 0o777 == 0o600


@pytest.fixture
def patched(cnn: Path, tmp_path: Path) -> Iterator[tuple[Path, Patch]]:
    model = copy(cnn, tmp_path / "cnn.safetensors")
    patch = change(model, 1, ["half"])
    apply_in_place(model, [patch], files=["p.safetensors"])
    before = hashes(tmp_path)
    yield model, patch
    assert hashes(tmp_path) == before


def test_the_same_patch_twice_is_refused(patched: tuple[Path, Patch]) -> None:
    with pytest.raises(UsageError, match=r"already, at strength 1: take it off first"):
        apply_in_place(patched[0], [patched[1]], [0.5])


def test_a_patch_that_is_not_there_cannot_be_removed(patched: tuple[Path, Patch], cnn: Path) -> None:
    for wanted in ("other", "", patched[1].id[:3]):
        with pytest.raises(UsageError, match="is not applied"):
            remove_in_place(patched[0], [wanted])
    with pytest.raises(UsageError, match="nothing to take off"):
        remove_in_place(cnn)


def test_the_second_patch_is_checked_against_the_pristine_weights(patched: tuple[Path, Patch], tmp_path: Path) -> None:
    now = change(patched[0], 2, ["half"])
    with pytest.raises(UsageError, match="not those that the patch was made from"):
        apply_in_place(patched[0], [now])


def test_contradicting_patches_leave_everything_as_it_is(patched: tuple[Path, Patch]) -> None:
    other = change(patched[0], 2, ["features.0.weight"], put={"half": torch.ones(9).half()})
    with pytest.raises(UsageError, match="adds to 'half' and another replaces it"):
        apply_in_place(patched[0], [other], force=True)
    huge = change(patched[0], 3, ["half"])
    with pytest.raises(UsageError, match="overflows float16"):
        apply_in_place(patched[0], [huge], [1e9], force=True)


def test_another_process_at_work_is_respected(patched: tuple[Path, Patch]) -> None:
    handle = os.open(patched[0].parent, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(StorageError, match="another process"):
            remove_in_place(patched[0])
    finally:
        os.close(handle)


def test_weights_that_something_else_changed_are_not_overwritten(cnn: Path, tmp_path: Path) -> None:
    model = copy(cnn, tmp_path / "cnn.safetensors")
    apply_in_place(model, [change(model, 1, ["half"])])
    data = bytearray(model.read_bytes())
    data[-1] ^= 1
    model.write_bytes(data)
    before = hashes(tmp_path)
    for call in (lambda: remove_in_place(model), lambda: apply_in_place(model, [change(cnn, 2, ["half"])])):
        with pytest.raises(CorruptError, match="was changed since it was patched"):
            call()
    assert hashes(tmp_path) == before


def test_damage_to_what_was_kept_is_noticed_before_anything_changes(cnn: Path, tmp_path: Path) -> None:
    model = copy(cnn, tmp_path / "cnn.safetensors")
    patch = change(model, 1, ["half"])
    apply_in_place(model, [patch])
    state = tmp_path / "cnn.safetensors.uphold-patches"
    good = copy(state, tmp_path / "good")

    def damaged(name: str, data: bytes) -> None:
        (state / name).write_bytes(data)
        before = hashes(tmp_path)
        with pytest.raises(DataError) as caught:
            remove_in_place(model)
        assert "\n" not in str(caught.value)
        assert hashes(tmp_path) == before
        (state / name).write_bytes((good / name).read_bytes())

    kept = bytearray((good / "pristine" / "model.safetensors").read_bytes())
    kept[-1] ^= 1
    damaged("pristine/model.safetensors", bytes(kept))
    damaged("pristine/model.safetensors", bytes(kept[:-3]))
    damaged(f"{patch.id}.safetensors", (good / f"{patch.id}.safetensors").read_bytes()[:-1])
    for edit in (
        {"format": 2},
        {"patches": [{}]},
        {"files": {"../x": {}}},
        {"tensors": {}},
        {"tensors": {"half": "x"}},
    ):
        damaged("ledger.json", json.dumps(json.loads((good / "ledger.json").read_text()) | edit).encode())
    for text in ("", "[]", "3", '{"patches": [{"id": "../../etc/passwd", "strength": 1.0}]}'):
        damaged("ledger.json", text.encode())
    assert remove_in_place(model).restored == ["cnn.safetensors"]
    assert hashes(model) == hashes(cnn)


def test_only_files_of_ones_own_are_patched_in_place(cnn: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="makes a patched copy"):
        apply_in_place("embedded:v1", [change(cnn, 1, ["half"])])
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "model.safetensors").symlink_to(cnn)
    with pytest.raises(UsageError, match="is a link"):
        apply_in_place(folder, [change(cnn, 1, ["half"])])
    torch.save(tensors(cnn), tmp_path / "w.pt")
    with pytest.raises(UsageError, match="is not safetensors"):
        apply_in_place(tmp_path / "w.pt", [change(cnn, 1, ["half"])])
    assert sorted(path.name for path in folder.iterdir()) == ["model.safetensors"]


def test_the_last_one_off_vouches_for_every_file_that_was_written(llama: Path, tmp_path: Path) -> None:
    model = copy(llama, tmp_path / "m")
    names = list(tensors(model))
    first, second = change(model, 1, names[:1]), change(model, 2, names[-1:])
    one = apply_in_place(model, [first]).files
    two = apply_in_place(model, [second]).files
    assert remove_in_place(model, [first.id]).restored == list(one)
    done = remove_in_place(model, [second.id])
    assert done.files == two
    assert done.restored == sorted([*one, *two])
    assert hashes(model) == hashes(llama)
