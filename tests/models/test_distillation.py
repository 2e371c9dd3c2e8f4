from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import pytest
import torch

from tests.models.losses import crossed, draw, kl, loss_of, predictions
from uphold.models import distillation
from uphold.models.distillation import distillation_loss
from uphold.models.divergence import ForwardKL, HalfSquaredLogits, Valued
from uphold.models.projection import Projected, Whole
from uphold.models.rules import Term, Tokens, Weights

COUNT, VOCABULARY = 9, 11
STUDENT, OLD, NEW = (draw(COUNT, VOCABULARY, seed=seed) for seed in (1, 2, 3))
TRAINED = predictions([0, 3, 1, 4, 1, 5, 9, 2, 6], is_answer=[False] * 5 + [True] * 4)
FIRST = torch.tensor([0.5, 0, 2, 0, 1, 0, 0, 3, 0])
SECOND = torch.tensor([0, 1.0, 0, 0, 1, 0, 0.25, 0, 0])
GOLD = torch.tensor([1.0, 0, 0, 0, 0, 0, 0, 0.5, 4])


@dataclass
class Fixed:
    """A rule with given weights, each shape (COUNT,)."""

    terms: Sequence[Term] = ()
    gold: torch.Tensor | None = None
    whole_sequences = False

    def __call__(self, tokens: Tokens) -> Weights:
        here = tokens.trained.position
        terms = [
            Term(one.name, one.divergence, self._part(one.teacher, here), one.weight[here], one.mix)
            for one in self.terms
        ]
        return Weights(terms, None if self.gold is None else self.gold[here])

    @staticmethod
    def _part(teacher: int | torch.Tensor, here: torch.Tensor) -> int | torch.Tensor:
        return teacher if isinstance(teacher, int) else teacher[here]


RULE = Fixed([Term("kl_old", ForwardKL(2.0), 0, FIRST), Term("kl_new", ForwardKL(3.0), 1, SECOND)], GOLD)


@pytest.mark.parametrize("tokens_per_chunk", [1, 2, 4, 100])
def test_each_weight_counts_for_its_own_token_however_small_the_chunks(
    monkeypatch: pytest.MonkeyPatch, tokens_per_chunk: int
) -> None:
    monkeypatch.setattr(distillation, "CHUNK_LOGITS", tokens_per_chunk * VOCABULARY)
    z = STUDENT.double().requires_grad_()
    expected = (FIRST * kl(OLD.double(), z, 2.0) + SECOND * kl(NEW.double(), z, 3.0) + GOLD * crossed(z, TRAINED)).sum()
    expected.backward()
    found = loss_of(RULE, STUDENT, [OLD, NEW], TRAINED)
    assert found.total == pytest.approx(expected.item(), rel=1e-5)
    assert z.grad is not None
    assert torch.allclose(found.gradient.double(), z.grad, atol=1e-5)


@pytest.mark.parametrize(("temperature", "apart", "close"), [(2.0, 3.0, 1e-6), (2.0, 0.1, 1e-5), (100.0, 0.1, 1e-3)])
def test_float32_is_enough_for_models_that_are_alike(temperature: float, apart: float, close: float) -> None:
    """Summed plainly, the divergence at T = 100 of logits 0.1 apart over a large vocabulary is off by a fifth."""
    teacher = 3 * draw(4, 30_000, seed=1)
    student = teacher + apart * draw(4, 30_000, seed=2)
    z = student.double().requires_grad_()
    expected = kl(teacher.double(), z, temperature).sum()
    expected.backward()
    rule = Fixed([Term("kl", ForwardKL(temperature), 0, torch.ones(4))])
    found = loss_of(rule, student, [teacher], predictions([0, 1, 2, 3]))
    assert found.total == pytest.approx(expected.item(), rel=close)
    assert z.grad is not None
    assert (found.gradient - z.grad).norm() < 10 * close * z.grad.norm()


def test_several_teachers_make_one_target() -> None:
    shares = torch.rand(COUNT, 1, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, -1.0])
    shares = shares + torch.tensor([0.0, 1.0])
    rule = Fixed([Term("kl", ForwardKL(), shares, torch.ones(COUNT))])
    mixed = shares[:, :1] * OLD.softmax(-1) + shares[:, 1:] * NEW.softmax(-1)
    expected = kl(mixed.log(), STUDENT).sum()
    assert loss_of(rule, STUDENT, [OLD, NEW], TRAINED).total == pytest.approx(float(expected), rel=1e-5)


def test_terms_are_logged_apart_for_prompt_and_answer() -> None:
    logs = loss_of(RULE, STUDENT, [OLD, NEW], TRAINED).logs
    old = kl(OLD, STUDENT, 2.0)
    assert logs["kl_old_prompt"] == pytest.approx((float(old[[0, 2, 4]].sum()), 3))
    assert logs["kl_old_answer"] == pytest.approx((float(old[7]), 1))
    assert logs["kl_old_rate_prompt"] == (3, 5)
    assert logs["kl_new_rate_answer"] == (1, 4)
    assert logs["cross_entropy_rate_answer"] == (2, 4)
    assert logs["loss"][1] == COUNT


def test_a_token_that_does_not_count_is_not_looked_at() -> None:
    sizes: list[int] = []

    class Counting:
        temperature = 1.0
        target: ClassVar[Literal["logits"]] = "logits"

        def __call__(self, student: torch.Tensor, target: torch.Tensor) -> Valued:
            sizes.append(len(student))
            return HalfSquaredLogits()(student, target)

    none = Term("never", Counting(), 0, torch.zeros(COUNT))
    broken = OLD.clone()
    broken[FIRST == 0] = float("nan")
    found = loss_of(Fixed([none, Term("distance", Counting(), 0, FIRST)]), STUDENT, [broken], TRAINED)
    distance = 0.5 * (STUDENT - OLD).square().sum(-1)
    assert found.total == pytest.approx(float((FIRST * distance).sum()), rel=1e-5)
    assert found.gradient.isfinite().all()
    assert sum(sizes) == int((FIRST > 0).sum())
    assert found.logs["never_rate_answer"] == (0, 4)


def test_nothing_trained_is_no_loss() -> None:
    nothing = predictions([])
    total, logs = distillation_loss(Whole(STUDENT[:0].requires_grad_()), [Whole(OLD[:0])] * 2, nothing, Fixed())
    assert total.item() == 0.0
    assert logs["loss"] == (0.0, 0.0)


def test_no_gradient_is_made_where_none_is_wanted_and_none_reaches_a_teacher() -> None:
    student, teacher = Whole(STUDENT.clone().requires_grad_()), Whole(OLD.clone().requires_grad_())
    with torch.no_grad():
        total, _ = distillation_loss(student, [teacher, teacher], TRAINED, RULE)
    assert not total.requires_grad
    total, _ = distillation_loss(student, [teacher, teacher], TRAINED, RULE)
    (2 * total).backward()
    assert teacher.source.grad is None
    assert student.source.grad is not None
    assert torch.allclose(student.source.grad, 2 * loss_of(RULE, STUDENT, [OLD, OLD], TRAINED).gradient)


def test_hidden_states_get_the_gradient_that_logits_would_hand_down() -> None:
    head = torch.nn.Linear(4, VOCABULARY, bias=False).requires_grad_(False)
    hidden = draw(COUNT, 4, seed=4)
    through = hidden.clone().requires_grad_()
    total, _ = distillation_loss(Projected(through, head), [Whole(OLD), Whole(NEW)], TRAINED, RULE)
    total.backward()
    plain = hidden.clone().requires_grad_()
    direct, _ = distillation_loss(Whole(head(plain)), [Whole(OLD), Whole(NEW)], TRAINED, RULE)
    direct.backward()
    assert total.item() == pytest.approx(direct.item(), rel=1e-6)
    assert through.grad is not None
    assert plain.grad is not None
    assert torch.allclose(through.grad, plain.grad, atol=1e-5)


def test_no_more_logits_than_a_chunk_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    sizes: list[int] = []

    class Spy(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                sizes.append(out.numel())
            return out

    positions, vocabulary, width, chunk = 64, 100, 3, 4
    monkeypatch.setattr(distillation, "CHUNK_LOGITS", chunk * vocabulary)
    head = torch.nn.Linear(width, vocabulary, bias=False).requires_grad_(False)
    hidden = [draw(positions, width, seed=seed) for seed in (1, 2)]
    student = Projected(hidden[0].requires_grad_(), head)
    shares = torch.full((positions, 2), 0.5)
    weight = torch.ones(positions)
    rule = Fixed([Term("kl", ForwardKL(), shares, weight), Term("kl_old", ForwardKL(), 0, weight)], weight)
    with Spy():
        teachers = [Projected(hidden[1], head), Projected(hidden[0].detach(), head)]
        total, _ = distillation_loss(student, teachers, predictions([1] * positions), rule)
        total.backward()
    assert max(sizes) <= chunk * vocabulary
