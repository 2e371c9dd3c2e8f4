from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import make_record, write_task
from uphold import evaluate, load_task
from uphold.core.errors import UsageError
from uphold.models.encode import collate
from uphold.models.load import load
from uphold.models.objective import cross_entropy
from uphold.repair.training import AdapterConfig, DistillConfig, Validation, answer_rows, mean_score, training_rows


def test_rows_hold_prompt_and_gold_answer(model_v1: Path, tmp_path: Path) -> None:
    loaded = load(model_v1)
    task = load_task(write_task(tmp_path))
    rows = training_rows(loaded, task, "train")
    for row, instance in zip(rows, task.instances("train"), strict=True):
        assert loaded.tokenizer.decode(row.prompt) == instance.prompt
        assert loaded.tokenizer.decode(row.answer) == instance.target
    assert [row.instance for row in rows] == list(range(len(rows)))
    other = answer_rows(loaded, task, task.instances("train")[:2], ["a", "dc"])
    assert [loaded.tokenizer.decode(row.answer) for row in other] == ["a", "dc"]
    generated = load_task(write_task(tmp_path, kind="generate", options=None))
    assert all(row.answer[-1] == loaded.tokenizer.eos_token_id for row in training_rows(loaded, generated, "train"))


def test_the_validation_loss_is_the_objectives_mean_over_what_it_counts(model_v1: Path, tmp_path: Path) -> None:
    loaded = load(model_v1)
    task = load_task(write_task(tmp_path))
    losses = []
    for micro_batch in (3, 64):
        schedule = AdapterConfig(select="loss", micro_batch=micro_batch)
        losses.append(Validation(task, loaded, schedule, cross_entropy("answer")).measure(loaded.model)["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    batch = collate(training_rows(loaded, task, "validation"))
    whole = cross_entropy("answer")
    assert losses[1] == pytest.approx(whole(loaded.model, batch).total.item() / whole.count(batch), rel=1e-5)


@pytest.mark.parametrize("select", ["accuracy", "loss"])
def test_validation_measures_what_epochs_are_chosen_by(model_v1: Path, tmp_path: Path, select: str) -> None:
    loaded = load(model_v1)
    task = load_task(write_task(tmp_path))
    schedule = AdapterConfig(select=select)  # type: ignore[arg-type]
    own = {record.id: record.score or 0.0 for record in evaluate(loaded, task, split="validation").records()}
    validation = Validation(task, loaded, schedule, cross_entropy("all"), own)
    measured = validation.measure(loaded.model)
    assert measured["accuracy"] == sum(own.values()) / len(own)
    assert measured["nfr"] == 0
    assert ("loss" in measured) == (select == "loss")
    assert "nfr" not in Validation(task, loaded, schedule, validation.objective).measure(loaded.model)
    perfect = Validation(task, loaded, schedule, validation.objective, dict.fromkeys(own, 1.0))
    assert perfect.measure(loaded.model)["nfr"] == pytest.approx(1 - measured["accuracy"])


def test_a_mean_of_nothing_is_refused() -> None:
    assert mean_score([make_record(1, True, "a"), make_record(2, None, "b")]) == 1.0
    with pytest.raises(UsageError, match="have no score"):
        mean_score([make_record(2, None, "b")])


def test_impossible_adapters_are_refused() -> None:
    with pytest.raises(UsageError, match="rank >= 1"):
        AdapterConfig(rank=0)
    with pytest.raises(UsageError, match="temperature must be above 0"):
        DistillConfig(temperature=-1.0)
