"""Small trainings of a tiny model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from uphold.models.adapter import fresh_adapter
from uphold.models.encode import Encoded, Encoder, collate
from uphold.models.fingerprint import module_fingerprint
from uphold.models.load import load
from uphold.models.objective import cross_entropy
from uphold.models.train import History, Schedule, StepLoss, train

SCHEDULE = Schedule(epochs=2, learning_rate=1e-2, warmup_steps=2, batch_size=4, micro_batch=4, select="loss")
PLAIN = cross_entropy(SCHEDULE.tokens)
TEXTS = [("a=", "1"), ("b=", "2"), ("c=", "3"), ("d=", "4"), ("ab=", "12"), ("cd=", "34"), ("dcba=", "4321")]


@dataclass
class Doing:
    """Cross-entropy after something else has been done."""

    first: Callable[[], None]

    def __call__(self, model: Any, batch: Any) -> StepLoss:
        self.first()
        return PLAIN(model, batch)

    def count(self, batch: Any) -> int:
        return PLAIN.count(batch)


@dataclass
class Constant:
    """A loss that is always the same."""

    loss: StepLoss

    def __call__(self, model: Any, batch: Any) -> StepLoss:
        return self.loss

    def count(self, batch: Any) -> int:
        return 1


def rows(model: Path) -> list[Encoded]:
    return Encoder(load(model).tokenizer).pairs(TEXTS)


def run(
    model_path: Path, folder: Path, schedule: Schedule = SCHEDULE, key: str = "key", **changes: Any
) -> tuple[Any, History]:
    model = fresh_adapter(load(model_path), 4, 8, changes.pop("dropout", 0.0), seed=0)
    data = rows(model_path)

    def validate(epoch: int) -> Mapping[str, float]:
        with torch.inference_mode():
            return {"loss": float(PLAIN(model, collate(data)).total), "accuracy": 0.5}

    examples = changes.get("examples", [(row,) for row in data])
    history = train(model, examples, changes.get("objective", PLAIN), schedule, validate, folder, key=key)
    return model, history


def weights(model: Any) -> str:
    return str(module_fingerprint(model, "x")["weights"])
