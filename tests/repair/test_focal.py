from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.models.losses import crossed, draw, kl, loss_of, predictions
from uphold.core.errors import UsageError
from uphold.models.divergence import ForwardKL, HalfSquaredLogits
from uphold.repair.focal import FocalConfig, FocalRule
from uphold.repair.judging import Rightness

TRAINED = predictions([8, 2, 5, 1, 7, 7, 3], sequence=[0, 0, 0, 1, 1, 2, 2])
STUDENT, OLD = draw(7, 9, seed=1), draw(7, 9, seed=2)
RIGHT = torch.tensor([1.0, 0.0, 1.0])
PER_TOKEN = RIGHT[TRAINED.sequence]
WRONG = (STUDENT.argmax(-1) != TRAINED.targets).float()


def rule(config: FocalConfig) -> FocalRule:
    gold, focus = config.shares
    return FocalRule(
        Rightness(0, RIGHT), config.divergence, config.focal_alpha, config.focal_beta, gold, focus, config.filter
    )


def test_each_weight_multiplies_the_distance_of_its_own_token() -> None:
    """Multiplied as (N, 1) by (N,), as in the released code, the mean would be mean(w)·mean(d)."""
    weights, distances = 1 + 5 * PER_TOKEN, 100**2 * kl(OLD.double(), STUDENT.double(), 100.0)
    found = loss_of(rule(FocalConfig()), STUDENT, [OLD], TRAINED)
    gold = float(crossed(STUDENT, TRAINED).sum())
    assert found.total == pytest.approx(gold + float((weights * distances).sum()), rel=1e-4)
    broadcast = (weights[:, None] * distances).mean(-1).sum()
    assert float(broadcast) == pytest.approx(7 * float(weights.mean() * distances.mean()))
    assert abs(found.total - gold - float(broadcast)) > 0.01 * float(broadcast)


def test_the_gradient_is_that_of_the_formula() -> None:
    z = STUDENT.double().requires_grad_()
    (crossed(z, TRAINED) + (1 + 5 * PER_TOKEN) * 100**2 * kl(OLD.double(), z, 100.0)).sum().backward()
    found = loss_of(rule(FocalConfig()), STUDENT, [OLD], TRAINED)
    assert z.grad is not None
    assert torch.allclose(found.gradient.double(), z.grad, rtol=1e-3, atol=1e-3)


def test_logits_may_be_matched_instead() -> None:
    config = FocalConfig(distance="lm")
    assert isinstance(config.divergence, HalfSquaredLogits)
    distances = 0.5 * (STUDENT - OLD).square().sum(-1)
    expected = (crossed(STUDENT, TRAINED) + 0.4 * (1 + 5 * PER_TOKEN) * distances).sum()
    assert loss_of(rule(config), STUDENT, [OLD], TRAINED).total == pytest.approx(float(expected), rel=1e-5)


def test_the_shares_of_cross_entropy_and_focus() -> None:
    assert FocalConfig().shares == (1.0, 1.0)
    assert FocalConfig(distance="lm").shares == (1.0, 0.4)
    assert FocalConfig(focal_weight=2.0).shares == (1.0, 2.0)
    assert FocalConfig(mix=0.75).shares == (0.25, 0.75)
    assert FocalConfig().divergence == ForwardKL(100.0, scale=100.0**2)
    pure = loss_of(rule(FocalConfig(mix=1.0, temperature=1.0, focal_beta=0.0)), STUDENT, [OLD], TRAINED)
    assert pure.total == pytest.approx(float(kl(OLD, STUDENT).sum()), rel=1e-5)


@pytest.mark.parametrize(
    ("which", "kept"),
    [
        ("all", torch.ones(7)),
        ("old-correct", PER_TOKEN),
        ("negative-flip", PER_TOKEN * WRONG),
        ("new-incorrect", WRONG),
    ],
)
def test_filters(which: Any, kept: torch.Tensor) -> None:
    config = FocalConfig(filter=which, temperature=2.0, mix=1.0)
    expected = (kept * (1 + 5 * PER_TOKEN) * 4 * kl(OLD, STUDENT, 2.0)).sum()
    assert loss_of(rule(config), STUDENT, [OLD], TRAINED).total == pytest.approx(float(expected), rel=1e-5)


def test_impossible_options_are_refused() -> None:
    with pytest.raises(UsageError, match="did you mean 'negative-flip'"):
        FocalConfig(filter="negative-flips")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="distance"):
        FocalConfig(distance="l2")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="at least 0"):
        FocalConfig(focal_beta=-1)
    with pytest.raises(UsageError, match="goes without focal_weight"):
        FocalConfig(mix=0.5, focal_weight=1.0)
    with pytest.raises(UsageError, match="select 'loss'"):
        FocalConfig(select="loss")
