from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.merge.engine.checkpoints import decoder, linear, near, save_model
from uphold.core import registry
from uphold.core.errors import ModelError, UsageError
from uphold.merge import merge
from uphold.merge.engine import execute as executing
from uphold.merge.engine.execute import InputHashes, threads_for, working_memory
from uphold.merge.engine.recipe import load_recipe
from uphold.merge.engine.run import prepared
from uphold.merge.protocol import Chunk, MergeMethod, Settings
from uphold.models.checkpoint import Checkpoint
from uphold.models.fingerprint import weights_hash

BASE = decoder(0)


@pytest.fixture
def recipe(tmp_path: Path) -> dict[str, Any]:
    return linear([save_model(tmp_path / str(seed), near(BASE, seed)) for seed in (1, 2)])


def registered(monkeypatch: pytest.MonkeyPatch, made: type) -> None:
    registry.methods("merge")
    monkeypatch.setitem(registry._methods, ("merge", "tested"), registry.Method("merge", "tested", "", made))


class Whole(MergeMethod):
    """Takes a tensor as it is; surveys the largest value of all."""

    base = "optional"
    parameters = ()
    unit = "tensor"

    def survey(self, views: Any) -> float:
        return max(float(chunk.models[0].max()) for view, _ in views for chunk in view.chunks())

    def prepare(self, view: Any, settings: Settings, surveyed: float) -> tuple[float, tuple[int, ...]]:
        return surveyed, view.shape

    def combine(self, chunk: Chunk, settings: Settings, prepared: Any) -> torch.Tensor:
        largest, shape = prepared
        assert chunk.models[0].shape == shape
        return torch.full(shape, largest)


def test_a_survey_comes_before_everything_and_reaches_every_tensor(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered(monkeypatch, Whole)
    content = {"merge_method": "tested", "models": [{"model": entry["model"]} for entry in recipe["models"]]}
    seen: list[str] = []

    def progress(what: str, done: int, total: int, note: str = "") -> None:
        seen.append(what)

    merge(content, out=tmp_path / "out", threads=1, progress=progress)
    largest = max(float(value.max()) for value in near(BASE, 1).values())
    from uphold.models.checkpoint import open_checkpoint

    with open_checkpoint(tmp_path / "out") as checkpoint:
        assert all((checkpoint.tensor(name) == largest).all() for name in checkpoint.infos)
    assert seen.index("merging") == seen.count("surveying") == len(BASE)


@pytest.mark.parametrize("made", [torch.zeros(3), torch.zeros(1, dtype=torch.int64)])
def test_a_method_that_returns_something_else_is_named(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: torch.Tensor
) -> None:
    class Wrong(MergeMethod):
        """Returns something else."""

        base = "optional"
        parameters = ()

        def combine(self, chunk: Chunk, settings: Settings, prepared: Any) -> torch.Tensor:
            return made

    registered(monkeypatch, Wrong)
    content = {"merge_method": "tested", "models": [{"model": recipe["models"][0]["model"]}]}
    with pytest.raises(ModelError, match=r"the merge method 'tested' made .* expected floats of shape"):
        merge(content, out=tmp_path / "out", threads=1)


@pytest.mark.parametrize("threads", [1, 2])
def test_an_error_in_a_thread_ends_the_merge(recipe: dict[str, Any], tmp_path: Path, threads: int) -> None:
    recipe["models"][0]["parameters"]["weight"] = -1.0
    with pytest.raises(UsageError, match="add up to 0"):
        merge(recipe, out=tmp_path / "out", threads=threads)
    assert not (tmp_path / "out").exists()


def test_hashes_taken_on_the_way_are_those_of_the_files(recipe: dict[str, Any]) -> None:
    hashes = InputHashes()
    with prepared(load_recipe(recipe)) as (plan, inputs):
        for tensor in plan.tensors[:3]:
            for source in tensor.sources:
                hashes.take(source)
        for name, one in inputs.items():
            assert hashes.of(one) == weights_hash(Path(name))


@pytest.mark.parametrize("behind", [0, 1, 100])
def test_a_thread_that_hashes_beside_finds_the_same(
    recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch, behind: int
) -> None:
    monkeypatch.setattr(executing, "_BEHIND", behind)
    hashes = InputHashes()
    with prepared(load_recipe(recipe)) as (plan, inputs):
        with hashes.beside():
            for tensor in plan.tensors:
                for source in tensor.sources:
                    hashes.take(source)
        monkeypatch.setattr(Checkpoint, "tensor_hash", lambda *_: "hashed once more")
        assert {hashes.of(one) for one in inputs.values()} == {weights_hash(Path(name)) for name in inputs}


def test_what_goes_wrong_beside_is_told(recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> str:
        raise ModelError("the disk is gone")

    monkeypatch.setattr(Checkpoint, "tensor_hash", fails)
    hashes = InputHashes()
    beside = hashes.beside()
    with prepared(load_recipe(recipe)) as (plan, _), pytest.raises(ModelError, match="the disk is gone"), beside:
        hashes.take(plan.tensors[0].sources[0])


def test_a_file_that_was_written_anew_is_hashed_anew(recipe: dict[str, Any], tmp_path: Path) -> None:
    hashes = InputHashes()
    merge(recipe, out=tmp_path / "out", threads=1, hashes=hashes)
    save_model(tmp_path / "1", near(BASE, 3, scale=0.2))
    again = merge(recipe, out=tmp_path / "again", threads=1, hashes=hashes)
    assert again.facts["inputs"][0]["weights"] == weights_hash(tmp_path / "1")


@pytest.mark.parametrize(("threads", "beside"), [(1, True), (2, False)])
def test_a_core_that_has_nothing_to_merge_hashes(
    recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, threads: int, beside: bool
) -> None:
    monkeypatch.setattr(executing, "MEMORY", 10**9 if threads == 2 else 0)
    names: set[str] = set()
    original = Checkpoint.tensor_hash

    def watched(self: Checkpoint, name: str) -> str:
        names.add(threading.current_thread().name.rpartition("_")[0])
        return original(self, name)

    monkeypatch.setattr(Checkpoint, "tensor_hash", watched)
    monkeypatch.setattr(executing, "_BEHIND", 100)
    merge(recipe, out=tmp_path / "out", threads=2)
    assert names == {"uphold-hash" if beside else "uphold-merge"}


@pytest.mark.parametrize("threads", [1, 3])
def test_what_a_method_remarks_is_a_warning(tmp_path: Path, threads: int) -> None:
    # Changes that point against each other: model_stock leaves the base.
    away = {name: value + 1 for name, value in BASE.items()}
    back = {name: value - 1 for name, value in BASE.items()}
    names = [str(save_model(tmp_path / name, made)) for name, made in (("o", BASE), ("a", away), ("b", back))]
    content = {"merge_method": "model_stock", "base_model": names[0], "models": [{"model": name} for name in names[1:]]}
    result = merge(content, out=tmp_path / "out", threads=threads)
    said = [text for text in result.warnings if "point against each other" in text]
    assert [text.partition(":")[0] for text in said] == [*BASE][:10]
    assert result.warnings[-1] == f"and {len(BASE) - 10} more remarks of 'model_stock' such as these"


def test_threads_are_bounded_by_cores_tensors_and_memory(
    recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with prepared(load_recipe(recipe)) as (plan, _):
        assert threads_for(plan, 1) == 1
        assert threads_for(plan, 3) == 3
        assert threads_for(plan, 1000) == len(BASE)
        largest = max(value.numel() for value in BASE.values())
        assert working_memory(plan) == 4 * largest * (2 * 2 + 3)
        monkeypatch.setattr(executing, "MEMORY", 2 * working_memory(plan))
        assert threads_for(plan, 1000) == 2
