"""What stages are trained and measured on, and for what: examples in memory, and the loss with what counts as right."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass
from functools import partial
from typing import Any, Protocol, cast

import torch
from torch import nn
from torch.nn import functional

from uphold.core.errors import EmptyError, UsageError
from uphold.models.fingerprint import tensors_hash
from uphold.models.stages.split import evaluating, run

IGNORED = -100
"""The target of a token that counts neither in the loss nor in the accuracy."""
_AT_ONCE = 256
"""Instances per forward pass where nothing is trained."""


class Augment(Protocol):
    """A random change of inputs."""

    def __call__(self, inputs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """The changed batch, drawn from `generator`."""
        ...


@dataclass(frozen=True, eq=False)
class Examples:
    """Instances to train or measure on, in memory."""

    inputs: torch.Tensor
    """What the model reads, shape (n, ...): numbers, or token ids padded on the right."""
    targets: torch.Tensor
    """What the objective compares with, shape (n, ...): class numbers (n,), or token ids of the shape of `inputs`,
    `IGNORED` where a token does not count."""
    augment: Augment | None = None
    """Changes each batch while training; measured is without."""

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.targets):
            raise UsageError(f"{len(self.inputs)} inputs have {len(self.targets)} targets: expected one for each")
        if not len(self.inputs):
            raise EmptyError("there are no examples to train or measure on")

    @classmethod
    def of(cls, inputs: Any, targets: Any, augment: Augment | None = None) -> Examples:
        """Examples from arrays or tensors."""
        return cls(torch.as_tensor(inputs), torch.as_tensor(targets), augment)

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def hash(self) -> str:
        """SHA-256 of inputs and targets."""
        return tensors_hash({"inputs": self.inputs, "targets": self.targets})

    @property
    def sample(self) -> torch.Tensor:
        """The first two inputs."""
        return self.inputs[:2]


class Objective(Protocol):
    """What is trained for, and what counts as right."""

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The mean loss of a batch, a scalar with gradient."""
        ...

    def correct(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Which instances are right, booleans of shape (n,)."""
        ...


@dataclass(frozen=True)
class Classification:
    """Cross-entropy of classes; outputs are logits of shape (n, classes)."""

    label_smoothing: float = 0.0
    """In [0, 1]; the paper takes 0.1."""

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """See `Objective`."""
        return functional.cross_entropy(outputs, targets, label_smoothing=self.label_smoothing)

    def correct(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The largest logit is the target's."""
        return outputs.argmax(-1) == targets


@dataclass(frozen=True)
class NextToken:
    """Cross-entropy of the next token; outputs are logits of shape (n, length, vocabulary).

    Targets are the token ids of the inputs themselves; the one at a position is compared with the output before it.
    """

    label_smoothing: float = 0.0
    """In [0, 1]."""

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The mean over all tokens of the batch that count."""
        return functional.cross_entropy(
            outputs[:, :-1].flatten(0, 1),
            targets[:, 1:].flatten(),
            ignore_index=IGNORED,
            label_smoothing=self.label_smoothing,
        )

    def correct(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Every token that counts is the most likely one after the true ones before it."""
        wanted = targets[:, 1:]
        return ((outputs[:, :-1].argmax(-1) == wanted) | (wanted == IGNORED)).all(-1)


def correct(model: nn.Module, examples: Examples, objective: Objective) -> torch.Tensor:
    """Which of the examples the model gets right, booleans of shape (n,), on the CPU."""
    device = next(model.parameters()).device
    with evaluating(model):
        return torch.cat(
            [
                objective.correct(run(model, inputs), targets.to(device)).cpu()
                for inputs, targets in zip(chunks(examples.inputs), chunks(examples.targets), strict=True)
            ]
        )


def chunks(values: torch.Tensor) -> Iterator[torch.Tensor]:
    """`values` in parts that are read at once where nothing is trained."""
    for start in range(0, len(values), _AT_ONCE):
        yield values[start : start + _AT_ONCE]


def described(thing: Any) -> str:
    """How an objective or augmentation is written into a manifest: its class and options, or its full name."""
    if is_dataclass(thing) or thing is None:
        return repr(thing)
    if isinstance(thing, partial):
        return f"{described(thing.func)}{thing.args}{thing.keywords}"
    kind = thing if hasattr(thing, "__qualname__") else type(thing)
    # A script's own functions are of another module in processes that it starts.
    module = kind.__module__.replace("__mp_main__", "__main__")
    return f"{module}.{cast(Any, kind).__qualname__}"
