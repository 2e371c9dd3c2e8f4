"""The loss of a student, any number of teachers, and a rule that says for every token what counts how much.

    L = sum over tokens i of  c_i CE_i  +  sum over terms t of  w_ti D_t(target_ti, student_i)

A rule is asked once per chunk of tokens. Only a chunk of logits of each model is held at a time: value and gradient
are found together, block by block, the gradient takes the place of the student's logits, and it is folded back into
hidden states before the next chunk. A teacher's logits are made for the tokens that a term counts for, no others, and
terms of one divergence that share no token (MUSCLE's two) are worked out as one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, cast

import torch

from uphold.models.divergence import GoldStatistics, cross_entropy
from uphold.models.projection import Logits, Projected, Whole
from uphold.models.rules import Rule, SequenceStatistics, Tokens, Trained, Weights
from uphold.models.targets import Chunk, Group, Judged, Target, blocks

CHUNK_LOGITS = 1 << 24
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
            if isinstance(self.student, Whole):
                # They are somebody's tensor, and the gradient is about to take their place.
                own = own.clone()
            piece = Trained(*(value[part] for value in self.trained))
            teachers = [Chunk(teacher, part, piece.targets) for teacher in self.teachers]
            tokens = Tokens(
                piece,
                cast(GoldStatistics, Judged(own, piece.targets)),
                tuple(cast(GoldStatistics, teacher.judged()) for teacher in teachers),
                sequences,
            )
            self._chunk(own, teachers, tokens, self.rule(tokens))
            if self.gradient is not None:
                self.gradient[part] = self.student.pull_back(own).to(self.gradient.dtype)

    def _chunk(self, own: torch.Tensor, teachers: Sequence[Chunk], tokens: Tokens, weights: Weights) -> None:
        """Add the values of one chunk, and put the gradient of its logits in the place of the logits."""
        works = [_Work(group, teachers) for group in _groups(weights, teachers)]
        crossed = tokens.none if weights.cross_entropy is not None else None
        for block in blocks(*own.shape):
            student, gradient = own[block], None
            for work in works:
                gradient = work.step(student, block, gradient)
            if weights.cross_entropy is not None and crossed is not None:
                found = cross_entropy(student, tokens.trained.targets[block])
                crossed[block] = found.value
                found.gradient.mul_(weights.cross_entropy[block, None])
                gradient = found.gradient if gradient is None else gradient.add_(found.gradient)
            if gradient is None:
                student.zero_()
            else:
                student.copy_(gradient)
        values: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        for work in works:
            self.total += (work.weight * work.values).sum()
            values |= work.by_term()
        for number, term in enumerate(weights.terms):
            nothing = (term.weight.nonzero()[:, 0], term.weight[:0])
            self._log(term.name, tokens, *values.get(number, nothing))
        if weights.cross_entropy is not None and crossed is not None:
            self.total += (weights.cross_entropy * crossed).sum()
            counted = weights.cross_entropy.nonzero()[:, 0]
            self._log("cross_entropy", tokens, counted, crossed[counted])

    def _chunks(self) -> list[slice]:
        count = len(self.student)
        if not count:
            return []
        size = max(1, CHUNK_LOGITS // self.student.vocabulary)
        size -= size % 32 if size > 32 else 0
        return [slice(start, start + size) for start in range(0, count, size)]

    def _sequences(self) -> SequenceStatistics:
        rows = int(self.trained.sequence.max()) + 1
        sums = self.total.new_zeros(1 + len(self.teachers), rows)
        for part in self._chunks():
            for index, logits in enumerate((self.student, *self.teachers)):
                found = Chunk(logits, part, self.trained.targets[part]).judged().logprob
                sums[index].index_add_(0, self.trained.sequence[part], found)
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


class _Work:
    """What one group of terms comes to at a chunk of tokens."""

    def __init__(self, group: Group, teachers: Sequence[Chunk]) -> None:
        self.group = group
        counted = group.weight.nonzero()[:, 0]
        self.counted = counted
        self.everything = len(counted) == len(group.weight)
        self.starts = None if self.everything else counted.tolist()
        self.weight = group.weight[counted]
        self.values = torch.zeros_like(self.weight)
        self.target: Target = group.target(None if self.everything else counted, teachers)

    def step(self, student: torch.Tensor, block: slice, gradient: torch.Tensor | None) -> torch.Tensor | None:
        """Work on one block of tokens; its gradient is added to `gradient`, shape (tokens, vocabulary)."""
        part = block
        if self.starts is not None:
            part = slice(bisect_left(self.starts, block.start), bisect_left(self.starts, block.stop))
            if part.start == part.stop:
                return gradient
        whole = part.stop - part.start == block.stop - block.start
        here = self.counted[part] - block.start
        valued = self.target.compare(student if whole else student[here], part)
        self.values[part] = valued.value
        own = valued.gradient.mul_(self.weight[part, None])
        if whole:
            return own if gradient is None else gradient.add_(own)
        return (torch.zeros_like(student) if gradient is None else gradient).index_add_(0, here, own)

    def by_term(self) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
        """For each term, by its number, the tokens that it counts for and the divergence there."""
        if len(self.group.members) == 1:
            return dict.fromkeys(self.group.members, (self.counted, self.values))
        found = {}
        for number, term in self.group.members.items():
            own = term.weight[self.counted] != 0
            found[number] = (self.counted[own], self.values[own])
        return found


def _groups(weights: Weights, teachers: Sequence[Chunk]) -> list[Group]:
    """The terms that count for some token, those put together that can be."""
    groups: list[Group] = []
    for number, term in enumerate(weights.terms):
        if not bool((term.weight != 0).any()):
            continue
        host = next((group for group in groups if group.takes(term, teachers)), None)
        if host is None:
            groups.append(Group(term, number))
        else:
            host.add(term, number)
    return groups
