"""A training loop for adapters: deterministic for a seed, resumable to the step, checkpoint chosen on validation.

A run that is killed and taken up again makes the same steps, and ends with the same bytes, as one that was not. Under
`accelerate launch` every process takes its share of each step's instances (`uphold.models.trainer`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, get_args

from uphold.core.errors import EmptyError, UsageError, unknown_name
from uphold.core.progress import Progress, silent
from uphold.models.encode import Batch, Encoded

if TYPE_CHECKING:
    import torch

    from uphold.models.rules import Trained

Tokens = Literal["all", "answer"]
Select = Literal["accuracy", "nfr", "loss", "last"]
Decay = Literal["constant", "linear", "cosine"]
NFR_TOLERANCE = 0.005
"""Validation accuracy that may be given up for fewer negative flips, as a share."""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train."""

    epochs: int = 10
    """Passes over the train split."""
    learning_rate: float = 1e-4
    """AdamW's, at its highest."""
    warmup_steps: int = 500
    """Steps over which the learning rate rises linearly."""
    decay: Decay = "constant"
    """What the learning rate does after warm-up: stay, or fall to 0 at the end, in a line or as half a cosine."""
    batch_size: int = 64
    """Instances per optimiser step."""
    micro_batch: int = 64
    """Instances per forward pass; gradients are accumulated up to `batch_size`."""
    weight_decay: float = 0.0
    """AdamW's, decoupled."""
    max_gradient_norm: float = 0.0
    """Gradients are clipped to this norm; 0 leaves them alone."""
    gradient_checkpointing: bool = False
    """Keep no activations inside layers and make them again for the backward pass: the same gradients in less memory,
    for about a third more time."""
    tokens: Tokens = "all"
    """Train on all tokens, or on the answer's only."""
    select: Select = "accuracy"
    """Which epoch is kept, by validation: the most accurate (or best mean score), the one with the lowest NFR among
    those about as accurate as the start, the one with the lowest loss, or the last."""
    seed: int = 0
    """Of the data order and of fresh adapter weights."""

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch_size, self.micro_batch) < 1 or not 0 < self.learning_rate < math.inf:
            raise UsageError(
                "a schedule needs epochs, batch_size and micro_batch of at least 1 and a learning rate > 0"
            )
        if min(self.seed, self.warmup_steps) < 0 or self.weight_decay < 0 or self.max_gradient_norm < 0:
            raise UsageError("seed, warm-up steps, weight decay and gradient norm must not be negative")
        if self.decay not in get_args(Decay):
            raise unknown_name("decay", self.decay, get_args(Decay))

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step, counted from 0, out of `steps`."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, steps - self.warmup_steps)
        match self.decay:
            case "linear":
                return self.learning_rate * (1 - done)
            case "cosine":
                return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
            case _:
                return self.learning_rate


def decisive(schedule: Schedule) -> dict[str, Any]:
    """The options that decide the outcome of a training: all but those that change its speed and memory only."""
    return {name: value for name, value in asdict(schedule).items() if name != "gradient_checkpointing"}


class StepLoss(NamedTuple):
    """What an objective returns for one micro-batch."""

    total: torch.Tensor
    """Scalar: the loss summed over what `Objective.count` counts, with gradient."""
    logs: Mapping[str, tuple[float, float]]
    """For each logged quantity its sum and what it is to be divided by; `loss` among them."""


class Objective(Protocol):
    """A loss."""

    def __call__(self, model: Any, batch: Batch) -> StepLoss:
        """The loss of one micro-batch."""
        ...

    def count(self, batch: Batch) -> int:
        """By how much the sum of a micro-batch's loss is to be divided: its trained tokens, or its instances."""
        ...


Validate = Callable[[int], Mapping[str, float]]
Example = Sequence[Encoded]
"""What is drawn and read together: one row, or all options of an instance."""


@dataclass
class History:
    """What happened in training."""

    epochs: list[dict[str, Any]] = field(default_factory=list)
    """Per epoch `epoch`, `train` and `validation`; epoch 0 is the state before the first step."""
    chosen: int = 0
    """The epoch whose weights were kept."""


def selected_tokens(batch: Batch, tokens: Tokens) -> torch.Tensor:
    """Which next-token predictions are trained, shape (rows, length - 1)."""
    chosen = batch.is_answer if tokens == "answer" else batch.attention_mask.bool()
    return chosen[:, 1:]


def trained_tokens(batch: Batch, tokens: Tokens) -> Trained:
    """The trained next-token predictions of `batch`."""
    from uphold.models.rules import Trained

    sequence, position = selected_tokens(batch, tokens).nonzero(as_tuple=True)
    return Trained(
        sequence=sequence,
        position=position,
        targets=batch.input_ids[sequence, position + 1],
        is_answer=batch.is_answer[sequence, position + 1],
        instance=batch.instance[sequence],
    )


def train(
    model: Any,
    rows: Sequence[Example],
    objective: Objective,
    schedule: Schedule,
    validate: Validate,
    folder: Path,
    *,
    key: str,
    what: str = "training",
    progress: Progress = silent,
) -> History:
    """Train the parameters of `model` that require gradients, and leave the chosen epoch's weights in it.

    Args:
        model: a PEFT model whose adapter alone is trainable.
        rows: the training instances, tokenised; mostly of one row each.
        objective: the loss of one micro-batch.
        schedule: how long and how fast.
        validate: measured before the first step and after every epoch; must give what `schedule.select` needs.
        folder: where the state is kept; a finished training is read from here instead of being repeated.
        key: hash of everything that decides the outcome; another key in `folder` is refused.
        what: what progress is reported as.
        progress: called after every step.

    Raises:
        EmptyError: no rows.
        UsageError: `folder` holds another training.
        ModelError: the loss is not finite.
        CorruptError: the saved state cannot be read.
    """
    if not rows:
        raise EmptyError("the train split is empty: there is nothing to train on")
    from uphold.models import processes
    from uphold.models.trainer import Trainer

    where = processes.current()
    return Trainer(model, rows, objective, schedule, validate, folder, key, what, progress, where).run()


def chosen_epoch(epochs: Sequence[Mapping[str, Any]], select: Select) -> int:
    """Which epoch of a history is kept; of equals the earliest.

    Epoch 0, the untouched start, is kept only while there is no other: a control that fell back to it would
    not be a control. `nfr` asks for the lowest validation NFR among the epochs whose validation accuracy is not
    below the start's by more than `NFR_TOLERANCE`; where there is none, for the most accurate epoch.
    """
    trained = list(epochs[1:]) or list(epochs)
    if select == "last":
        return int(trained[-1]["epoch"])

    def least(entries: Sequence[Mapping[str, Any]], name: str, sign: float) -> int:
        return int(min(entries, key=lambda entry: sign * entry["validation"][name])["epoch"])

    if select == "nfr":
        floor = epochs[0]["validation"]["accuracy"] - NFR_TOLERANCE
        accurate = [entry for entry in trained if entry["validation"]["accuracy"] >= floor]
        if accurate:
            return least(accurate, "nfr", 1)
    return least(trained, "loss", 1) if select == "loss" else least(trained, "accuracy", -1)
