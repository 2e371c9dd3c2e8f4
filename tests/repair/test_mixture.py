from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.models.losses import crossed, draw, kl, loss_of, predictions
from uphold.core.errors import UsageError
from uphold.repair.mixture import MixtureConfig, MixtureRule
from uphold.repair.uphold import UpholdRule

TRAINED = predictions([8, 2, 5, 1, 7, 7, 3])
STUDENT, OLD, NEW = (draw(7, 9, seed=seed) for seed in (1, 2, 3))


@given(st.floats(0, 1))
def test_the_target_is_the_average_of_probabilities(share: float) -> None:
    target = share * OLD.softmax(-1) + (1 - share) * NEW.softmax(-1)
    expected = float(kl(target.log(), STUDENT).sum())
    assert loss_of(MixtureRule(share=share), STUDENT, [OLD, NEW], TRAINED).total == pytest.approx(expected, rel=1e-4)


def test_all_of_one_model_is_that_model() -> None:
    for share, teacher in ((1.0, OLD), (0.0, NEW)):
        found = loss_of(MixtureRule(share=share, temperature=2.0), STUDENT, [OLD, NEW], TRAINED)
        assert found.total == pytest.approx(float(kl(teacher, STUDENT, 2.0).sum()), rel=1e-5)


def test_the_default_repair_without_gold_weight_is_the_average() -> None:
    mixed, own = (
        loss_of(rule, STUDENT, [OLD, NEW], TRAINED) for rule in (MixtureRule(share=0.3), UpholdRule(0.3, 0.0))
    )
    assert own.total == mixed.total
    assert torch.equal(own.gradient, mixed.gradient)


def test_equal_teachers_and_student_give_no_loss() -> None:
    found = loss_of(MixtureRule(), NEW, [NEW, NEW], TRAINED)
    assert found.total == pytest.approx(0, abs=1e-5)
    assert found.gradient.abs().max() < 1e-6


def test_the_best_teacher_is_the_one_that_likes_the_gold_token_more() -> None:
    better = crossed(OLD, TRAINED) < crossed(NEW, TRAINED)
    assert 0 < better.sum() < 7
    expected = kl(torch.where(better[:, None], OLD, NEW), STUDENT).sum()
    found = loss_of(MixtureRule("best"), STUDENT, [OLD, NEW], TRAINED)
    assert found.total == pytest.approx(float(expected), rel=1e-5)
    assert found.logs["kl_old_rate_answer"] == (float(better.sum()), 7.0)
    # Of equals it is the new one: the rate of the old one is 0.
    assert loss_of(MixtureRule("best"), STUDENT, [NEW, NEW], TRAINED).logs["kl_old_rate_answer"] == (0.0, 7.0)


@pytest.mark.parametrize("teacher", ["average", "best"])
def test_cross_entropy_may_be_mixed_in(teacher: str) -> None:
    pure, half, none = (
        loss_of(MixtureRule(teacher, kl_weight=weight), STUDENT, [OLD, NEW], TRAINED)  # type: ignore[arg-type]
        for weight in (1.0, 0.5, 0.0)
    )
    assert none.total == pytest.approx(float(crossed(STUDENT, TRAINED).sum()), rel=1e-5)
    assert half.total == pytest.approx((pure.total + none.total) / 2, rel=1e-5)
    assert torch.allclose(half.gradient, (pure.gradient + none.gradient) / 2, atol=1e-6)


def test_impossible_options_are_refused() -> None:
    with pytest.raises(UsageError, match="did you mean 'best'"):
        MixtureConfig(teacher="bets")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"share and kl_weight in \[0, 1\]"):
        MixtureConfig(share=1.5)
