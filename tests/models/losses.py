"""Losses of given logits: what rules, divergences and methods are checked on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from uphold.models.distillation import Logs, distillation_loss
from uphold.models.divergence import gold_statistics
from uphold.models.projection import Whole
from uphold.models.rules import Rule, SequenceStatistics, Tokens, Trained


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def predictions(
    targets: Sequence[int],
    sequence: Sequence[int] | None = None,
    instance: Sequence[int] | None = None,
    is_answer: Sequence[bool] | None = None,
) -> Trained:
    """Trained predictions of these gold tokens; all of one row and the answer's unless said otherwise."""
    count = len(targets)
    rows = torch.tensor([0] * count if sequence is None else list(sequence))
    return Trained(
        rows,
        torch.arange(count),
        torch.tensor(list(targets)),
        torch.tensor([True] * count if is_answer is None else list(is_answer)),
        rows if instance is None else torch.tensor(list(instance)),
    )


class Found(NamedTuple):
    total: float
    gradient: torch.Tensor
    logs: Logs


def loss_of(rule: Rule, student: torch.Tensor, teachers: Sequence[torch.Tensor], trained: Trained) -> Found:
    """The summed loss of logits of shape (n, vocabulary), and its gradient."""
    own = student.clone().requires_grad_()
    total, logs = distillation_loss(Whole(own), [Whole(one) for one in teachers], trained, rule)
    total.backward()
    assert own.grad is not None
    return Found(total.item(), own.grad, logs)


def seen(rule: Rule, student: torch.Tensor, teachers: Sequence[torch.Tensor], trained: Trained) -> Tokens:
    """What a rule is shown of these logits."""
    models = [gold_statistics(one, trained.targets) for one in (student, *teachers)]
    sums = [one.logprob.new_zeros(int(trained.sequence.max()) + 1) for one in models]
    for total, one in zip(sums, models, strict=True):
        total.index_add_(0, trained.sequence, one.logprob)
    sequences = SequenceStatistics(sums[0], tuple(sums[1:])) if rule.whole_sequences else None
    return Tokens(trained, models[0], tuple(models[1:]), sequences)


def kl(teacher: torch.Tensor, student: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """KL(teacher || student) per row of logits, as torch has it."""
    own, other = ((one / temperature).log_softmax(-1) for one in (student, teacher))
    return torch.nn.functional.kl_div(own, other, reduction="none", log_target=True).sum(-1)


def crossed(student: torch.Tensor, trained: Trained) -> torch.Tensor:
    """Cross-entropy per row of logits, as torch has it."""
    return torch.nn.functional.cross_entropy(student, trained.targets, reduction="none")
