from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from tests.models.losses import draw, kl
from uphold.core.errors import UsageError
from uphold.models.divergence import (
    Divergence,
    ForwardKL,
    HalfSquaredLogits,
    JensenShannon,
    LogitDifferenceInhibition,
    ReverseKL,
    cross_entropy,
    gold_statistics,
    mixed_target,
)

DIVERGENCES: list[Divergence] = [
    ForwardKL(),
    ForwardKL(2.0),
    ForwardKL(100.0, scale=1e4),
    ReverseKL(1.5),
    ReverseKL(3.0, scale=9.0),
    JensenShannon(2.0, 0.3, scale=4.0),
    JensenShannon(1.0, 0.5),
    HalfSquaredLogits(),
    LogitDifferenceInhibition(0.5),
    LogitDifferenceInhibition(0.1, power=1.0),
    LogitDifferenceInhibition(0.0, power=3.0, top=2),
]


def target_of(teacher: torch.Tensor, divergence: Divergence) -> torch.Tensor:
    return mixed_target([teacher], teacher.new_ones(len(teacher), 1), "probabilities", divergence)


def test_the_sheets_hand_case() -> None:
    teacher = torch.tensor([[0.7, 0.2, 0.1]]).log()
    student = torch.tensor([[0.2, 0.5, 0.3]]).log()
    value = float(ForwardKL()(student, teacher).value)
    assert value == pytest.approx(0.7 * math.log(3.5) + 0.2 * math.log(0.4) + 0.1 * math.log(1 / 3), abs=1e-6)
    assert value == pytest.approx(0.58381, abs=1e-5)


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=repr)
def test_gradients_equal_finite_differences(divergence: Divergence) -> None:
    student, teacher = draw(4, 6, seed=1, dtype=torch.float64), draw(4, 6, seed=2, dtype=torch.float64)
    target = target_of(teacher, divergence)
    gradient = divergence(student, target).gradient
    step, rounding = 1e-5, 1e-6 if divergence.temperature > 10 else 1e-8
    for column in range(6):
        shift = torch.zeros(6, dtype=torch.float64)
        shift[column] = step
        rise = divergence(student + shift, target).value - divergence(student - shift, target).value
        assert torch.allclose(gradient[:, column], rise / (2 * step), rtol=1e-6, atol=rounding)


def plain(divergence: Divergence, z: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """The same divergences, written for autograd."""
    t = divergence.temperature
    q, p = (z / t).softmax(-1), (teacher / t).softmax(-1)
    match divergence:
        case ForwardKL():
            return divergence.scale * kl(teacher, z, t)
        case ReverseKL():
            return divergence.scale * kl(z, teacher, t)
        case JensenShannon():
            m = divergence.beta * p + (1 - divergence.beta) * q
            value = divergence.beta * (p * (p / m).log()).sum(-1) + (1 - divergence.beta) * (q * (q / m).log()).sum(-1)
            return divergence.scale * value
        case HalfSquaredLogits():
            return 0.5 * F.mse_loss(z, teacher, reduction="none").sum(-1)
    assert isinstance(divergence, LogitDifferenceInhibition)
    values = F.relu((z - teacher).abs() - divergence.margin) ** divergence.power
    if divergence.top:
        values = values.gather(1, teacher.argsort(descending=True)[:, : divergence.top])
    return values.mean(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("divergence", DIVERGENCES, ids=repr)
def test_values_and_gradients_equal_autograds_in_float64(divergence: Divergence, dtype: torch.dtype) -> None:
    student, teacher = draw(9, 11, seed=1), draw(9, 11, seed=3)
    z = student.double().requires_grad_()
    expected = plain(divergence, z, teacher.double())
    expected.sum().backward()
    found = divergence(student.to(dtype), target_of(teacher.to(dtype), divergence))
    rounding = 1e-5 if dtype is torch.float32 else 1e-10
    # The factor T² magnifies what the softmaxes lost.
    close = {"rtol": rounding, "atol": rounding * (100 if divergence.temperature > 10 else 1)}
    assert torch.allclose(found.value.double(), expected, **close)
    assert z.grad is not None
    assert torch.allclose(found.gradient.double(), z.grad, **close)


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=repr)
def test_an_equal_teacher_costs_nothing_and_pulls_nowhere(divergence: Divergence) -> None:
    logits = draw(5, 40, seed=4)
    found = divergence(logits, target_of(logits, divergence))
    assert found.value.abs().max() <= 1e-6
    assert found.gradient.abs().max() <= 1e-6


@given(st.integers(0, 10_000), st.sampled_from([one for one in DIVERGENCES if one.target == "log-probabilities"]))
def test_divergences_of_distributions_are_not_negative_and_ignore_shifts(seed: int, divergence: Divergence) -> None:
    student, teacher = draw(3, 7, seed=seed), draw(3, 7, seed=seed + 1)
    target = target_of(teacher, divergence)
    value = divergence(student, target).value
    assert (value >= -1e-6).all()
    assert torch.allclose(value, divergence(student + 5, target_of(teacher - 3, divergence)).value, rtol=1e-3)


def test_at_high_temperature_kl_is_half_the_squared_distance_of_centred_logits() -> None:
    student, teacher = draw(6, 20, seed=1, dtype=torch.float64), draw(6, 20, seed=2, dtype=torch.float64)
    distance = student - teacher
    limit = 0.5 * (distance - distance.mean(-1, keepdim=True)).square().mean(-1)
    found = [ForwardKL(t, scale=t**2)(student, (teacher / t).log_softmax(-1)).value for t in (10.0, 100.0, 1e4)]
    gaps = [float((value / limit - 1).abs().max()) for value in found]
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < 1e-3


@pytest.mark.parametrize("temperature", [2.0, 100.0])
@pytest.mark.parametrize("apart", [3.0, 0.1])
def test_float32_is_enough_at_high_temperature_over_a_large_vocabulary(temperature: float, apart: float) -> None:
    """The logarithms' rounding is larger than KL itself: summed plainly, T = 100 and 0.1 apart is off by 280%."""
    teacher = 3 * draw(4, 50_000, seed=1)
    student = teacher + apart * draw(4, 50_000, seed=2)
    exact = ForwardKL(temperature, temperature**2)
    one, other = (
        exact(z, (teacher.to(z.dtype) / temperature).log_softmax(-1)) for z in (student, student.to(torch.float64))
    )
    assert torch.allclose(one.value.double(), other.value, rtol=3e-3)
    assert (one.gradient - other.gradient).norm() < 3e-3 * other.gradient.norm()


@pytest.mark.parametrize("divergence", [ForwardKL(2.0), ReverseKL(2.0), JensenShannon()], ids=repr)
def test_tokens_that_neither_model_can_say_do_not_matter(divergence: Divergence) -> None:
    student, teacher = draw(3, 5, seed=1), draw(3, 5, seed=2)
    never = torch.full((3, 2), -math.inf)
    wider = divergence(torch.cat([student, never], 1), target_of(torch.cat([teacher, never], 1), divergence))
    narrow = divergence(student, target_of(teacher, divergence))
    assert torch.allclose(wider.value, narrow.value)
    assert torch.allclose(wider.gradient[:, :5], narrow.gradient)
    assert not wider.gradient[:, 5:].any()


def test_jensen_shannon_is_symmetric_and_at_most_ln_2() -> None:
    student, teacher = 20 * draw(8, 5, seed=1), 20 * draw(8, 5, seed=2)
    there = JensenShannon()(student, teacher.log_softmax(-1)).value
    assert torch.allclose(there, JensenShannon()(teacher, student.log_softmax(-1)).value, atol=1e-5)
    assert there.max() <= math.log(2) + 1e-6
    with pytest.raises(UsageError, match="beta between 0 and 1"):
        JensenShannon(beta=1.0)


def test_inhibition_by_hand() -> None:
    teacher = torch.tensor([[3.0, 2.0, 1.0, 0.0]])
    within = teacher + torch.tensor([[0.5, -0.5, 0.2, 0.0]])
    for top in (0, 2):
        found = LogitDifferenceInhibition(0.5, top=top)(within, teacher)
        assert found.value.tolist() == [0.0]
        assert not found.gradient.any()
    beyond = teacher + torch.tensor([[1.0, -2.5, 0.0, 4.5]])
    whole = LogitDifferenceInhibition(0.5)(beyond, teacher)
    assert whole.value.tolist() == [(0.5**2 + 2.0**2 + 4.0**2) / 4]
    assert whole.gradient.tolist() == [[2 * 0.5 / 4, -2 * 2.0 / 4, 0.0, 2 * 4.0 / 4]]
    best = LogitDifferenceInhibition(0.5, top=2)(beyond, teacher)
    assert best.value.tolist() == [(0.5**2 + 2.0**2) / 2]
    assert best.gradient.tolist() == [[2 * 0.5 / 2, -2 * 2.0 / 2, 0.0, 0.0]]
    assert LogitDifferenceInhibition(0.5, top=99)(beyond, teacher).value.tolist() == whole.value.tolist()


def test_the_top_classes_are_each_tokens_own_and_not_the_batchs() -> None:
    """A token's value is the same whatever stands beside it."""
    student, teacher = draw(8, 30, seed=1), draw(8, 30, seed=2)
    divergence = LogitDifferenceInhibition(0.1, top=3)
    together = divergence(student, teacher)
    for row in range(8):
        alone = divergence(student[row : row + 1], teacher[row : row + 1])
        assert torch.equal(alone.value[0], together.value[row])
        assert int((alone.gradient != 0).sum()) <= 3


def test_targets_of_several_teachers() -> None:
    one, other = draw(3, 5, seed=1), draw(3, 5, seed=2)
    shares = torch.tensor([[0.5, 0.5], [0.25, 0.75], [1.0, 0.0]])
    softened = mixed_target([one, other], shares, "probabilities", ForwardKL(2.0))
    parts = [share[:, None] * (z / 2).softmax(-1) for z, share in zip((one, other), shares.T, strict=True)]
    assert torch.allclose(softened.exp(), parts[0] + parts[1])
    mean = shares[:, :1] * one + shares[:, 1:] * other
    logits = mixed_target([one, other], shares, "logits", ForwardKL(2.0))
    assert torch.allclose(logits, (mean / 2).log_softmax(-1), atol=1e-6)
    for mix in ("probabilities", "logits"):
        assert torch.allclose(mixed_target([one, other], shares, mix, HalfSquaredLogits()), mean)  # type: ignore[arg-type]
    alone = mixed_target([one, other], torch.tensor([[0.0, 1.0]] * 3), "probabilities", ForwardKL())
    assert torch.equal(alone, other.log_softmax(-1))


def test_cross_entropy_equals_torchs() -> None:
    targets = torch.tensor([0, 10, 3])
    logits = draw(3, 11).requires_grad_()
    expected = F.cross_entropy(logits, targets, reduction="none")
    expected.sum().backward()
    found = cross_entropy(logits.detach(), targets)
    assert torch.allclose(found.value, expected, atol=1e-6)
    assert logits.grad is not None
    assert torch.allclose(found.gradient, logits.grad, atol=1e-6)


def test_gold_statistics() -> None:
    logits = torch.tensor([[0.0, 3.0], [0.0, 1.0]])
    found = gold_statistics(logits, torch.tensor([1, 0]))
    assert found.right.tolist() == [True, False]
    assert found.logprob.tolist() == pytest.approx([-math.log1p(math.exp(-3)), -math.log1p(math.exp(1))])
