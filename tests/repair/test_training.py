from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import make_record, write_task
from uphold import load_task
from uphold.core.errors import UsageError
from uphold.models.load import load
from uphold.models.train import cross_entropy
from uphold.repair.training import AdapterConfig, Validation, mean_score, training_rows, validation_scores


def test_rows_hold_prompt_and_gold_answer(model_v1: Path, tmp_path: Path) -> None:
    loaded = load(model_v1)
    task = load_task(write_task(tmp_path))
    rows = training_rows(loaded, task, "train")
    for row, instance in zip(rows, task.instances("train"), strict=True):
        assert loaded.tokenizer.decode(row.prompt) == instance.prompt
        assert loaded.tokenizer.decode(row.answer) == instance.target
    generated = load_task(write_task(tmp_path, kind="generate", options=None))
    assert all(row.answer[-1] == loaded.tokenizer.eos_token_id for row in training_rows(loaded, generated, "train"))


@pytest.mark.parametrize("select", ["accuracy", "loss"])
def test_validation_measures_what_epochs_are_chosen_by(model_v1: Path, tmp_path: Path, select: str) -> None:
    loaded = load(model_v1)
    task = load_task(write_task(tmp_path))
    schedule = AdapterConfig(select=select)  # type: ignore[arg-type]
    own = validation_scores(loaded, task, None, lambda *_: None, "")
    validation = Validation(task, loaded, schedule, lambda model, batch: cross_entropy(model, batch, "all"), own)
    measured = validation.measure(loaded.model)
    assert measured["accuracy"] == sum(own.values()) / len(own)
    assert measured["nfr"] == 0
    assert ("loss" in measured) == (select == "loss")
    perfect = Validation(task, loaded, schedule, validation.objective, dict.fromkeys(own, 1.0))
    assert perfect.measure(loaded.model)["nfr"] == pytest.approx(1 - measured["accuracy"])


def test_a_mean_of_nothing_is_refused() -> None:
    assert mean_score([make_record(1, True, "a"), make_record(2, None, "b")]) == 1.0
    with pytest.raises(UsageError, match="have no score"):
        mean_score([make_record(2, None, "b")])


def test_impossible_adapters_are_refused() -> None:
    with pytest.raises(UsageError, match="rank >= 1"):
        AdapterConfig(rank=0)
