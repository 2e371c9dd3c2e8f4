from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.repair.interpolated import TINY, Scene, make_scene
from uphold.models.fingerprint import weights_hash
from uphold.models.load import load
from uphold.repair.adapt import adapt
from uphold.repair.members import load_member, new_base, train_members
from uphold.repair.protocol import begin
from uphold.tasks.load import load_task


@pytest.fixture(scope="module")
def scene(model_v1: Path, model_v2: Path, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return make_scene(tmp_path_factory.mktemp("members"), model_v1, model_v2)


@pytest.fixture(autouse=True)
def tiny_members(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uphold.repair.members.member_config", lambda task: TINY)


def test_members_are_what_adapt_makes_with_their_seed_and_are_not_made_twice(scene: Scene, tmp_path: Path) -> None:
    task = load_task(scene.task)
    setting = begin("x", "", scene.old, scene.other, task, out=tmp_path / "out", force=True)
    first, second = train_members(setting, 2, 3)
    alone = adapt(scene.other.partition("+")[0], task, out=tmp_path / "alone", config=replace(TINY, seed=4))
    assert weights_hash(second) == weights_hash(alone.adapter) != weights_hash(first)
    state = tmp_path / "out" / "members" / "seed-3" / "training" / "done" / "state.safetensors"
    stamp = state.stat().st_mtime_ns
    assert train_members(setting, 2, 3) == [first, second]
    assert state.stat().st_mtime_ns == stamp
    assert train_members(setting, 0, 3) == []


def test_a_model_in_memory_has_members_too(scene: Scene, tmp_path: Path) -> None:
    task = load_task(scene.task)
    there = load(scene.other)
    by_name = begin("x", "", scene.old, scene.other, task, out=tmp_path / "a", force=True)
    in_memory = by_name.__class__(
        **{**vars(by_name), "new": load((there.model, there.tokenizer)), "folder": tmp_path / "b"}
    )
    ids = torch.arange(4, 20).unsqueeze(0)
    logits = []
    for setting in (by_name, in_memory):
        [member] = train_members(setting, 1, 3)
        with torch.inference_mode():
            logits.append(load_member(setting, member).model(ids).logits)
    assert torch.equal(*logits)
    whole = begin("x", "", scene.old, scene.other.partition("+")[0], task, out=tmp_path / "c", force=True)
    assert new_base(whole) is whole.new
