from __future__ import annotations

import math

import pytest
import torch

from uphold.models import aligned_loss as module
from uphold.models.aligned_loss import AcrossVocabularies, Vocabularies, first_tokens_loss, segments_loss
from uphold.models.alignment import SameTokens
from uphold.models.divergence import ForwardKL
from uphold.models.projection import Projected, Whole


def logits(rows: int, columns: int, seed: int) -> torch.Tensor:
    return 2 * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_with_one_vocabulary_it_is_the_forward_kl() -> None:
    student, teacher = logits(6, 9, 1), logits(6, 9, 2)
    same = Vocabularies(SameTokens(list(range(9)), list(range(9))), 9, 9)
    for unmatched in (0.0, 1.0):
        found = AcrossVocabularies(same, 2.0, unmatched)(student, teacher)
        wanted = ForwardKL(2.0)(student, teacher.div(2).log_softmax(-1))
        torch.testing.assert_close(found.value, wanted.value)
        torch.testing.assert_close(found.gradient, wanted.gradient)


def test_the_order_of_a_vocabulary_does_not_matter() -> None:
    student, teacher = logits(6, 9, 1), logits(6, 9, 2)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(3))
    moved = Vocabularies(SameTokens(order.tolist(), list(range(9))), 9, 9)
    found = AcrossVocabularies(moved, 1.0)(student, teacher[:, torch.argsort(order)][:, order])
    wanted = ForwardKL(1.0)(student[:, order], teacher.log_softmax(-1))
    torch.testing.assert_close(found.value, wanted.value)


def test_the_hand_case() -> None:
    """Student (.5, .2, .3) and teacher (.7, .1, .1, .1) share token 0; the rest is sorted .3 .2 | .1 .1 .1."""
    student, teacher = (torch.tensor([one]).log() for one in ([0.5, 0.2, 0.3], [0.7, 0.1, 0.1, 0.1]))
    both = Vocabularies(SameTokens([0], [0]), 3, 4)
    kl = 0.7 * math.log(0.7 / 0.5) + 0.3 * math.log(0.3 / 0.5)
    assert AcrossVocabularies(both, 1.0)(student, teacher).value.item() == pytest.approx(kl, abs=1e-6)
    # |.3 - .1| + |.2 - .1|, and behind them 0 against .1
    sorted_rest = 0.2 + 0.1 + 0.1
    whole = AcrossVocabularies(both, 1.0, 0.5)(student, teacher)
    assert whole.value.item() == pytest.approx(kl + 0.5 * sorted_rest, abs=1e-6)
    # Only the largest: |.3 - .1|, and behind it .2 against .2.
    top = AcrossVocabularies(both, 1.0, 0.5, top=1)(student, teacher)
    assert top.value.item() == pytest.approx(kl + 0.5 * 0.2, abs=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize(("unmatched", "top"), [(0.0, 64), (0.7, 64), (0.7, 2)])
def test_the_gradient_is_that_of_autograd_and_sums_to_zero(temperature: float, unmatched: float, top: int) -> None:
    both = Vocabularies(SameTokens([1, 4, 2], [3, 0, 5]), 8, 7)
    student, teacher = logits(5, 8, 1).requires_grad_(), logits(5, 7, 2)
    divergence = AcrossVocabularies(both, temperature, unmatched, top)
    step = 1e-6
    gradient = divergence(student.detach(), teacher).gradient
    for column in range(8):
        moved = [student.detach().clone() for _ in range(2)]
        moved[0][:, column] += step
        moved[1][:, column] -= step
        up, down = (divergence(one, teacher).value for one in moved)
        torch.testing.assert_close(gradient[:, column], (up - down) / (2 * step), atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(gradient.sum(-1), torch.zeros(5, dtype=torch.float64))


def test_a_teacher_that_the_student_copies_is_no_loss() -> None:
    student = logits(4, 6, 1)
    teacher = student[:, [5, 4, 3, 2, 1, 0]]
    both = Vocabularies(SameTokens([0, 1, 2], [5, 4, 3]), 6, 6)
    found = AcrossVocabularies(both, 1.5, 1.0)(student, teacher)
    torch.testing.assert_close(found.value, torch.zeros(4, dtype=torch.float64))
    assert found.gradient.abs().max() < 1e-12


@pytest.mark.parametrize("chunk", [1, 20, 10_000])
def test_chunks_do_not_show(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(6, 3, generator=generator).requires_grad_()
    head = torch.nn.Linear(3, 8, bias=False)
    head.weight.data = torch.randn(8, 3, generator=generator)
    head.weight.requires_grad_(False)
    teacher = logits(5, 7, 2).float()
    weights = torch.tensor([1.0, 0.0, 2.0, 0.5])
    divergence = AcrossVocabularies(Vocabularies(SameTokens([1, 4, 2], [3, 0, 5]), 8, 7), 2.0)
    valued = divergence(head(hidden[:4]).detach(), teacher[:4])
    wanted = torch.zeros(6, 3)
    wanted[:4] = (weights[:, None] * valued.gradient) @ head.weight
    monkeypatch.setattr(module, "CHUNK_LOGITS", chunk)
    total, values = first_tokens_loss(Projected(hidden, head), Whole(teacher), weights, divergence)
    [gradient] = torch.autograd.grad(3 * total, hidden)
    torch.testing.assert_close(gradient, 3 * wanted)
    assert total.item() == pytest.approx((weights * valued.value).sum().item(), rel=1e-5)
    torch.testing.assert_close(values, valued.value * (weights > 0))


def test_segments_are_compared_as_events() -> None:
    """P = .8, Q = .5: .8 ln 1.6 + .2 ln .4 = .19274; the second segment does not count."""
    student = torch.tensor([math.log(0.5), -3.0], requires_grad=True)
    loss = segments_loss(student, torch.tensor([math.log(0.8), -1.0]), torch.tensor([1.0, 0.0]))
    assert loss.item() == pytest.approx(0.19274, abs=1e-5)
    loss.backward()
    # d/d log Q = (Q - P) / (1 - Q)
    assert student.grad is not None
    assert student.grad.tolist() == pytest.approx([-0.6, 0.0], abs=1e-5)


def test_certain_segments_are_finite() -> None:
    student = torch.tensor([0.0, -1e-9, -40.0], requires_grad=True)
    loss = segments_loss(student, torch.tensor([0.0, -40.0, 0.0]), torch.ones(3))
    loss.backward()
    assert loss.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()
