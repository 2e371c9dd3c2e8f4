from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.conftest import write_task
from tests.models.losses import draw, predictions, seen
from uphold import evaluate, load_task
from uphold.core.errors import UsageError
from uphold.repair.judging import Rightness, check_judge, recorded
from uphold.repair.kd import KdRule
from uphold.repair.protocol import begin

TRAINED = predictions([8, 2, 5, 1], sequence=[0, 0, 1, 2], instance=[4, 4, 0, 2])


def test_a_token_gets_the_score_of_its_instance_or_is_judged_itself() -> None:
    student, old = draw(4, 9, seed=1), draw(4, 9, seed=2)
    old[1, 2] = 50
    tokens = seen(KdRule(), student, [student, old], TRAINED)
    scores = torch.tensor([0.25, 9, 1.0, 9, 0.0])
    assert Rightness(1, scores)(tokens).tolist() == [0.0, 0.0, 0.25, 1.0]
    assert Rightness(1)(tokens).tolist() == [float(right) for right in old.argmax(-1) == TRAINED.targets]


def test_scores_are_those_of_the_recorded_answers_to_the_train_split(
    model_v1: Path, model_v2: Path, tmp_path: Path
) -> None:
    task = load_task(write_task(tmp_path))
    setting = begin("mine", "", model_v1, model_v2, task, out=tmp_path / "out", force=True)
    found = recorded(setting, setting.old, 0, "instance", "").scores
    by_id = {record.id: record.score for record in evaluate(model_v1, task, split="train").records()}
    assert found is not None
    assert found.tolist() == [by_id[instance.id] for instance in task.instances("train")]
    assert 0 < found.sum() < len(found)
    assert recorded(setting, setting.old, 0, "token", "").scores is None


def test_what_cannot_be_judged_is_refused() -> None:
    check_judge("token", "loss")
    with pytest.raises(UsageError, match="did you mean 'token'"):
        check_judge("tokens", "nfr")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="needs those to the validation split"):
        check_judge("instance", "loss")
