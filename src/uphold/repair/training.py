"""What adapting and repairing share: rows to train on, and what is measured after every epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from uphold.core.errors import UsageError, unknown_name
from uphold.core.records import Record
from uphold.models.encode import Encoded, Encoder, collate
from uphold.models.load import Loaded
from uphold.models.train import Objective, Schedule, Select
from uphold.tasks.base import Instance, Split, Task, required_instances


@dataclass(frozen=True)
class AdapterConfig(Schedule):
    """A schedule and the shape of a LoRA adapter. The defaults are those of MUSCLE (Table 8)."""

    rank: int = 128
    """LoRA rank, on all linear layers but the output head."""
    alpha: float = 256.0
    """LoRA scale: updates are multiplied by alpha / rank."""
    dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank < 1 or not 0 < self.alpha < math.inf or not 0 <= self.dropout < 1:
            raise UsageError("an adapter needs rank >= 1, alpha > 0 and dropout in [0, 1)")

    def student(self, new: Loaded) -> Any:
        """Where training starts: a PEFT model of which only the adapter requires gradients, here a copy of `new`."""
        from uphold.models.adapter import trainable_copy

        return trainable_copy(new, self.rank, self.alpha, self.dropout, self.seed)


@dataclass(frozen=True)
class DistillConfig(AdapterConfig):
    """Options that every repair by training has."""

    select: Select = "nfr"
    """Which epoch is kept, by validation: the one with the lowest NFR among those about as accurate as the start, the
    most accurate, the one with the lowest loss (the method's own, not cross-entropy), or the last."""
    temperature: float = 2.0
    """T of the softmaxes of teachers and student."""
    controls: bool = True
    """Train the two controls too: the same steps with cross-entropy only, and with the new teacher only."""
    sites: tuple[str, ...] = ()
    """Train the adapter at these sites only, such as `mlp.2` and `attention.0` (a head stands for the attention of its
    block); everywhere where none is named. `uphold explain flips` finds some."""
    force: bool = False
    """Go on although the new model is worse than the old one on validation."""
    teacher_cache: Literal["auto", "always", "never"] = "auto"
    """Whether teachers are read once and then from disk: always, never, or where that is faster, which is measured."""
    cache_top: int = 0
    """What is kept of a teacher: 0 for its hidden states, which lose nothing, or so many of its likeliest tokens with
    the mass of the rest (see the page on training for the error)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.teacher_cache not in ("auto", "always", "never"):
            raise unknown_name("teacher cache", self.teacher_cache, ("auto", "always", "never"))
        if self.cache_top < 0:
            raise UsageError(f"cache_top must be 0 or a number of tokens, not {self.cache_top}")
        if not 0 < self.temperature < math.inf:
            raise UsageError(f"temperature must be above 0 and finite, not {self.temperature}")


def training_rows(loaded: Loaded, task: Task, split: Split) -> list[Encoded]:
    """The instances of a split with their gold answers, tokenised and numbered as the split orders them."""
    instances = required_instances(task, split)
    return answer_rows(loaded, task, instances, [instance.target for instance in instances])


def answer_rows(loaded: Loaded, task: Task, instances: Sequence[Instance], answers: Sequence[str]) -> list[Encoded]:
    """Instances with an answer for each, tokenised and numbered from 0; generated answers end with end-of-text."""
    rows = Encoder(loaded.tokenizer).pairs(
        [(instance.prompt, task.delimiter + text) for instance, text in zip(instances, answers, strict=True)]
    )
    end = loaded.tokenizer.eos_token_id
    last = [] if task.kind != "generate" or end is None else [int(end)]
    return [Encoded(row.prompt, [*row.answer, *last], index) for index, row in enumerate(rows)]


@dataclass
class Validation:
    """Measures a model in training on the validation split."""

    task: Task
    tokenizer_of: Loaded
    """Whose tokenizer the trained model uses."""
    schedule: Schedule
    objective: Objective
    old_score: Mapping[str, float] | None = None
    """By instance id, the old model's score; None where there is no old model to compare with."""

    def __post_init__(self) -> None:
        self._instances: Sequence[Instance] = required_instances(self.task, "validation")
        self._rows = training_rows(self.tokenizer_of, self.task, "validation")
        self._encoder = Encoder(self.tokenizer_of.tokenizer)

    def measure(self, model: Any) -> dict[str, float]:
        """`accuracy` (mean score); `nfr` where there is an old model; `loss` where epochs are chosen by it."""
        from uphold.measure.answer import answer
        from uphold.measure.pairs import TIE
        from uphold.models.engine import LocalEngine

        engine = LocalEngine(self.tokenizer_of._replace(model=model), encoder=self._encoder)
        records = answer(engine, self.task, self._instances)
        values = {"accuracy": mean_score(records)}
        if self.schedule.select == "loss":
            values["loss"] = self._loss(model)
        if self.old_score is not None:
            worse = sum((record.score or 0.0) < self.old_score[record.id] - TIE for record in records)
            values["nfr"] = worse / len(records)
        return values

    def _loss(self, model: Any) -> float:
        import torch

        total, count = 0.0, 0
        with torch.inference_mode():
            for start in range(0, len(self._rows), self.schedule.micro_batch):
                batch = collate(self._rows[start : start + self.schedule.micro_batch]).to(model.device)
                total += float(self.objective(model, batch).total)
                count += self.objective.count(batch)
        return total / max(1, count)


def mean_score(records: Sequence[Record]) -> float:
    """The mean score of the scored records.

    Raises:
        UsageError: none is scored, so no checkpoint can be chosen.
    """
    scores = [record.score for record in records if record.score is not None]
    if not scores:
        raise UsageError("the task's answers have no score: nothing to choose a checkpoint by")
    return sum(scores) / len(scores)
