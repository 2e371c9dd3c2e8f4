"""Relearning: how soon a skill comes back, beside models that never had it.

Reverse fine-tuning (reFT) of section 3.2 of arXiv:2311.12786. Every arm has the same batches, learning rate and
schedule. Models are trained in evaluation mode, so that dropout is off and batch statistics stay.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from uphold.core.errors import ModelError, UsageError
from uphold.core.progress import Progress, silent
from uphold.core.stats import Interval, mean_interval
from uphold.explain.wrappers.config import WrapperConfig
from uphold.explain.wrappers.skill import Skill, Source, accuracy, drawn, duplicate

Fresh = Callable[[int], nn.Module]
"""A model for a seed."""
APART = 1_000_003
"""Batches of one seed are so far from those of the next."""
REFT = "reFT"
"""The arm of the fine-tuned model."""


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
        """Of reFT before each control, at the target or another level; None unless reFT gets there in every seed."""
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
            # Five times sooner is to be 5, and not the rounding of its logarithm.
            found.append(Lead(arm.name, round(math.exp(sum(ratios) / len(ratios)), 9), None in theirs))
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
    schedule = _Schedule(steps, learning_rate, batch, warmup, final)
    for done in _steps(model, source, schedule, seed, weight_decay):
        progress("training", done, steps)
    return model


@dataclass(frozen=True)
class _Schedule:
    steps: int
    rate: float
    batch: int
    warmup: float
    final: float = 1.0

    def at(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        rising = max(1, round(self.warmup * self.steps))
        if step < rising:
            return self.rate * ((step + 1) / rising)
        done = (step - rising) / max(1, self.steps - rising)
        return self.rate * (self.final + (1 - self.final) * (1 + math.cos(math.pi * done)) / 2)


def _steps(
    model: nn.Module, source: Source, schedule: _Schedule, seed: int, weight_decay: float = 0.0
) -> Iterator[int]:
    """Train a model in place; gives the number of steps done after each."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise UsageError(f"{type(model).__name__} has no parameter that may be trained: set requires_grad")
    model.eval()
    solver = torch.optim.AdamW(trained, lr=schedule.rate, weight_decay=weight_decay)
    solver.zero_grad()
    for step in range(schedule.steps):
        batch = drawn(source, schedule.batch, APART * (seed + 1) + step)
        with torch.enable_grad():
            loss = batch.loss(batch.answers(model), batch.labels)
            if not bool(loss.isfinite()):
                raise ModelError(f"training has a loss of {loss.item()}: lower the learning rate {schedule.rate}")
            loss.backward()  # type: ignore[no-untyped-call]
        for group in solver.param_groups:
            group["lr"] = schedule.at(step)
        solver.step()
        solver.zero_grad()
        yield step + 1


def relearn(
    model: nn.Module,
    source: Source,
    test: Skill,
    *,
    target: float,
    controls: Mapping[str, Fresh] | None = None,
    config: WrapperConfig | None = None,
    progress: Progress = silent,
) -> Relearning:
    """Train copies of a fine-tuned model and of controls on the old skill.

    Args:
        model: left as it is.
        source: of the old skill, to learn from.
        test: other instances of it.
        target: accuracy that counts as having the skill again, in (0, 1].
        controls: by name, what gives for a seed a model that never had the skill; copied as well.
        config: learning rate, steps, batch, warm-up and seeds.
        progress: called after every arm and seed.

    Raises:
        UsageError: there is nothing to train, or a control has the name of the fine-tuned model's arm.
        ModelError: a loss is not finite.
    """
    config = config or WrapperConfig()
    check_names(controls or {}, REFT)
    makers: dict[str, Fresh] = {REFT: lambda _: model, **(controls or {})}
    arms = []
    for number, (name, make) in enumerate(makers.items()):
        curves = []
        for index, seed in enumerate(config.seeds):
            curves.append(_curve(duplicate(make(seed)), source, test, config, seed))
            progress("relearning", number * len(config.seeds) + index + 1, len(makers) * len(config.seeds), name)
        arms.append(Arm(name, config.steps, tuple(curves)))
    start = arms[0].mean[0]
    half = target if start >= target else start + (target - start) / 2
    return Relearning(config.learning_rate, config.warmup, target, half, config.seeds, tuple(arms))


def check_names(controls: Mapping[str, Fresh], *taken: str) -> None:
    """Refuse controls that have the name of another arm.

    Raises:
        UsageError: one has.
    """
    for name in taken:
        if name in controls:
            raise UsageError(f"a control may not be called {name}: another arm has that name; give it one of its own")


def _curve(model: nn.Module, source: Source, test: Skill, config: WrapperConfig, seed: int) -> tuple[float, ...]:
    """Accuracy after the steps of the options; the model is trained in place."""
    schedule = _Schedule(config.steps[-1], config.learning_rate, config.batch, config.warmup)
    found = [accuracy(model, test, config.rows)]
    for done in _steps(model, source, schedule, seed):
        if done in config.steps:
            found.append(accuracy(model, test, config.rows))
    return tuple(found)


def tuned_control(fresh: Fresh, source: Source, steps: int, learning_rate: float, **options: Any) -> Fresh:
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
            made[seed] = train(duplicate(fresh(seed)), source, steps, learning_rate, seed=seed, **options)
        return made[seed]

    return make
