from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import write_task
from uphold import adapt, compare
from uphold.core.errors import EmptyError, StorageError
from uphold.models.fingerprint import weights_hash
from uphold.repair import AdaptConfig

TINY = AdaptConfig(epochs=3, learning_rate=5e-3, warmup_steps=2, batch_size=8, micro_batch=8, rank=4, alpha=8)


def test_an_adapter_is_trained_chosen_and_used(model_v1: Path, tmp_path: Path) -> None:
    task = write_task(tmp_path, 120)
    result = adapt(model_v1, task, out=tmp_path / "out", config=TINY)
    chosen = [entry for entry in result.history if entry.chosen]
    assert [entry.validation["accuracy"] for entry in chosen] == [
        max(entry.validation["accuracy"] for entry in result.history[1:])
    ]
    assert result.history[-1].train["loss"] < result.history[1].train["loss"]
    assert result.splits == {"train": 30, "validation": 30, "test": 60}
    assert "validation accuracy" in str(result)
    saved = json.loads((tmp_path / "out" / "adapt.json").read_text())
    assert (saved["base"], saved["adapter"], saved["splits"]) == (str(model_v1), "adapter", result.splits)
    assert [entry["chosen"] for entry in saved["history"]] == [entry.chosen for entry in result.history]
    assert compare(model_v1, result.reference, task).count == 60


def test_the_same_call_gives_the_same_bytes_and_another_seed_others(model_v1: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    task = write_task(tmp_path)
    hashes = [
        weights_hash(adapt(model_v1, task, out=tmp_path / str(index), config=replace(TINY, seed=seed)).adapter)
        for index, seed in enumerate((0, 0, 1))
    ]
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_generate_task_learns_to_stop(model_v1: Path, tmp_path: Path) -> None:
    task = write_task(
        tmp_path, 40, kind="generate", options=None, target="{answer}", decoding={"max_new_tokens": 6, "stop": []}
    )
    config = AdaptConfig(epochs=25, learning_rate=2e-2, warmup_steps=2, batch_size=8, rank=8, alpha=16, tokens="answer")
    result = adapt(model_v1, task, out=tmp_path / "out", config=config)
    run = compare(model_v1, result.reference, task).new
    assert all(len(record.output) <= 1 for record in run.records())


def test_saving_elsewhere_copies_the_adapter(model_v1: Path, tmp_path: Path) -> None:
    result = adapt(model_v1, write_task(tmp_path), out=tmp_path / "out", config=TINY)
    copy = result.save(tmp_path / "copy")
    assert (copy / "adapt.json").read_bytes() == (tmp_path / "out" / "adapt.json").read_bytes()
    assert weights_hash(copy / "adapter") == weights_hash(result.adapter)


def test_nothing_to_train_on_or_nowhere_to_write(model_v1: Path, tmp_path: Path) -> None:
    task = write_task(tmp_path, 20, split={"test": 1.0, "validation": 0.0})
    with pytest.raises(EmptyError, match="no train instances"):
        adapt(model_v1, task, out=tmp_path / "out", config=TINY)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="is a file"):
        adapt(model_v1, task, out=tmp_path / "file", config=TINY)


def test_the_card_names_base_and_options(model_v1: Path, tmp_path: Path) -> None:
    result = adapt(model_v1, write_task(tmp_path), out=tmp_path / "out", config=TINY)
    card = (result.adapter / "README.md").read_text()
    assert card.startswith("---\n")
    assert "library_name: peft" in card
    assert str(model_v1) in card
    assert json.loads((result.adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == str(model_v1)
