"""Relearning: how soon a skill comes back, beside models that never had it.

Reverse fine-tuning (reFT) of section 3.2 of arXiv:2311.12786. Every arm has the same batches, learning rate and
schedule. Models are trained in evaluation mode, so that dropout is off and batch statistics stay.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from uphold.core.errors import ModelError, UsageError
from uphold.core.progress import Progress, silent
from uphold.core.stats import Interval, mean_interval
from uphold.explain.wrappers.skill import Skill, Source, accuracy, drawn, duplicate

Fresh = Callable[[int], nn.Module]
"""A model for a seed."""
APART = 1_000_003
"""Batches of one seed are so far from those of the next."""


@dataclass(frozen=True)
class Arm:
    """How one model relearns."""

    name: str
    steps: tuple[int, ...]
    accuracy: tuple[tuple[float, ...], ...]
    """By seed, then by step."""

    @property
    def mean(self) -> tuple[float, ...]:
        """By step, over seeds."""
        return tuple(sum(one) / len(one) for one in zip(*self.accuracy, strict=True))

    def band(self, level: float = 0.95) -> tuple[Interval | None, ...]:
        """By step, Student's t over seeds within [0, 1]; None for one seed."""
        if len(self.accuracy) < 2:
            return (None,) * len(self.steps)
        found = [mean_interval(one, level) for one in zip(*self.accuracy, strict=True)]
        return tuple(Interval(max(0.0, one.low), min(1.0, one.high)) for one in found)

    def reached(self, target: float) -> tuple[int | None, ...]:
        """By seed, the first measured step from which on the accuracy stays at `target`; None where it never does."""
        found: list[int | None] = []
        for curve in self.accuracy:
            first = None
            for step, value in zip(reversed(self.steps), reversed(curve), strict=True):
                if value < target:
                    break
                first = step
            found.append(first)
        return tuple(found)


@dataclass(frozen=True)
class Lead:
    """How many times sooner the fine-tuned model reaches a target than a control."""

    control: str
    times: float
    """Geometric mean over seeds of (control's steps / its own), each at least 1 step; a lower bound where `open`."""
    open: bool
    """Whether the control did not reach the target within the steps in some seed."""


@dataclass(frozen=True)
class Relearning:
    """All arms at one learning rate."""

    learning_rate: float
    warmup: float
    target: float
    """Accuracy that counts as having the skill again."""
    half: float
    """Half way from the fine-tuned model's accuracy to the target: its steps are the half-life."""
    seeds: tuple[int, ...]
    arms: tuple[Arm, ...]
    """reFT first, then the controls."""

    def leads(self, level: float | None = None) -> tuple[Lead, ...] | None:
        """Of reFT before each control, at the target or another level; None where reFT gets there in no seed or some.

        A model that never reaches the target cannot lead.
        """
        goal = self.target if level is None else level
        own = self.arms[0].reached(goal)
        if any(one is None for one in own):
            return None
        found = []
        for arm in self.arms[1:]:
            theirs = arm.reached(goal)
            ratios = [
                math.log(max(1, arm.steps[-1] if their is None else their) / max(1, mine or 0))
                for mine, their in zip(own, theirs, strict=True)
            ]
            found.append(Lead(arm.name, math.exp(sum(ratios) / len(ratios)), None in theirs))
        return tuple(found)


def train(
    model: nn.Module,
    source: Source,
    steps: int,
    learning_rate: float,
    *,
    batch: int = 96,
    warmup: float = 0.0,
    final: float = 1.0,
    weight_decay: float = 0.0,
    seed: int = 0,
    progress: Progress = silent,
) -> nn.Module:
    """Train a model in place with AdamW, what of it may be trained; in evaluation mode.

    Args:
        model: changed and returned.
        source: of the batches.
        steps: of the optimiser.
        learning_rate: at its highest.
        batch: instances in a step, where the source is a fixed set.
        warmup: share of the steps over which the rate rises linearly.
        final: share of the rate that is left at the end of half a cosine; 1 keeps it constant.
        weight_decay: AdamW's.
        seed: of the batches.
        progress: called after every step.

    Raises:
        UsageError: there is nothing to train.
        ModelError: the loss is not finite.
    """
    learner = _Learner(model, learning_rate, weight_decay)
    rising = max(1, round(warmup * steps))
    for step in range(steps):
        if step < rising:
            share = (step + 1) / rising
        else:
            done = (step - rising) / max(1, steps - rising)
            share = final + (1 - final) * (1 + math.cos(math.pi * done)) / 2
        learner.step(drawn(source, batch, APART * (seed + 1) + step), share)
        progress("training", step + 1, steps)
    learner.solver.zero_grad()
    return model


class _Learner:
    def __init__(self, model: nn.Module, rate: float, weight_decay: float = 0.0) -> None:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not trained:
            raise UsageError(f"{type(model).__name__} has no parameter that may be trained: set requires_grad")
        self.model, self.rate = model.eval(), rate
        self.solver = torch.optim.AdamW(trained, lr=rate, weight_decay=weight_decay)

    def step(self, batch: Skill, share: float) -> None:
        for group in self.solver.param_groups:
            group["lr"] = self.rate * share
        with torch.enable_grad():
            loss = batch.loss(batch.answers(self.model), batch.labels)
            if not bool(loss.isfinite()):
                raise ModelError(f"training has a loss of {loss.item()}: lower the learning rate {self.rate}")
            self.solver.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
        self.solver.step()


def relearn(
    model: nn.Module,
    source: Source,
    test: Skill,
    *,
    target: float,
    learning_rate: float,
    controls: Mapping[str, Fresh] | None = None,
    steps: Sequence[int] = (0, 1, 3, 10, 30, 100, 300),
    batch: int = 96,
    warmup: float = 0.0,
    seeds: Sequence[int] = (0, 1, 2),
    rows: int = 512,
    progress: Progress = silent,
) -> Relearning:
    """Train copies of a fine-tuned model and of controls on the old skill.

    Args:
        model: left as it is.
        source: of the old skill, to learn from.
        test: other instances of it.
        target: accuracy that counts as having the skill again, in (0, 1].
        learning_rate: of every arm; at most that of the fine-tuning.
        controls: by name, what gives for a seed a model that never had the skill; copied as well.
        steps: after which the skill is measured, rising from 0.
        batch: instances in a step.
        warmup: share of the steps over which the rate rises.
        seeds: of batches and controls.
        rows: in one forward pass of the measurement.
        progress: called after every arm and seed.

    Raises:
        UsageError: there is nothing to train.
        ModelError: a loss is not finite.
    """
    makers: dict[str, Fresh] = {"reFT": lambda _: model, **(controls or {})}
    arms = []
    for number, (name, make) in enumerate(makers.items()):
        curves = []
        for index, seed in enumerate(seeds):
            curves.append(_curve(duplicate(make(seed)), source, test, learning_rate, steps, batch, warmup, seed, rows))
            progress("relearning", number * len(seeds) + index + 1, len(makers) * len(seeds), name)
        arms.append(Arm(name, tuple(steps), tuple(curves)))
    start = arms[0].mean[0]
    half = target if start >= target else start + (target - start) / 2
    return Relearning(learning_rate, warmup, target, half, tuple(seeds), tuple(arms))


def _curve(
    model: nn.Module,
    source: Source,
    test: Skill,
    rate: float,
    steps: Sequence[int],
    batch: int,
    warmup: float,
    seed: int,
    rows: int,
) -> tuple[float, ...]:
    learner = _Learner(model, rate)
    rising = max(1, round(warmup * steps[-1]))
    found = [accuracy(model, test, rows)]
    for step in range(steps[-1]):
        learner.step(drawn(source, batch, APART * (seed + 1) + step), min(1.0, (step + 1) / rising))
        if step + 1 in steps:
            found.append(accuracy(model, test, rows))
    return tuple(found)


def tuned_control(fresh: Fresh, source: Source, steps: int, learning_rate: float, **options: float) -> Fresh:
    """A control that was trained on the new skill only: the paper's "Scr. + FT", once it relearns the old one.

    Args:
        fresh: gives an untrained model for a seed.
        source: of the new skill.
        steps: of the training, as many as the old model's pretraining had.
        learning_rate: at its highest.
        options: others of `train`.

    Returns:
        What gives the trained model for a seed; each seed is trained once.
    """
    made: dict[int, nn.Module] = {}

    def make(seed: int) -> nn.Module:
        if seed not in made:
            made[seed] = train(duplicate(fresh(seed)), source, steps, learning_rate, seed=seed, **options)  # type: ignore[arg-type]
        return made[seed]

    return make
