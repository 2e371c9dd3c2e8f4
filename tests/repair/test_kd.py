from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.models.losses import crossed, draw, kl, loss_of, predictions, seen
from uphold.core.errors import UsageError
from uphold.repair.kd import KdConfig, KdRule

TRAINED = predictions([8, 2, 5, 1, 7, 7, 3], sequence=[0, 0, 0, 1, 1, 2, 2])
STUDENT, OLD = draw(7, 9, seed=1), draw(7, 9, seed=8)


def test_the_loss_is_the_papers() -> None:
    z = STUDENT.clone().requires_grad_()
    expected = (0.7 * crossed(z, TRAINED) + 0.3 * 9 * kl(OLD, z, 3.0)).sum()
    expected.backward()
    found = loss_of(KdRule(0.3, 3.0), STUDENT, [OLD], TRAINED)
    assert found.total == pytest.approx(expected.item(), rel=1e-5)
    assert z.grad is not None
    assert torch.allclose(found.gradient, z.grad, atol=1e-5)


@pytest.mark.parametrize("divergence", ["reverse-kl", "jensen-shannon"])
def test_another_divergence_may_take_the_place_of_kl(divergence: Any) -> None:
    z = STUDENT.clone().requires_grad_()
    if divergence == "reverse-kl":
        apart = kl(z, OLD, 3.0)
    else:
        own, old = (z / 3).softmax(-1), (OLD / 3).softmax(-1)
        middle = (own + old) / 2
        apart = 0.5 * ((own * (own / middle).log()).sum(-1) + (old * (old / middle).log()).sum(-1))
    expected = (0.7 * crossed(z, TRAINED) + 0.3 * 9 * apart).sum()
    expected.backward()
    found = loss_of(KdRule(0.3, 3.0, divergence=divergence), STUDENT, [OLD], TRAINED)
    assert found.total == pytest.approx(expected.item(), rel=1e-5)
    assert z.grad is not None
    assert torch.allclose(found.gradient, z.grad, atol=1e-5)


@pytest.mark.parametrize("conditional", ["token", "sequence"])
def test_where_the_old_model_is_worse_the_conditional_form_is_cross_entropy(conditional: Any) -> None:
    worse = STUDENT.clone()
    worse[torch.arange(7), TRAINED.targets] -= 0.1
    found = loss_of(KdRule(0.5, 2.0, conditional), STUDENT, [worse], TRAINED)
    assert found.total == pytest.approx(float(crossed(STUDENT, TRAINED).sum()), rel=1e-6)
    better = STUDENT.clone()
    better[torch.arange(7), TRAINED.targets] += 0.1
    for teacher in (better, STUDENT):
        found = loss_of(KdRule(0.5, 2.0, conditional), STUDENT, [teacher], TRAINED)
        plain = loss_of(KdRule(0.5, 2.0), STUDENT, [teacher], TRAINED)
        assert found.total == pytest.approx(plain.total, rel=1e-6)


def test_tokens_are_judged_alone_and_sequences_together() -> None:
    better = crossed(OLD, TRAINED) <= crossed(STUDENT, TRAINED)
    alone, together = KdRule(conditional="token"), KdRule(conditional="sequence")
    assert alone.distils(seen(alone, STUDENT, [OLD], TRAINED)).tolist() == better.tolist()
    gain = crossed(STUDENT, TRAINED) - crossed(OLD, TRAINED)
    rows = [float(gain[TRAINED.sequence == row].sum()) >= 0 for row in range(3)]
    expected = [rows[row] for row in TRAINED.sequence.tolist()]
    assert together.distils(seen(together, STUDENT, [OLD], TRAINED)).tolist() == expected
    assert len(set(expected)) == 2
    assert expected != better.tolist()


def test_impossible_options_are_refused() -> None:
    with pytest.raises(UsageError, match="did you mean 'sequence'"):
        KdConfig(conditional="sequences")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="did you mean 'reverse-kl'"):
        KdConfig(divergence="reverse_kl")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"kl_weight in \[0, 1\]"):
        KdConfig(kl_weight=-0.1)
