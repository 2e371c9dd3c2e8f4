"""Evaluating on a Ray cluster: parts of all jobs are spread over workers; this process alone writes the store."""

from __future__ import annotations

import logging
import os
import platform
import signal
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain
from types import TracebackType
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from uphold.core.errors import ModelError, UpholdError, UsageError
from uphold.core.records import Record
from uphold.measure.answer import answer
from uphold.measure.executors import Answered, LocalExecutor, Unit
from uphold.measure.jobs import Job
from uphold.models.endpoint_reference import is_endpoint
from uphold.models.engine import Engine, Meter
from uphold.models.load import ModelLike, fingerprint_of, library_versions, numerics
from uphold.models.pool import ModelPool
from uphold.models.reference import find_model

TRIES = 3
"""How many workers may be lost on one unit, or while they start, before the run gives up."""
START_S = 300.0
"""How long a cluster may take to start the first worker."""
REACH_S = 5.0
"""How long an address may take to answer."""
WORKER_BYTES = 1 << 30
"""What a worker on a CPU needs beside its model: libraries, and a batch on its way."""
IDENTITY = ("weights", "config", "tokenizer", "adapter")
"""What makes a model the same one on another machine."""


# ---- in the cluster ----


class Shipped(NamedTuple):
    """A job as workers get it."""

    job: Job
    model: dict[str, Any]
    """The fingerprint of its model on the machine that asks."""


class Worker:
    """Lives in a process of the cluster; keeps its model and its job from one unit to the next."""

    def __init__(self, device_map: str | None, threads: int, folder: str) -> None:
        """Prepare.

        Args:
            device_map: see `ModelPool`.
            threads: of a forward pass on a CPU; 0 leaves it to torch.
            folder: what relative references are relative to, where it exists here.
        """
        import torch

        if threads:
            torch.set_num_threads(threads)
        if os.path.isdir(folder):
            os.chdir(folder)
        self._pool = ModelPool(device_map)
        self._meter = Meter()
        self._at: tuple[str, Job, Engine] | None = None

    def facts(self) -> dict[str, dict[str, str]]:
        """What numbers depend on here."""
        return {"versions": library_versions(), "numerics": numerics()}

    def answer(self, shipped: list[Any], part: int) -> tuple[list[Record], int]:
        """Records of one part, and the tokens that they took.

        Args:
            shipped: the reference of a `Shipped`, in a list: by itself Ray would fetch and unpack it at every call.
            part: which one.

        Raises:
            ModelError: what the model's reference leads to on this machine is another model.
        """
        key = shipped[0].hex()
        if self._at is None or self._at[0] != key:
            import ray

            self._at = None
            job, expected = ray.get(shipped[0])
            check_same_model(job.model, expected, fingerprint_of(job.model))
            self._at = (key, job, self._pool.engine(job.model, job.batching.tokens, self._meter))
        _, job, engine = self._at
        before = self._meter.tokens
        return answer(engine, job.task, job.parts[part], job.seed), self._meter.tokens - before


def check_same_model(reference: ModelLike, expected: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Refuse a reference that leads to one model where the run was asked for, and to another one on a worker.

    Raises:
        ModelError: the fingerprints `expected` and `found` differ.
    """
    differing = [name for name in IDENTITY if expected.get(name) != found.get(name)]
    if differing:
        raise ModelError(
            f"'{reference}' is another model on {platform.node()} than here (its {differing[0]} differs): "
            "copy it to the same place on every machine, or name a folder that all of them share"
        )


# ---- who does what: plain arithmetic ----


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
    need = WORKER_BYTES + model_bytes
    # Ray's `memory` is what is left for work; where it says nothing, cores alone decide.
    rooms = [(int(node.get("CPU", 0)), max(1, int(node.get("memory", need * 1e6) // need))) for node in nodes]
    cores = max((-(-cpus // fit) for cpus, fit in rooms), default=1) or 1
    return Crew(max(1, sum(cpus // cores for cpus, _ in rooms)), cores, 0)


def model_bytes(model: ModelLike) -> int:
    """About what a model takes in memory as float32, at most; 0 for an endpoint."""
    if is_endpoint(model):
        return 0
    base = find_model(model).base
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
        self._models = models
        self._waiting = list(units)

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self, holding: str, others: Sequence[str]) -> Unit:
        """The next unit for a worker: of the model that it holds, else of the one with the most units per worker.

        Args:
            holding: the model in the worker's memory.
            others: the models of the other workers.
        """
        left = Counter(self._models[unit.job] for unit in self._waiting)
        model = holding if holding in left else max(left, key=lambda name: left[name] / (1 + others.count(name)))
        unit = next(unit for unit in self._waiting if self._models[unit.job] == model)
        self._waiting.remove(unit)
        return unit

    def give_back(self, unit: Unit) -> None:
        """Put a unit in front."""
        self._waiting.insert(0, unit)


# ---- in the process that asks ----


@dataclass(eq=False)
class _Hand:
    """A worker as seen from here."""

    actor: Any
    model: str = ""
    """The model in its memory."""


_Busy = dict["Future[Any]", tuple[_Hand, Unit]]


class RayExecutor:
    """Works on a Ray cluster; see `crew` for how many workers there are.

    Workers stay, with their models, until `close`; at the latest they go with the last reference to the executor.
    """

    side_by_side = True

    def __init__(self, device_map: str | None = None, address: str | None = None) -> None:
        """Connect.

        Args:
            device_map: how a model is spread over the GPUs of a worker; with one, a worker takes all GPUs of a machine.
            address: `host:port` of the cluster; None takes the one in `$RAY_ADDRESS`, or starts one on this machine. A
                connection that this process has already is used as it is.

        Raises:
            UsageError: Ray is not installed, or there is no cluster at the address.
        """
        if find_spec("ray") is None:
            raise UsageError("the ray executor needs the package ray: pip install 'uphold[ray]'")
        self._device_map = device_map
        self._ray, self._connected_here = _connected(address)
        self._crew = Crew(0, 0, 0)
        self._numerics: dict[str, str] = {}
        self._starting: dict[Future[Any], _Hand] = {}
        self._idle: list[_Hand] = []
        self._lost_starts = 0

    def __enter__(self) -> RayExecutor:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let the workers go, and the connection, and with it a cluster that was started for this executor."""
        self._dismiss([*self._idle, *self._starting.values()])
        self._idle, self._starting = [], {}
        if self._connected_here:
            self._ray.shutdown()

    def numerics(self) -> Mapping[str, str]:
        """Device, dtype and attention kernel of the workers.

        Raises:
            UsageError: no worker starts, or one has other library versions than this process.
        """
        if not self._numerics:
            self._staff(self._room(()), 1, 0)
            while not self._idle:
                self._ended({})
        return self._numerics

    def answers(
        self, jobs: Sequence[Job], units: Sequence[Unit], heard: Callable[[int, int], None]
    ) -> Iterator[Answered]:
        """Answer `units`; each worker stays with a model as long as there are units of it.

        `heard` is not called: workers report when a unit is done. Endpoints are asked from this process, which has
        their keys, and whose requests are counted.

        Raises:
            UsageError: a job's model is in this process's memory, or its task cannot be sent to other processes.
            ModelError: a unit could not be answered, also not by other workers.
        """
        for job in jobs:
            if not isinstance(job.model, str | os.PathLike):
                raise UsageError(
                    f"the ray executor takes model references, and '{fingerprint_of(job.model)['name']}' is loaded "
                    "in this process: save it and name its folder, or take the local executor"
                )
        remote = [unit for unit in units if not is_endpoint(jobs[unit.job].model)]
        yield from LocalExecutor().answers(jobs, [unit for unit in units if unit not in set(remote)], heard)
        if not remote:
            return
        self.numerics()
        queue = Queue([str(job.model) for job in jobs], remote)
        shipped = {index: self._ship(jobs[index]) for index in sorted({unit.job for unit in remote})}
        room = self._room([jobs[index] for index in shipped])
        busy: _Busy = {}
        losses: Counter[Unit] = Counter()
        done: list[Answered] = []
        try:
            while queue or busy:
                self._staff(room, len(queue) + len(busy), len(busy))
                self._hand_out(queue, shipped, busy)
                # The workers are busy again while these are stored.
                yield from done
                done = self._collected(queue, busy, losses)
            yield from done
        finally:
            self._dismiss([hand for hand, _ in busy.values()])

    def _ship(self, job: Job) -> Any:
        try:
            return self._ray.put(Shipped(job, fingerprint_of(job.model)))
        except TypeError as error:
            raise UsageError(
                f"the task '{job.task.name}' cannot be sent to other processes ({_first_line(error)}): "
                "take the local executor"
            ) from error

    def _hand_out(self, queue: Queue, shipped: Mapping[int, Any], busy: _Busy) -> None:
        while queue and self._idle:
            # Those first that can go on with their model.
            hand = self._idle.pop()
            others = [other.model for other in chain(self._idle, (hand for hand, _ in busy.values()))]
            unit = queue.take(hand.model, others)
            busy[hand.actor.answer.remote([shipped[unit.job]], unit.part).future()] = (hand, unit)

    def _collected(self, queue: Queue, busy: _Busy, losses: Counter[Unit]) -> list[Answered]:
        return []

    def _ended(self, busy: _Busy) -> list[Future[Any]]:
        return []

    def _staff(self, room: Crew, wanted: int, busy: int) -> None: ...

    def _room(self, jobs: Sequence[Job]) -> Crew: ...

    def _dismiss(self, hands: Sequence[_Hand]) -> None: ...
