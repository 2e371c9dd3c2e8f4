"""What a student is compared with: teachers' logits at the tokens that count, or the little that is kept of them.

A teacher of whom only the likeliest tokens are kept (`Collapsed`) knows the likeliest k tokens of each position, their
probabilities p at temperature T, and the mass P that all others share. A divergence then gets the target

    p_i at the k tokens,    P q_i / Q elsewhere,    with q the student's probabilities and Q its own mass there,

which is the divergence of the two distributions over k tokens and one bucket for the rest, in value and gradient, for
every divergence of the f family (both KLs, Jensen-Shannon). A bucket hides what happens inside it: the value is never
too large; KL(teacher || student) is too small by P KL(p / P || q / Q), taken over the bucket; and the gradient of that
KL with respect to the student's logits is off by at most 2 P / T in absolute sum over the vocabulary, whatever the
student.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple, Protocol, runtime_checkable

import torch

from uphold.models.divergence import Divergence, ForwardKL, GoldStatistics, Valued, mixed_target
from uphold.models.projection import Logits, Projected, Sparing
from uphold.models.rules import Term

BLOCK_LOGITS = 1 << 19
"""Logits that are worked on at once: few enough to stay in a processor's cache from one step to the next."""
LEAST_MASS = 1e-30
"""What stands for a probability that rounding has made 0 or less."""


class NotKeptError(Exception):
    """A loss asks for more than what is kept of a teacher; `uphold.models.objective` then reads the teacher itself."""


class Top(NamedTuple):
    """A teacher's distributions at temperature T over k tokens and the rest, for m positions."""

    ids: torch.Tensor
    """The k likeliest tokens, shape (m, k)."""
    logprobs: torch.Tensor
    """In nats, shape (m, k)."""
    rest: torch.Tensor
    """Log of the mass of all other tokens, shape (m,); minus infinity where there are none."""


@runtime_checkable
class Remembered(Protocol):
    """Logits whose gold statistics are known without making any logits."""

    @property
    def gold(self) -> GoldStatistics:
        """Of all n positions."""
        ...


@runtime_checkable
class Collapsed(Protocol):
    """A teacher of whom only the likeliest tokens are kept."""

    @property
    def width(self) -> int:
        """How many: k."""
        ...

    def top(self, positions: torch.Tensor, temperature: float) -> Top:
        """What is kept at some positions, numbers of shape (m,).

        Raises:
            NotKeptError: nothing is kept for this temperature.
        """
        ...


class Judged:
    """`GoldStatistics` of logits that are at hand, each part found when it is first asked for."""

    def __init__(self, logits: torch.Tensor, targets: torch.Tensor) -> None:
        """Of `targets`, shape (n,), under `logits`, shape (n, vocabulary)."""
        self._logits, self._targets = logits, targets

    @cached_property
    def right(self) -> torch.Tensor:
        """See `GoldStatistics`."""
        logits, targets = self._logits, self._targets
        found = logits.gather(1, targets[:, None])[:, 0] == logits.amax(dim=-1)
        # Of equals the first is the likeliest one; only where gold is among the largest is there need to look.
        largest = found.nonzero()[:, 0]
        found[largest] = logits[largest].argmax(dim=-1) == targets[largest]
        return found

    @cached_property
    def logprob(self) -> torch.Tensor:
        """See `GoldStatistics`."""
        found = self._targets.new_zeros(self._targets.shape, dtype=self._logits.dtype)
        for part in blocks(*self._logits.shape):
            found[part] = self._logits[part].log_softmax(dim=-1).gather(1, self._targets[part, None])[:, 0]
        return found


class Chunk:
    """One teacher at a chunk of tokens; its logits there are made once, and only when somebody asks for them all."""

    def __init__(self, teacher: Logits, part: slice, targets: torch.Tensor) -> None:
        self.teacher, self.part, self._targets = teacher, part, targets
        self.width = teacher.width if isinstance(teacher, Collapsed) else 0
        """Of a `Collapsed` teacher; 0 for others."""

    @cached_property
    def logits(self) -> torch.Tensor:
        """All of the chunk, shape (tokens, vocabulary)."""
        return self.teacher.chunk(self.part)

    def judged(self) -> Judged | GoldStatistics:
        """How the teacher likes the gold tokens."""
        if isinstance(self.teacher, Remembered):
            return GoldStatistics(*(value[self.part] for value in self.teacher.gold))
        return _LaterJudged(self, self._targets)

    def at(self, tokens: torch.Tensor | None) -> torch.Tensor:
        """Logits at some tokens of the chunk, numbers of shape (m,), or at all of them."""
        if tokens is None:
            return self.logits
        if "logits" in self.__dict__ or not isinstance(self.teacher, Sparing):
            return self.logits[tokens]
        return self.teacher.at(tokens + self.part.start)

    @property
    def hidden(self) -> Projected | None:
        """The teacher, where its logits are still to be made of hidden states."""
        return self.teacher if isinstance(self.teacher, Projected) and "logits" not in self.__dict__ else None

    def top(self, tokens: torch.Tensor, temperature: float) -> Top:
        """What is kept at some tokens of the chunk."""
        assert isinstance(self.teacher, Collapsed)
        return self.teacher.top(tokens + self.part.start, temperature)


class _LaterJudged(Judged):
    """`Judged` by a teacher whose logits may never be needed."""

    def __init__(self, chunk: Chunk, targets: torch.Tensor) -> None:
        self._chunk, self._targets = chunk, targets

    @cached_property
    def _logits(self) -> torch.Tensor:  # type: ignore[override]
        return self._chunk.logits


class Group:
    """Terms of one divergence of which no two count for the same token: together they cost what one costs."""

    def __init__(self, term: Term, number: int) -> None:
        self.divergence, self.mix = term.divergence, term.mix
        self.members = {number: term}
        self.weight = term.weight

    def takes(self, term: Term, teachers: Sequence[Chunk]) -> bool:
        """Whether `term` can join."""
        return (
            term.divergence == self.divergence
            and all(isinstance(one.teacher, int) for one in (term, *self.members.values()))
            and len({teachers[int(one.teacher)].width for one in (term, *self.members.values())}) == 1
            and not bool(((self.weight != 0) & (term.weight != 0)).any())
        )

    def add(self, term: Term, number: int) -> None:
        """Let `term` join."""
        self.members[number] = term
        self.weight = self.weight + term.weight

    def target(self, tokens: torch.Tensor | None, teachers: Sequence[Chunk]) -> Target:
        """The target at the tokens of the chunk that count, numbers of shape (m,); None for all."""
        terms = list(self.members.values())
        if not isinstance(terms[0].teacher, int):
            return Mixed(self, tokens, teachers, terms[0].teacher)
        counted = [(teachers[int(term.teacher)], term.weight != 0) for term in terms]
        if tokens is not None:
            counted = [(teacher, where[tokens]) for teacher, where in counted]
        numbers = torch.arange(len(counted[0][1]), device=self.weight.device) if tokens is None else tokens
        if counted[0][0].width:
            return Kept(self.divergence, [(chunk, where, numbers) for chunk, where in counted])
        if len(counted) == 1:
            return Dense(self.divergence, counted[0][0].at(tokens))
        if (joined := _through_one_head(counted, numbers)) is not None:
            return Dense(self.divergence, joined)
        logits: torch.Tensor | None = None
        for teacher, where in counted:
            own = where.nonzero()[:, 0]
            if len(own):
                made = teacher.at(numbers[own])
                logits = made.new_empty(len(numbers), made.shape[-1]) if logits is None else logits
                logits[own] = made
        assert logits is not None
        return Dense(self.divergence, logits)


class Target(Protocol):
    """What m tokens are compared with."""

    def compare(self, student: torch.Tensor, part: slice) -> Valued:
        """The divergence of the student's logits, shape (p, vocabulary), from `part` of the target."""
        ...


class Dense:
    """A target made of logits, shape (m, vocabulary)."""

    def __init__(self, divergence: Divergence, logits: torch.Tensor) -> None:
        self.divergence, self.logits = divergence, logits

    def compare(self, student: torch.Tensor, part: slice) -> Valued:
        """See `Target`."""
        logits, divergence = self.logits[part], self.divergence
        if isinstance(divergence, ForwardKL):
            return forward_kl(student, logits, divergence)
        if divergence.target == "logits":
            return divergence(student, logits)
        return divergence(student, _tempered(logits, divergence.temperature).log_softmax(dim=-1))


class Mixed:
    """A target made of several teachers, with shares for each token."""

    def __init__(
        self, group: Group, tokens: torch.Tensor | None, teachers: Sequence[Chunk], shares: torch.Tensor
    ) -> None:
        self.group, self.shares = group, shares if tokens is None else shares[tokens]
        if any(teacher.width for teacher in teachers) and "logits" in (group.mix, group.divergence.target):
            raise NotKeptError
        numbers = torch.arange(len(self.shares), device=self.shares.device) if tokens is None else tokens
        temperature = group.divergence.temperature
        used = [bool(self.shares[:, k].any()) for k in range(len(teachers))]
        self.teachers = [
            None if not use else one.top(numbers, temperature) if one.width else one.at(tokens)
            for one, use in zip(teachers, used, strict=True)
        ]

    def compare(self, student: torch.Tensor, part: slice) -> Valued:
        """See `Target`."""
        divergence = self.group.divergence
        parts, columns = [], []
        for column, teacher in enumerate(self.teachers):
            if isinstance(teacher, Top):
                kept = Top(*(value[part] for value in teacher))
                own = _tempered(student, divergence.temperature).log_softmax(dim=-1)
                parts.append(spread(kept, own) * divergence.temperature)
            elif teacher is not None:
                parts.append(teacher[part])
            if teacher is not None:
                columns.append(column)
        shares = self.shares[part][:, columns].to(student.dtype)
        return divergence(student, mixed_target(parts, shares, self.group.mix, divergence))


class Kept:
    """A target made of what is kept of one teacher per token."""

    def __init__(self, divergence: Divergence, counted: Sequence[tuple[Chunk, torch.Tensor, torch.Tensor]]) -> None:
        if divergence.target == "logits":
            raise NotKeptError
        self.divergence = divergence
        found = [
            (where.nonzero()[:, 0], chunk.top(numbers[where], divergence.temperature))
            for chunk, where, numbers in counted
        ]
        rows = len(counted[0][1])
        self.top = Top(*(value.new_zeros(rows, *value.shape[1:]) for value in found[0][1]))
        for own, top in found:
            for whole, value in zip(self.top, top, strict=True):
                whole[own] = value

    def compare(self, student: torch.Tensor, part: slice) -> Valued:
        """See `Target`."""
        divergence, top = self.divergence, Top(*(value[part] for value in self.top))
        if isinstance(divergence, ForwardKL):
            return kept_forward_kl(student, top, divergence)
        own = _tempered(student, divergence.temperature).log_softmax(dim=-1)
        return divergence(student, spread(top, own))


def forward_kl(student: torch.Tensor, teacher: torch.Tensor, divergence: ForwardKL) -> Valued:
    """`ForwardKL` of two tensors of logits, in fewer passes over them than it takes with a made target."""
    mine, theirs = (_tempered(logits, divergence.temperature) for logits in (student, teacher))
    own, ratio = mine.log_softmax(dim=-1), theirs.log_softmax(dim=-1)
    share = ratio.exp()
    ratio.sub_(own)
    excess = own.exp_().sub_(share)
    value = torch.linalg.vecdot(share, ratio)
    if not bool(value.isfinite().all()):
        # A log-probability of minus infinity has no mass: 0 log 0 is 0.
        value = torch.linalg.vecdot(share, ratio.masked_fill_(share == 0, 0))
    # The excess sums to zero; added, it cancels the rounding of both normalisers (as in `ForwardKL`).
    value += excess.sum(dim=-1)
    if divergence.scale != divergence.temperature:
        excess.mul_(divergence.scale / divergence.temperature)
    return Valued(divergence.scale * value, excess)


def kept_forward_kl(student: torch.Tensor, top: Top, divergence: ForwardKL) -> Valued:
    """`ForwardKL` over k tokens and one bucket for the rest; see the module's docstring."""
    own = _tempered(student, divergence.temperature).softmax(dim=-1)
    mine, share = own.gather(1, top.ids), top.logprobs.exp()
    log_rest = _sum(own.scatter_(1, top.ids, 0.0)).log()
    value = (share * (top.logprobs - mine.clamp(min=LEAST_MASS).log())).sum(dim=-1)
    value += (top.rest.exp() * (top.rest - log_rest)).masked_fill(top.rest.isneginf(), 0)
    scale = divergence.scale / divergence.temperature
    gradient = own.mul_(scale * (1 - (top.rest - log_rest).exp())[:, None])
    gradient.scatter_(1, top.ids, scale * (mine - share))
    return Valued(divergence.scale * value, gradient)


def spread(top: Top, own: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of shape (m, vocabulary): those kept, and the rest in the shape of the student's `own`."""
    shift = top.rest - _sum(own.exp().scatter_(1, top.ids, 0.0)).log()
    return (own + shift[:, None]).scatter_(1, top.ids, top.logprobs)


def _through_one_head(counted: Sequence[tuple[Chunk, torch.Tensor]], numbers: torch.Tensor) -> torch.Tensor | None:
    """Logits of one teacher per token, where all have the same output head: the hidden states are put together."""
    teachers = [chunk.hidden for chunk, _ in counted]
    first = teachers[0]
    if first is None or len({None if one is None else one.head.weight.data_ptr() for one in teachers}) > 1:
        return None
    hidden = first.source.new_empty(len(numbers), first.source.shape[1])
    for (chunk, where), teacher in zip(counted, teachers, strict=True):
        assert teacher is not None
        hidden[where] = teacher.source[numbers[where] + chunk.part.start]
    return first.project(hidden)


def blocks(count: int, vocabulary: int) -> list[slice]:
    """`count` tokens, as many at a time as `BLOCK_LOGITS` allows."""
    size = max(1, BLOCK_LOGITS // vocabulary)
    return [slice(start, min(count, start + size)) for start in range(0, count, size)]


def _sum(mass: torch.Tensor) -> torch.Tensor:
    return mass.sum(dim=-1).clamp(min=LEAST_MASS)


def _tempered(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    return logits if temperature == 1 else logits / temperature
