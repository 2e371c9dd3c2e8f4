"""One wrong token: which neurons to edit, and how far, until the right token is predicted.

while argmax != t:
    for each candidate (l, j):  g = max_v P(v) - P(t)  with (l, j) patched
    patch the one with the smallest g
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from uphold.models.neurons.attribution import Neuron
from uphold.models.neurons.config import NeuronConfig
from uphold.models.neurons.context import Context, Trial
from uphold.models.neurons.edits import Edit, Ledger, patched
from uphold.models.neurons.neurons import Down

_NARROWER, _NEARER = 1e-6, 1e-4
"""A gap of probabilities that falls by less, and log-odds (nats) that rise by less, have not changed: rounding. The
second counts where a probability close to 1 hides what happens to the others."""
_LEAD = 0.01
"""By how many nats the right token leads after a line search: another batch or kernel must not undo it."""
_STEPS = 8
"""Strengths that a line search tries at once, twice."""


@dataclass(frozen=True)
class Problem:
    """A wrong token."""

    context: Context
    """Behind the prompt and the right tokens before."""
    target: int
    """The right token, t."""
    wrong: int
    """What is predicted, a."""
    number: int
    """Which failure it is of."""
    position: int
    """Which token of its target it is."""


@dataclass(frozen=True)
class Outcome:
    """What was done about a wrong token."""

    repaired: bool
    strength: float
    """The last that was tried."""
    edits: int
    """How many are left in the model; 0 where it was not repaired."""
    gap_before: float
    """max P - P(t) before; 0 where t is predicted."""
    gap_after: float
    reason: str = ""
    """Why not."""


def gap(logits: torch.Tensor, target: int) -> torch.Tensor:
    """Probability of the likeliest token less that of the right one, at least 0; of the last dimension."""
    probabilities = logits.double().softmax(-1)
    return probabilities.amax(-1) - probabilities[..., target]


def repair_token(
    problem: Problem,
    pool: Sequence[Neuron],
    directions: Mapping[str, torch.Tensor],
    config: NeuronConfig,
    ledger: Ledger,
) -> Outcome:
    """Edit candidates until the right token is predicted, one strength after the other; what does not help is undone.

    Args:
        problem: the wrong token.
        pool: candidates.
        directions: p by down-projection's name, in float64; layers without one are left out.
        config: the options.
        ledger: gets the edits.
    """
    usable = [one for one in pool if one.down.name in directions]
    before = float(gap(problem.context.logits(), problem.target))
    if not usable:
        return Outcome(False, 0.0, 0, before, before, "no neuron is active here, or there is no direction")
    outcome = None
    for strength, limit in config.rungs:
        outcome = _Climb(problem, usable, directions, config, ledger).run(strength, limit, before)
        if outcome.repaired:
            break
    assert outcome is not None
    return outcome


@dataclass(frozen=True)
class _Climb:
    """The greedy search with one strength."""

    problem: Problem
    pool: Sequence[Neuron]
    directions: Mapping[str, torch.Tensor]
    config: NeuronConfig
    ledger: Ledger

    def run(self, strength: float, limit: int, before: float) -> Outcome:
        mark, now, target = self.ledger.mark(), before, self.problem.target
        lead = _lead(self.problem.context.logits(), target)
        reason = f"still wrong after {limit} edits"
        for step in range(limit):
            trials = self._trials(strength)
            if not trials:
                dtype = str(self.pool[0].down.module.weight.dtype).removeprefix("torch.")
                reason = f"an edit of strength {strength:g} changes no neuron in {dtype}"
                break
            simulated = self.problem.context.simulate(trials)
            gaps = gap(simulated, target)
            best = int(gaps.argmin())
            if float(gaps[best]) > now - _NARROWER and _lead(simulated[best], target) < lead + _NEARER:
                reason = f"no candidate brings the right token nearer after {step} edits"
                break
            self._write(trials[best], strength)
            logits = self.problem.context.logits()
            now, lead = float(gap(logits, target)), _lead(logits, target)
            if int(logits.argmax()) == target:
                if self.config.mode == "add":
                    strength, now = self._weaker(strength, now)
                return Outcome(True, strength, self.ledger.mark() - mark, before, now)
        self.ledger.rollback(mark)
        return Outcome(False, strength, 0, before, before, reason)

    def _trials(self, strength: float) -> list[Trial]:
        """The candidates that an edit of this strength changes at all: in bfloat16 a small one can round to nothing."""
        made = [self._trial(one.down, one.index, strength) for one in self.pool]
        return [
            one
            for one in made
            if bool(one.column.isfinite().all()) and not torch.equal(one.column, one.down.neuron(one.index))
        ]

    def _trial(self, down: Down, index: int, strength: float) -> Trial:
        wanted = patched(down.neuron(index), self.directions[down.name], strength, self.config.mode)
        return Trial(down, index, *self.ledger.settled(down, index, wanted))

    def _write(self, trial: Trial, strength: float) -> None:
        problem = self.problem
        self.ledger.write(
            Edit(
                trial.down,
                trial.index,
                strength,
                trial.down.neuron(trial.index).clone(),
                trial.column,
                trial.delta,
                problem.number,
                problem.position,
                problem.wrong,
                problem.target,
            )
        )

    def _weaker(self, strength: float, now: float) -> tuple[float, float]:
        """Line search: the weakest last edit that still gives the right token a lead; its strength and gap."""
        last, mark = self.ledger.edits[-1], self.ledger.mark() - 1
        self.ledger.rollback(mark)
        low, high = 0.0, strength
        for _ in range(2):
            tried = [low + (high - low) * step / _STEPS for step in range(1, _STEPS + 1)]
            logits = self.problem.context.simulate([self._trial(last.down, last.index, one) for one in tried])
            enough = [step for step, one in enumerate(logits) if _lead(one, self.problem.target) > _LEAD]
            if not enough:
                break
            low, high = ([low, *tried])[enough[0]], tried[enough[0]]
        if high < strength:
            self._write(self._trial(last.down, last.index, high), high)
            logits = self.problem.context.logits()
            if int(logits.argmax()) == self.problem.target:
                return high, float(gap(logits, self.problem.target))
            self.ledger.rollback(mark)
        self.ledger.write(last)
        return strength, now


def _lead(logits: torch.Tensor, target: int) -> float:
    """Log-odds of the right token against the best other one."""
    others = logits.clone()
    others[target] = -torch.inf
    return float(logits[target] - others.max())
