from __future__ import annotations

import pytest
import torch

from tests.models.losses import crossed, draw, kl, loss_of, predictions
from uphold.core.errors import UsageError
from uphold.repair.self_distillation import SelfDistillationConfig, SelfDistillationRule

TRAINED = predictions([8, 2, 5])
STUDENT, NEW = draw(3, 9, seed=1), draw(3, 9, seed=2)


def test_the_loss_mixes_cross_entropy_with_the_new_model() -> None:
    expected = (0.25 * crossed(STUDENT, TRAINED) + 0.75 * 9 * kl(NEW, STUDENT, 3.0)).sum()
    found = loss_of(SelfDistillationRule(0.75, 3.0), STUDENT, [NEW], TRAINED)
    assert found.total == pytest.approx(float(expected), rel=1e-5)


def test_without_cross_entropy_a_student_that_is_its_teacher_stays() -> None:
    found = loss_of(SelfDistillationRule(1.0), NEW, [NEW], TRAINED)
    assert found.total == 0
    assert torch.equal(found.gradient, torch.zeros_like(NEW))


def test_impossible_options_are_refused() -> None:
    with pytest.raises(UsageError, match=r"kl_weight in \[0, 1\]"):
        SelfDistillationConfig(kl_weight=2)
