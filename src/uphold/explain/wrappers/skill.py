"""A skill as inputs with right answers, and how well a model has it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional

from uphold.core.errors import EmptyError, ModelError, UsageError
from uphold.core.stats import Interval, proportion_interval
from uphold.models.sites.hooks import Inputs
from uphold.models.sites.run import logits_of, ready, rows_of

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def top_class(logits: torch.Tensor) -> torch.Tensor:
    """The class of the largest logit."""
    return logits.argmax(-1)


@dataclass(frozen=True)
class Skill:
    """What a model is asked and what is right."""

    name: str
    inputs: Inputs
    """What the model is called with: one tensor, or arguments by name; first dimension n, on the model's device."""
    labels: torch.Tensor
    """Right classes, int64 of shape (n,), on the same device."""
    at: torch.Tensor | None = None
    """Position of the answer in each row, int64 of shape (n,); None where the model gives one answer a row."""
    loss: Loss = functional.cross_entropy
    """(logits (n, V), labels (n,)) -> mean loss, a scalar with a graph."""
    predict: Callable[[torch.Tensor], torch.Tensor] = top_class
    """Logits (n, V) -> predicted classes (n,)."""

    def __post_init__(self) -> None:
        sizes = {
            len(one)
            for one in (self.inputs.values() if not isinstance(self.inputs, torch.Tensor) else [self.inputs])
            if isinstance(one, torch.Tensor)
        }
        if self.labels.dim() != 1 or self.labels.is_floating_point() or self.labels.dtype == torch.bool:
            raise UsageError(f"skill {self.name}: expected whole-number labels of shape (n,)")
        if not len(self.labels):
            raise EmptyError(f"skill {self.name} has no instances")
        if sizes != {len(self.labels)} or (self.at is not None and len(self.at) != len(self.labels)):
            raise UsageError(f"skill {self.name}: expected inputs, labels and positions of equally many instances")

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, rows: torch.Tensor | slice) -> Skill:
        """The same of some instances."""
        at = None if self.at is None else self.at[rows]
        return Skill(self.name, rows_of(self.inputs, rows), self.labels[rows], at, self.loss, self.predict)

    def answers(self, model: nn.Module) -> torch.Tensor:
        """Logits of shape (n, V), with a graph where gradients are on; the model is run as it stands."""
        at = self.at if not isinstance(self.inputs, torch.Tensor) else None
        logits = at_position(logits_of(model, self.inputs, at), self.at)
        if logits.dim() != 2:
            raise ModelError(f"skill {self.name}: expected logits (n, classes), not {tuple(logits.shape)}; give `at`")
        return logits


Source = Skill | Callable[[int], Skill]
"""Where instances to learn from come: a fixed set, or a function of a seed that gives a fresh batch."""


def at_position(values: torch.Tensor, at: torch.Tensor | None) -> torch.Tensor:
    """The answer's position of (n, positions, width); what has no positions is left as it is."""
    if at is None or values.dim() != 3:
        return values
    return values[torch.arange(len(values), device=values.device), at.to(values.device)]


def drawn(source: Source, batch: int, seed: int) -> Skill:
    """A batch: of a function what it gives for `seed`, of a fixed set rows drawn with replacement."""
    if not isinstance(source, Skill):
        return source(seed)
    generator = torch.Generator().manual_seed(seed)
    return source.rows(torch.randint(len(source), (batch,), generator=generator))


def gathered(source: Source, count: int, seed: int) -> Skill:
    """At most `count` instances: of a fixed set a random part, of a function its batches from `seed` on.

    Raises:
        UsageError: batches do not go together, such as texts of different lengths.
    """
    if isinstance(source, Skill):
        order = torch.randperm(len(source), generator=torch.Generator().manual_seed(seed))
        return source.rows(order[:count])
    batches = [source(seed)]
    while sum(map(len, batches)) < count:
        batches.append(source(seed + len(batches)))
    try:
        return _joined(batches).rows(slice(count))
    except RuntimeError as error:
        raise UsageError(f"batches of {batches[0].name} do not go together ({error}); give a fixed set") from error


def _joined(skills: Sequence[Skill]) -> Skill:
    first = skills[0]
    inputs: Inputs
    if isinstance(first.inputs, torch.Tensor):
        inputs = torch.cat([cast(torch.Tensor, one.inputs) for one in skills])
    else:
        inputs = {
            name: torch.cat([cast(Mapping[str, Any], one.inputs)[name] for one in skills])
            if isinstance(value, torch.Tensor)
            else value
            for name, value in first.inputs.items()
        }
    labels = torch.cat([one.labels for one in skills])
    at = None if first.at is None else torch.cat([cast(torch.Tensor, one.at) for one in skills])
    return Skill(first.name, inputs, labels, at, first.loss, first.predict)


def duplicate(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode that shares no memory with the model.

    Raises:
        ModelError: the model cannot be copied.
    """
    try:
        twin = copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:
        raise ModelError(f"{type(model).__name__} cannot be copied ({error}); load it anew") from error
    return twin.eval()


@dataclass(frozen=True)
class Behaviour:
    """How well a model has a skill."""

    model: str
    skill: str
    n: int
    accuracy: float
    interval: Interval
    """Wilson."""
    balanced: float
    """Mean over the classes that occur of the share told right."""
    loss: float
    predicted: tuple[tuple[int, int], ...]
    """Predicted classes with their counts, by class."""

    @property
    def collapse(self) -> float:
        """Share of the class that is predicted most often, in (0, 1]."""
        return max(count for _, count in self.predicted) / self.n


def behaviour(model: nn.Module, skill: Skill, *, name: str = "", rows: int = 512, level: float = 0.95) -> Behaviour:
    """Accuracy, balanced accuracy, loss, and the histogram of predicted classes.

    Args:
        model: run in evaluation mode; left as it was.
        skill: what it is asked.
        name: of the model.
        rows: in one forward pass.
        level: of the interval.
    """
    guesses, losses = [], 0.0
    with ready(model):
        for start in range(0, len(skill), rows):
            part = skill.rows(slice(start, start + rows))
            logits = part.answers(model)
            losses += float(part.loss(logits, part.labels)) * len(part)
            guesses.append(part.predict(logits))
    predicted = torch.cat(guesses)
    right = (predicted == skill.labels).double()
    classes = skill.labels.unique()  # type: ignore[no-untyped-call]
    balanced = torch.stack([right[skill.labels == one].mean() for one in classes]).mean()
    found, counts = predicted.unique(return_counts=True)  # type: ignore[no-untyped-call]
    return Behaviour(
        name,
        skill.name,
        len(skill),
        float(right.mean()),
        proportion_interval(int(right.sum()), len(skill), level, method="wilson"),
        float(balanced),
        losses / len(skill),
        tuple(zip(found.tolist(), counts.tolist(), strict=True)),
    )


def accuracy(model: nn.Module, skill: Skill, rows: int = 512) -> float:
    """Share of instances told right, in [0, 1]."""
    return behaviour(model, skill, rows=rows).accuracy
