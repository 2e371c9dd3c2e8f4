from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from uphold.models import distillation, targets
from uphold.models.distillation import distillation_loss
from uphold.models.divergence import ForwardKL, gold_statistics
from uphold.models.projection import Projected, Whole
from uphold.models.rules import Trained
from uphold.models.targets import Judged, forward_kl
from uphold.repair.muscle import MuscleRule

TOKENS, WIDTH, VOCABULARY = 50, 8, 31


class Counting(torch.nn.Linear):
    """An output head that counts the rows it projects."""

    def __init__(self, seed: int) -> None:
        super().__init__(WIDTH, VOCABULARY, bias=False)
        self.weight.requires_grad_(False).copy_(draw(VOCABULARY, WIDTH, seed=seed))
        self.rows: list[int] = []

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        self.rows.append(len(hidden))
        return super().forward(hidden)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def setting() -> tuple[list[torch.Tensor], list[Counting], Trained]:
    hidden, heads = [draw(TOKENS, WIDTH, seed=seed) for seed in range(3)], [Counting(seed) for seed in range(3)]
    numbers = torch.arange(TOKENS)
    gold = (hidden[0] @ heads[0].weight.T).argmax(dim=-1)
    wanted = torch.where(numbers % 3 == 0, (gold + 1) % VOCABULARY, gold)
    return hidden, heads, Trained(numbers // 10, numbers % 10, wanted, numbers % 2 == 0, numbers // 10)


def loss(hidden: list[torch.Tensor], heads: list[Any], trained: Trained) -> tuple[torch.Tensor, torch.Tensor]:
    source = hidden[0].clone().requires_grad_()
    made = [Projected(one, head) for one, head in zip(hidden[1:], heads[1:], strict=True)]
    total, _ = distillation_loss(Projected(source, heads[0]), made, trained, MuscleRule())
    total.backward()
    assert source.grad is not None
    return total.detach(), source.grad


def test_teachers_are_projected_only_where_they_are_targets() -> None:
    hidden, heads, trained = setting()
    loss(hidden, heads, trained)
    wrong = len(range(0, TOKENS, 3))
    assert [sum(head.rows) for head in heads] == [TOKENS, wrong, TOKENS - wrong]


def test_teachers_with_one_head_are_projected_together_and_say_the_same() -> None:
    hidden, heads, trained = setting()
    apart = [heads[0], heads[1], copy.deepcopy(heads[1])]
    expected = loss(hidden, apart, trained)
    heads[1].rows.clear()
    found = loss(hidden, [heads[0], heads[1], heads[1]], trained)
    assert heads[1].rows == [TOKENS]
    assert torch.allclose(found[0], expected[0])
    assert torch.allclose(found[1], expected[1], atol=1e-6)


@pytest.mark.parametrize(("chunk", "block"), [(1, 1), (7 * VOCABULARY, 2 * VOCABULARY), (1 << 20, 5 * VOCABULARY)])
def test_sizes_of_chunks_and_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch, chunk: int, block: int) -> None:
    hidden, heads, trained = setting()
    expected = loss(hidden, heads, trained)
    monkeypatch.setattr(distillation, "CHUNK_LOGITS", chunk)
    monkeypatch.setattr(targets, "BLOCK_LOGITS", block)
    found = loss(hidden, heads, trained)
    assert torch.allclose(found[0], expected[0])
    assert torch.allclose(found[1], expected[1], atol=1e-6)


def test_a_students_whole_logits_are_left_as_they_were() -> None:
    hidden, heads, trained = setting()
    logits = (hidden[0] @ heads[0].weight.T).requires_grad_()
    before = logits.detach().clone()
    teachers = [Projected(one, head) for one, head in zip(hidden[1:], heads[1:], strict=True)]
    distillation_loss(Whole(logits), teachers, trained, MuscleRule())[0].backward()
    assert torch.equal(logits, before)
    assert logits.grad is not None
    assert bool(logits.grad.any())


def test_judging_later_is_judging() -> None:
    logits = draw(40, 11).round()  # rounded, so that there are ties
    wanted = torch.arange(40) % 11
    ours, plain = Judged(logits, wanted), gold_statistics(logits, wanted)
    assert torch.equal(ours.right, plain.right)
    assert torch.allclose(ours.logprob, plain.logprob, atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 100.0])
def test_the_quick_kl_is_the_plain_one(temperature: float) -> None:
    student, teacher = draw(20, 300) * 5 + 1000, draw(20, 300, seed=1) * 5 - 50
    teacher[:, 7] = -torch.inf
    divergence = ForwardKL(temperature, temperature**2)
    plain = divergence(student, (teacher / temperature).log_softmax(dim=-1))
    quick = forward_kl(student, teacher, divergence)
    assert torch.allclose(quick.value, plain.value, rtol=1e-5, atol=1e-5)
    assert torch.allclose(quick.gradient, plain.gradient, atol=1e-6)
