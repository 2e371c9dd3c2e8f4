"""Divergences between a teacher's and a student's next-token distributions, each with its gradient in closed form.

A divergence takes the student's logits z and a target, both of shape (tokens, vocabulary), and gives its value per
token and the derivative of that value with respect to z. Nothing here keeps a graph: whoever calls decides how many
tokens are held at once (`uphold.models.distillation`). All arithmetic is in the dtype of z.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, Protocol

from uphold.core.errors import UsageError

if TYPE_CHECKING:
    import torch

Mix = Literal["probabilities", "logits"]


class Valued(NamedTuple):
    """A divergence of n tokens."""

    value: torch.Tensor
    """Shape (n,)."""
    gradient: torch.Tensor
    """With respect to the student's logits, shape (n, vocabulary)."""


class Divergence(Protocol):
    """How far a student is from a target."""

    @property
    def target(self) -> Literal["log-probabilities", "logits"]:
        """What the target must be."""
        ...

    @property
    def temperature(self) -> float:
        """T of the softmaxes that the target is made with."""
        ...

    def __call__(self, student: torch.Tensor, target: torch.Tensor) -> Valued:
        """Value and gradient; see the module's docstring."""
        ...


def mixed_target(
    teachers: Sequence[torch.Tensor], shares: torch.Tensor, mix: Mix, divergence: Divergence
) -> torch.Tensor:
    """The target that several teachers make together.

    Args:
        teachers: K tensors of logits, each of shape (n, vocabulary).
        shares: how much of each is in the target, shape (n, K), rows summing to 1.
        mix: average their probabilities at the divergence's temperature, or their logits.
        divergence: says what it compares with.
    """
    parts = [(teacher, shares[:, k, None]) for k, teacher in enumerate(teachers) if bool(shares[:, k].any())]
    if len(parts) == 1:
        combined = parts[0][0]
    elif mix == "logits" or divergence.target == "logits":
        combined = sum((share * teacher for teacher, share in parts[1:]), parts[0][1] * parts[0][0])
    else:
        shifted = [(teacher / divergence.temperature).log_softmax(dim=-1) + share.log() for teacher, share in parts]
        return reduce(lambda one, other: one.logaddexp(other), shifted)
    return combined if divergence.target == "logits" else (combined / divergence.temperature).log_softmax(dim=-1)


@dataclass(frozen=True)
class ForwardKL:
    """KL(teacher || student) of the distributions at temperature T (Hinton et al. 2015; MUSCLE, Eq. 1).

    The derivative is (student - teacher) / T. `scale` multiplies both, here as elsewhere: T² where a method has that
    factor.
    """

    temperature: float = 1.0
    scale: float = 1.0
    target: ClassVar[Literal["log-probabilities"]] = "log-probabilities"

    def __call__(self, student: torch.Tensor, target: torch.Tensor) -> Valued:
        """See `Divergence`."""
        own = (student / self.temperature).log_softmax(dim=-1)
        teacher = target.exp()
        excess = own.exp() - teacher
        # A log-probability of minus infinity has no mass: 0 log 0 is 0. The excess sums to zero; added, it cancels the
        # rounding of both normalisers, which is larger than the divergence itself where T is high or models are alike.
        value = (teacher * (target - own)).masked_fill_(teacher == 0, 0).add_(excess).sum(dim=-1)
        gradient = excess * (self.scale / self.temperature)
        return Valued(self.scale * value, gradient)


@dataclass(frozen=True)
class ReverseKL:
    """KL(student || teacher) at temperature T; with q the student, the derivative is q (log q/p - KL) / T."""

    temperature: float = 1.0
    scale: float = 1.0
    target: ClassVar[Literal["log-probabilities"]] = "log-probabilities"

    def __call__(self, student: torch.Tensor, target: torch.Tensor) -> Valued:
        """See `Divergence`."""
        own = (student / self.temperature).log_softmax(dim=-1)
        share = own.exp()
        ratio = (own - target).masked_fill(share == 0, 0)
        value = (share * ratio).sum(dim=-1)
        gradient = share * (ratio - value[:, None]) * (self.scale / self.temperature)
        return Valued(self.scale * value, gradient)


@dataclass(frozen=True)
class JensenShannon:
    """The generalised Jensen-Shannon divergence of GKD (Agarwal et al. 2024, Eq. 1).

    With p the teacher, q the student and m = beta p + (1 - beta) q: beta KL(p || m) + (1 - beta) KL(q || m).
    The derivative with respect to log q is (1 - beta) log(q / m), centred under q.
    """

    temperature: float = 1.0
    beta: float = 0.5
    scale: float = 1.0
    target: ClassVar[Literal["log-probabilities"]] = "log-probabilities"

    def __post_init__(self) -> None:
        if not 0 < self.beta < 1:
            raise UsageError(f"the Jensen-Shannon divergence needs beta between 0 and 1, not {self.beta}")

    def __call__(self, student: torch.Tensor, target: torch.Tensor) -> Valued:
        """See `Divergence`."""
        own = (student / self.temperature).log_softmax(dim=-1)
        middle = (target + math.log(self.beta)).logaddexp(own + math.log(1 - self.beta))
        teacher, share = target.exp(), own.exp()
        slope = (1 - self.beta) * (own - middle).masked_fill(share == 0, 0)
        pull = self.beta * (target - middle).masked_fill(teacher == 0, 0)
        value = (teacher * pull).sum(dim=-1) + (share * slope).sum(dim=-1)
        gradient = share * (slope - (share * slope).sum(dim=-1, keepdim=True)) * (self.scale / self.temperature)
        return Valued(self.scale * value, gradient)


@dataclass(frozen=True)
class HalfSquaredLogits:
    """Half the squared distance of the logits, summed over the vocabulary (PCT's "LM" distance)."""

    temperature: float = 1.0
    target: ClassVar[Literal["logits"]] = "logits"

    def __call__(self, student: torch.Tensor, target: torch.Tensor) -> Valued:
        """See `Divergence`."""
        distance = student - target
        return Valued(0.5 * distance.square().sum(dim=-1), distance)


@dataclass(frozen=True)
class LogitDifferenceInhibition:
    """Mean over the vocabulary of max(|z - z_teacher| - margin, 0)^power (LDI, Zhao et al. 2022)."""

    margin: float = 0.5
    power: float = 2.0
    top: int = 0
    """Only the teacher's so many largest logits of each token count; 0 for all."""
    temperature: float = 1.0
    target: ClassVar[Literal["logits"]] = "logits"

    def __call__(self, student: torch.Tensor, target: torch.Tensor) -> Valued:
        """See `Divergence`."""
        distance = student - target
        over = (distance.abs() - self.margin).clamp(min=0)
        count = target.shape[-1]
        if self.top:
            count = min(self.top, count)
            kept = over.new_zeros(over.shape).scatter_(1, target.topk(count, dim=-1).indices, 1.0)
            over = over * kept
        gradient = self.power * over.pow(self.power - 1) * distance.sign() * (over > 0) / count
        return Valued(over.pow(self.power).sum(dim=-1) / count, gradient)


class GoldStatistics(NamedTuple):
    """How a model likes the gold token at each position; no gradients."""

    right: torch.Tensor
    """Whether the gold token is the most likely one, shape (n,)."""
    logprob: torch.Tensor
    """Its log-probability at temperature 1 in nats, shape (n,)."""


def gold_statistics(logits: torch.Tensor, targets: torch.Tensor) -> GoldStatistics:
    """`GoldStatistics` of `targets`, shape (n,), under `logits`, shape (n, vocabulary)."""
    gold = targets[:, None]
    logprob = logits.gather(1, gold)[:, 0] - logits.logsumexp(dim=-1)
    return GoldStatistics(logits.argmax(dim=-1) == targets, logprob)


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> Valued:
    """-log softmax(logits)[target] and its derivative, softmax(logits) - 1[target]."""
    own = logits.log_softmax(dim=-1)
    value = -own.gather(1, targets[:, None])[:, 0]
    gradient = own.exp_()
    gradient.scatter_add_(1, targets[:, None], gradient.new_full((len(targets), 1), -1.0))
    return Valued(value, gradient)
