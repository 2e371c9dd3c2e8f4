"""Who does what on a cluster: plain arithmetic, without the cluster."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from uphold.measure.executors import Unit
from uphold.models.endpoint_reference import is_endpoint
from uphold.models.load import ModelLike
from uphold.models.reference import find_model

WORKER_BYTES = 1 << 30
"""What a worker on a CPU needs beside its model: libraries, and a batch on its way."""


class Crew(NamedTuple):
    """How many workers a cluster has room for, and what each of them takes."""

    workers: int
    cpus: int
    gpus: int


def crew(nodes: Sequence[Mapping[str, float]], spread: bool = False, model_bytes: int = 0) -> Crew:
    """The workers for a cluster: one per GPU; without GPUs one per CPU core, or fewer where memory is short.

    Small models gain more from another process than from another thread; large ones do not fit twice, so that their
    worker takes the cores of those that do not fit.

    Args:
        nodes: the resources of each machine, as Ray counts them: `CPU`, `GPU`, and `memory` in bytes.
        spread: a model is spread over all GPUs of a machine, as many as the machine with the fewest has.
        model_bytes: of the largest model in a worker's memory.
    """
    gpus = [int(node.get("GPU", 0)) for node in nodes]
    if any(gpus):
        each = min(count for count in gpus if count) if spread else 1
        return Crew(sum(count // each for count in gpus), 0, each)
    cpus = [int(node.get("CPU", 0)) for node in nodes]
    fitting = [max(1, int(node.get("memory", 0) // (WORKER_BYTES + model_bytes))) for node in nodes]
    cores = max([1, *(math.ceil(count / fits) for count, fits in zip(cpus, fitting, strict=True))])
    return Crew(max(1, sum(count // cores for count in cpus)), cores, 0)


def model_bytes(model: ModelLike) -> int:
    """About what a model takes in memory as float32, at most; 0 for an endpoint."""
    if is_endpoint(model):
        return 0
    files = find_model(model)
    parts = [files] if files.pair is None else [files.pair.old, files.pair.new]
    return sum(_base_bytes(part.base) for part in parts)


def _base_bytes(base: Path) -> int:
    if base.is_file():
        return 8 * base.stat().st_size
    return 2 * sum(path.stat().st_size for path in base.glob("*.safetensors"))


class Queue:
    """Units that wait for a worker."""

    def __init__(self, models: Sequence[str], units: Sequence[Unit]) -> None:
        """Line up.

        Args:
            models: of each job.
            units: in the order of their jobs.
        """
        self.models = models
        self._waiting = list(units)

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self, holding: str, others: Sequence[str]) -> Unit:
        """The next unit for a worker: of the model that it holds, else of the one with the most units per worker.

        Args:
            holding: the model in the worker's memory.
            others: the models of the other workers.
        """
        left = Counter(self.models[unit.job] for unit in self._waiting)
        model = holding if holding in left else max(left, key=lambda name: left[name] / (1 + others.count(name)))
        unit = next(unit for unit in self._waiting if self.models[unit.job] == model)
        self._waiting.remove(unit)
        return unit

    def give_back(self, unit: Unit) -> None:
        """Put a unit in front."""
        self._waiting.insert(0, unit)
