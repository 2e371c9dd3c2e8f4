from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.losses import crossed, kl
from tests.models.tiny import tiny
from uphold.models.adapter import fresh_adapter
from uphold.models.divergence import ForwardKL
from uphold.models.encode import Batch, Encoded, collate
from uphold.models.load import load
from uphold.models.objective import Distillation, FrozenTeacher, cross_entropy
from uphold.models.rules import Term, Tokens, Weights
from uphold.models.train import trained_tokens

ROWS = [Encoded([5, 6, 7], [8, 9]), Encoded([10, 11], [12]), Encoded([13, 14, 15, 16], [17, 18])]


class Imitate:
    """Every teacher's KL, each with a weight of its own."""

    whole_sequences = False

    def __call__(self, tokens: Tokens) -> Weights:
        count = len(tokens.teachers)
        return Weights([Term(f"kl_{k}", ForwardKL(2.0), k, tokens.none + k + 1) for k in range(count)], tokens.none + 1)


def logits_of(model: Any, batch: Batch) -> tuple[torch.Tensor, Any]:
    trained = trained_tokens(batch, "all")
    full = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    return full[trained.sequence, trained.position], trained


def test_the_loss_is_the_sum_over_the_asked_tokens() -> None:
    student, teacher = tiny("llama"), tiny("qwen2")
    batch = collate(ROWS)
    z, trained = logits_of(student, batch)
    expected = (kl(logits_of(teacher, batch)[0], z, 2.0) + 2 * kl(z, z, 2.0) + crossed(z, trained)).sum()
    loss = Distillation(Imitate(), [FrozenTeacher(teacher), FrozenTeacher(student)], "all")
    assert loss(student, batch).total.item() == pytest.approx(expected.item(), rel=1e-4)
    assert loss.count(batch) == len(trained.targets) == 4 + 2 + 5
    answers = cross_entropy("answer")
    assert answers.count(batch) == 5
    assert answers(student, batch).total.item() == pytest.approx(
        crossed(z, trained)[trained.is_answer].sum().item(), rel=1e-4
    )


@pytest.mark.parametrize("kind", ["llama", "granite", "gemma2"])
def test_padding_changes_nothing(kind: str) -> None:
    student = tiny(kind, "eager")
    loss = Distillation(Imitate(), [FrozenTeacher(tiny("qwen2"))], "all")
    totals = [loss(student, collate(ROWS, extra)).total.item() for extra in (0, 5, 17)]
    assert totals[1:] == pytest.approx([totals[0]] * 2, rel=1e-5)


def test_gradients_reach_the_adapter_and_nothing_else(model_v1: Path, model_v2: Path) -> None:
    old, new = load(model_v1), load(model_v2)
    student = fresh_adapter(new, 4, 8, 0.0, seed=0)
    loss = Distillation(Imitate(), [FrozenTeacher(old.model), FrozenTeacher(new.model)], "all")
    batch = collate(ROWS)
    loss(student, batch).total.backward()
    assert all(p.grad is None for model in (old.model, new.model) for p in model.parameters())
    found = {name: p.grad for name, p in student.named_parameters() if p.requires_grad}
    assert all(gradient is not None for gradient in found.values())
    student.zero_grad(set_to_none=True)
    z, trained = logits_of(student, batch)
    old_z, new_z = (logits_of(one.model, batch)[0].detach() for one in (old, new))
    (kl(old_z, z, 2.0) + 2 * kl(new_z, z, 2.0) + crossed(z, trained)).sum().backward()
    for name, parameter in student.named_parameters():
        if parameter.requires_grad:
            assert torch.allclose(found[name], parameter.grad, rtol=1e-3, atol=1e-4), name


def test_one_objective_serves_several_students() -> None:
    loss = cross_entropy("all")
    batch = collate(ROWS)
    first = loss(tiny("llama"), batch).total.item()
    assert loss(tiny("granite"), batch).total.item() != pytest.approx(first)
    assert loss(tiny("llama"), batch).total.item() == pytest.approx(first)
