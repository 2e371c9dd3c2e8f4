from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.training import PLAIN, SCHEDULE, Constant, rows, run
from uphold.core.errors import EmptyError, ModelError, UsageError
from uphold.models.encode import Encoded, collate
from uphold.models.load import load
from uphold.models.train import Schedule, StepLoss, chosen_epoch, trained_tokens


def test_padding_changes_nothing(model_v1: Path) -> None:
    model = load(model_v1).model
    data = rows(model_v1)
    losses = [PLAIN(model, collate(data, extra)).total.item() for extra in (0, 9)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_only_the_asked_tokens_are_trained() -> None:
    batch = collate([Encoded([5, 6], [7, 8], 3), Encoded([9], [3])])
    answers, everything = trained_tokens(batch, "answer"), trained_tokens(batch, "all")
    assert answers.targets.tolist() == [7, 8, 3]
    assert list(zip(answers.sequence.tolist(), answers.position.tolist(), strict=True)) == [(0, 1), (0, 2), (1, 0)]
    assert everything.targets.tolist() == [6, 7, 8, 3]
    assert everything.is_answer.tolist() == [False, True, True, True]
    assert everything.sequence.tolist() == [0, 0, 0, 1]
    assert everything.instance.tolist() == [3, 3, 3, -1]


def test_what_cannot_be_trained_is_refused(model_v1: Path, tmp_path: Path) -> None:
    with pytest.raises(EmptyError, match="train split is empty"):
        run(model_v1, tmp_path / "a", examples=[])
    with pytest.raises(ModelError, match="not finite at step 0"):
        run(model_v1, tmp_path / "b", objective=Constant(StepLoss(torch.tensor(float("nan")), {})))
    with pytest.raises(UsageError, match="learning rate > 0"):
        Schedule(learning_rate=0)
    with pytest.raises(UsageError, match="learning rate > 0"):
        Schedule(learning_rate=float("nan"))
    with pytest.raises(UsageError, match="must not be negative"):
        Schedule(warmup_steps=-1)
    with pytest.raises(UsageError, match="did you mean 'linear'"):
        Schedule(decay="linaer")  # type: ignore[arg-type]


def test_the_learning_rate_rises_and_falls_as_asked() -> None:
    def rates(decay: Any) -> list[float]:
        schedule = replace(SCHEDULE, learning_rate=1.0, warmup_steps=2, decay=decay)
        return [schedule.rate(step, 6) for step in range(6)]

    assert rates("constant") == [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert rates("linear") == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    assert rates("cosine") == pytest.approx([0.5, 1.0, 1.0, 0.5 + 0.125**0.5, 0.5, 0.5 - 0.125**0.5])


def entry(epoch: int, accuracy: float, nfr: float = 0.0, loss: float = 0.0) -> dict[str, Any]:
    return {"epoch": epoch, "validation": {"accuracy": accuracy, "nfr": nfr, "loss": loss}}


def test_which_epoch_is_kept() -> None:
    history = [entry(0, 0.60, 0.10, 3), entry(1, 0.62, 0.09, 2), entry(2, 0.61, 0.07, 1), entry(3, 0.55, 0.01, 4)]
    assert chosen_epoch(history, "accuracy") == 1
    assert chosen_epoch(history, "nfr") == 2
    assert chosen_epoch(history, "loss") == 2
    assert chosen_epoch(history, "last") == 3
    assert chosen_epoch(history[:1], "nfr") == 0
    falling = [entry(0, 0.60, 0.10), entry(1, 0.50, 0.02), entry(2, 0.52, 0.05)]
    assert chosen_epoch(falling, "nfr") == 2
