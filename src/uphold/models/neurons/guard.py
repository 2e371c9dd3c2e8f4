"""What neuron edits do elsewhere: predictions and likelihoods on a guard set, and of given continuations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from uphold.models.encode import Encoded
from uphold.models.neurons.config import Guard
from uphold.models.neurons.context import forward
from uphold.models.neurons.neurons import Anatomy

_LOGITS = 1 << 25
"""Most logits that are held at once."""


@dataclass(frozen=True)
class Reading:
    """A model's predictions on a guard set."""

    predicted: torch.Tensor
    """Likeliest token at each scored position, shape (n,)."""
    nll: float
    """Mean negative log-likelihood of the tokens that are there, in nats."""


@dataclass(frozen=True)
class Drift:
    """How a patched model differs from another on a guard set."""

    tokens: int
    """Scored positions."""
    agreement: float
    """Share of them with the same likeliest token."""
    nll_before: float
    """Mean negative log-likelihood of the first model, in nats per token."""
    nll_after: float

    @property
    def nll_rise(self) -> float:
        """Nats per token by which the patched model is worse; negative where it is better."""
        return self.nll_after - self.nll_before

    def exceeds(self, nll_rise: float, agreement: float) -> str:
        """What is beyond a budget, in words; "" where nothing is."""
        if not self.nll_rise <= nll_rise:
            return f"the guard set's loss rises by {self.nll_rise:.4f} nats per token, more than {nll_rise:g}"
        if not self.agreement >= agreement:
            return f"only {self.agreement:.2%} of the guard set's predictions stay, less than {agreement:.2%}"
        return ""


@torch.no_grad()
def read_guard(anatomy: Anatomy, guard: Guard) -> Reading | None:
    """The model's predictions at the answers' tokens of a guard set; None where it has no rows.

    Rows are padded on the right, which a causal model cannot see.
    """
    if not guard.rows:
        return None
    predicted, losses = [], []
    for rows in _batches(guard.rows, anatomy.vocabulary):
        wholes = [[*row.prompt, *row.answer[:-1]] for row in rows]
        ids = torch.zeros(len(rows), max(map(len, wholes)), dtype=torch.long)
        for index, whole in enumerate(wholes):
            ids[index, : len(whole)] = torch.tensor(whole)
        logits = forward(anatomy, ids)
        for index, row in enumerate(rows):
            places = slice(len(row.prompt) - 1, len(row.prompt) + len(row.answer) - 1)
            part = logits[index, places]
            predicted.append(part.argmax(-1).cpu())
            gold = torch.tensor(row.answer, device=part.device)
            losses.append(torch.nn.functional.cross_entropy(part, gold, reduction="none").double().cpu())
    return Reading(torch.cat(predicted), float(torch.cat(losses).mean()))


def drift(before: Reading, after: Reading) -> Drift:
    """How `after` differs from `before`, both of one guard set."""
    same = (before.predicted == after.predicted).double().mean()
    return Drift(len(before.predicted), float(same), before.nll, after.nll)


@dataclass(frozen=True)
class Forced:
    """How a model predicts a continuation token by token, the right ones before given."""

    predicted: tuple[int, ...]
    """Likeliest token at each position."""
    right: int
    """At how many positions it is the right one."""
    rank: float
    """Mean rank of the right token; 0 is the likeliest."""
    gap: float
    """Mean of max P - P(right token)."""

    @property
    def all_right(self) -> bool:
        """Whether greedy decoding would write the continuation."""
        return self.right == len(self.predicted)


@torch.no_grad()
def forced(anatomy: Anatomy, prompt: Sequence[int], target: Sequence[int]) -> Forced:
    """Read a prompt with its right continuation once."""
    logits = forward(anatomy, torch.tensor([[*prompt, *target[:-1]]]))[0, len(prompt) - 1 :]
    gold = torch.tensor(list(target), device=logits.device)
    predicted = logits.argmax(-1)
    probabilities = logits.softmax(-1)
    own = probabilities.gather(1, gold[:, None])
    ranks = (logits > logits.gather(1, gold[:, None])).sum(1).double()
    gaps = (probabilities.amax(1) - own[:, 0]).double()
    return Forced(tuple(predicted.tolist()), int((predicted == gold).sum()), float(ranks.mean()), float(gaps.mean()))


def _batches(rows: Sequence[Encoded], vocabulary: int) -> list[list[Encoded]]:
    """Rows in batches of few logits, in an order that is the same for every model."""
    batches: list[list[Encoded]] = []
    longest = 0
    for row in sorted(rows, key=lambda one: len(one.prompt) + len(one.answer)):
        longest = len(row.prompt) + len(row.answer)
        if not batches or (len(batches[-1]) + 1) * longest * vocabulary > _LOGITS:
            batches.append([])
        batches[-1].append(row)
    return batches
