from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from uphold.models.divergence import cross_entropy, gold_statistics, two_teacher_kl


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_sheets_hand_case() -> None:
    teacher = torch.tensor([[0.7, 0.2, 0.1]]).log()
    student = torch.tensor([[0.2, 0.5, 0.3]]).log()
    [kl] = two_teacher_kl(student, teacher, student, torch.tensor([0]), torch.tensor([True]), 1.0)
    assert float(kl) == pytest.approx(0.7 * math.log(3.5) + 0.2 * math.log(0.4) + 0.1 * math.log(1 / 3), abs=1e-6)
    assert float(kl) == pytest.approx(0.58381, abs=1e-5)


@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_values_and_gradients_equal_a_plain_float64_computation(chunk: int, temperature: float) -> None:
    rows = torch.tensor([0, 2, 3, 7])
    use_old = torch.tensor([True, False, True, False])
    student, old, new = draw(9, 11, seed=1), draw(9, 11, seed=2), draw(9, 11, seed=3)
    ours = student.clone().requires_grad_()
    values = two_teacher_kl(ours, old, new, rows, use_old, temperature, chunk)
    weights = torch.tensor([0.5, 1.0, 2.0, 0.0])
    (values * weights).sum().backward()
    plain = student.double().requires_grad_()
    teacher = torch.where(use_old[:, None], old[rows], new[rows]).double() / temperature
    expected = F.kl_div(
        (plain[rows] / temperature).log_softmax(-1), teacher.log_softmax(-1), reduction="none", log_target=True
    ).sum(-1)
    (expected * weights).sum().backward()
    assert torch.allclose(values.double(), expected, atol=1e-5)
    assert torch.allclose(ours.grad.double(), plain.grad, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_cross_entropy_equals_torchs(chunk: int) -> None:
    rows, targets = torch.tensor([1, 4, 5]), torch.tensor([0, 10, 3])
    logits = draw(6, 11)
    ours, plain = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    values = cross_entropy(ours, rows, targets, chunk)
    values.sum().backward()
    expected = F.cross_entropy(plain[rows], targets, reduction="none")
    expected.sum().backward()
    assert torch.allclose(values, expected, atol=1e-6)
    assert torch.allclose(ours.grad, plain.grad, atol=1e-6)


def test_gold_statistics() -> None:
    logits = torch.tensor([[0.0, 3.0], [2.0, 0.0], [0.0, 1.0]])
    found = gold_statistics(logits, torch.tensor([0, 2]), torch.tensor([1, 0]))
    assert found.right.tolist() == [True, False]
    assert found.logprob.tolist() == pytest.approx([-math.log1p(math.exp(-3)), -math.log1p(math.exp(1))])


def test_no_more_than_a_chunk_is_held_beside_logits_and_their_gradient() -> None:
    """Tensors made inside are at most chunk x vocabulary, but for the gradient of the logits."""
    from torch.utils._python_dispatch import TorchDispatchMode

    sizes: list[int] = []

    class Spy(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                sizes.append(out.numel())
            return out

    positions, vocabulary, chunk = 64, 100, 4
    student = draw(positions, vocabulary).requires_grad_()
    old, new = draw(positions, vocabulary, seed=1), draw(positions, vocabulary, seed=2)
    rows = torch.arange(positions)
    with Spy():
        values = two_teacher_kl(student, old, new, rows, rows % 2 == 0, 2.0, chunk)
        (values + cross_entropy(student, rows, rows, chunk)).sum().backward()
    allowed = {positions * vocabulary}
    assert max(size for size in sizes if size not in allowed) <= chunk * vocabulary
    # The gradient of the logits: made, filled chunk by chunk and accumulated, once per loss.
    assert sum(size in allowed for size in sizes) <= 2 * (2 + positions // chunk)
