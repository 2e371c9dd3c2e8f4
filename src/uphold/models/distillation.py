"""The loss of a student, any number of teachers, and a rule that says for every token what counts how much.

    L = sum over tokens i of  c_i CE_i  +  sum over terms t of  w_ti D_t(target_ti, student_i)

A rule is asked once per chunk of tokens. Only a chunk of logits of each model is held at a time: value and gradient
are found together, and the gradient is folded back into hidden states before the next chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from uphold.models.divergence import cross_entropy, gold_statistics, mixed_target
from uphold.models.projection import Logits, Projected, Whole
from uphold.models.rules import Rule, SequenceStatistics, Tokens, Trained, Weights

CHUNK_LOGITS = 1 << 22
"""The most logits of one model that are held at once."""
Logs = dict[str, tuple[float, float]]
"""For each logged quantity its sum and what it is to be divided by."""


def distillation_loss(
    student: Projected | Whole, teachers: Sequence[Logits], trained: Trained, rule: Rule
) -> tuple[torch.Tensor, Logs]:
    """The loss summed over the trained tokens, with gradient where gradients are on, and what is logged of it.

    Each term is logged by name, apart for prompt and answer tokens (a long prompt would drown the answer): its mean
    over the tokens it counts for, and as `NAME_rate_...` the share of these tokens.
    """
    wanted = torch.is_grad_enabled() and student.source.requires_grad
    with torch.no_grad():
        made = _Sums(student, teachers, trained, rule, wanted)
        made.walk()
    logs = made.logs | {"loss": (float(made.total), float(len(student)))}
    total = _Attached.apply(student.source, made.total, made.gradient) if wanted else made.total  # type: ignore[no-untyped-call]
    return total, logs


class _Attached(torch.autograd.Function):
    """A scalar whose gradient is known already."""

    @staticmethod
    def forward(ctx: Any, source: torch.Tensor, total: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gradient)
        return total.clone()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        [gradient] = ctx.saved_tensors
        return gradient * grads[0].to(gradient.dtype), None, None


class _Sums:
    """Walks over chunks of tokens and adds up."""

    def __init__(
        self, student: Projected | Whole, teachers: Sequence[Logits], trained: Trained, rule: Rule, wanted: bool
    ) -> None:
        self.student, self.teachers, self.trained, self.rule = student, teachers, trained, rule
        self.total = student.source.new_zeros((), dtype=torch.float32)
        self.gradient = torch.zeros_like(student.source) if wanted else None
        self.logs: Logs = {}

    def walk(self) -> None:
        """Fill `total`, `gradient` and `logs`."""
        sequences = self._sequences() if self.rule.whole_sequences else None
        for part in self._chunks():
            own = self.student.chunk(part)
            theirs = [teacher.chunk(part) for teacher in self.teachers]
            piece = Trained(*(value[part] for value in self.trained))
            tokens = Tokens(
                piece,
                gold_statistics(own, piece.targets),
                tuple(gold_statistics(logits, piece.targets) for logits in theirs),
                sequences,
            )
            gradient = self._chunk(own, theirs, tokens, self.rule(tokens))
            if self.gradient is not None:
                self.gradient[part] = self.student.pull_back(gradient).to(self.gradient.dtype)

    def _chunk(
        self, own: torch.Tensor, theirs: Sequence[torch.Tensor], tokens: Tokens, weights: Weights
    ) -> torch.Tensor:
        """Add the values of one chunk; returns the gradient of its logits."""
        gradient = torch.zeros_like(own)
        for term in weights.terms:
            counted = term.weight.nonzero()[:, 0]
            if not len(counted):
                self._log(term.name, tokens, counted, term.weight[:0])
                continue
            target = mixed_target(*_chosen(theirs, term.teacher, counted), mix=term.mix, divergence=term.divergence)
            valued = term.divergence(own[counted], target)
            weight = term.weight[counted]
            self.total += (weight * valued.value).sum()
            gradient[counted] += weight[:, None] * valued.gradient
            self._log(term.name, tokens, counted, valued.value)
        if weights.cross_entropy is not None:
            crossed = cross_entropy(own, tokens.trained.targets)
            self.total += (weights.cross_entropy * crossed.value).sum()
            gradient += weights.cross_entropy[:, None] * crossed.gradient
            counted = weights.cross_entropy.nonzero()[:, 0]
            self._log("cross_entropy", tokens, counted, crossed.value[counted])
        return gradient

    def _chunks(self) -> list[slice]:
        count = len(self.student)
        if not count:
            return []
        size = max(1, CHUNK_LOGITS // self.student.chunk(slice(0, 1)).shape[-1])
        return [slice(start, start + size) for start in range(0, count, size)]

    def _sequences(self) -> SequenceStatistics:
        rows = int(self.trained.sequence.max()) + 1
        sums = self.total.new_zeros(1 + len(self.teachers), rows)
        for part in self._chunks():
            for index, logits in enumerate((self.student, *self.teachers)):
                found = gold_statistics(logits.chunk(part), self.trained.targets[part])
                sums[index].index_add_(0, self.trained.sequence[part], found.logprob)
        return SequenceStatistics(sums[0], tuple(sums[1:]))

    def _log(self, name: str, tokens: Tokens, counted: torch.Tensor, values: torch.Tensor) -> None:
        is_answer = tokens.trained.is_answer
        for where, chosen in (("prompt", ~is_answer), ("answer", is_answer)):
            here = chosen[counted]
            self._add(f"{name}_{where}", float(values[here].sum()), float(here.sum()))
            self._add(f"{name}_rate_{where}", float(here.sum()), float(chosen.sum()))

    def _add(self, name: str, top: float, bottom: float) -> None:
        before = self.logs.get(name, (0.0, 0.0))
        self.logs[name] = (before[0] + top, before[1] + bottom)


def _chosen(
    teachers: Sequence[torch.Tensor], which: int | torch.Tensor, counted: torch.Tensor
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The teachers' logits and shares at the counted tokens."""
    if isinstance(which, int):
        picked = teachers[which][counted]
        return [picked], picked.new_ones(len(counted), 1)
    return [teacher[counted] for teacher in teachers], which[counted].to(teachers[0].dtype)
