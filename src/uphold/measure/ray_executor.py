"""Evaluating on a Ray cluster: parts of all jobs are spread over workers; this process alone writes the store."""

from __future__ import annotations

import logging
import os
import platform
import secrets
import signal
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from uphold.core.errors import ModelError, UsageError
from uphold.core.records import Record
from uphold.measure.answer import answer
from uphold.measure.crew import Crew, Queue, crew, model_bytes
from uphold.measure.executors import Answered, LocalExecutor, Unit
from uphold.measure.jobs import Job
from uphold.models.endpoint_reference import is_endpoint
from uphold.models.engine import Engine, Meter
from uphold.models.load import ModelLike, fingerprint_of, library_versions, numerics
from uphold.models.pool import ModelPool

TRIES = 3
"""How many workers may be lost on one unit, or while they start, before the run gives up."""
START_S = 300.0
"""How long a cluster may take to start the first worker."""
REACH_S = 5.0
"""How long an address may take to answer."""
IDENTITY = ("weights", "config", "tokenizer", "adapter")
"""What makes a model the same one on another machine."""


# ---- in the cluster ----


class Shipped(NamedTuple):
    """A job as workers get it."""

    job: Job
    model: dict[str, Any]
    """The fingerprint of its model on the machine that asks."""
    folder: str
    """What relative references are relative to."""


class Worker:
    """Lives in a process of the cluster; keeps its model and its job from one unit to the next."""

    def __init__(self, device_map: str | None) -> None:
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
            job, expected, folder = ray.get(shipped[0])
            if os.path.isdir(folder):
                os.chdir(folder)
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

    Workers stay, with their models, until `close` (`contextlib.closing`), or until the executor is forgotten.
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
        self._ray, self._connected_here = connected(address)
        self._crew = Crew(0, 0, 0)
        self._numerics: dict[str, str] = {}
        self._starting: dict[Future[Any], _Hand] = {}
        self._idle: list[_Hand] = []
        self._lost_starts = 0

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
            room = self._room(())
            while not self._idle:
                self._staff(room, 1, 0)
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
        here = [unit for unit in units if is_endpoint(jobs[unit.job].model)]
        yield from LocalExecutor().answers(jobs, here, heard)
        remote = [unit for unit in units if not is_endpoint(jobs[unit.job].model)]
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
                done, failure = self._collected(queue, busy, losses)
                if failure is not None:
                    yield from done
                    raise failure
            yield from done
        finally:
            self._dismiss([hand for hand, _ in busy.values()])

    def _ship(self, job: Job) -> Any:
        # Cut here, and remembered by the job: on a worker, other constants might cut other parts.
        assert job.parts
        try:
            return self._ray.put(Shipped(job, fingerprint_of(job.model), os.getcwd()))
        except TypeError as error:
            raise UsageError(
                f"the task '{job.task.name}' cannot be sent to other processes "
                f"({_line(error.__cause__ or error)}): take the local executor"
            ) from error

    def _hand_out(self, queue: Queue, shipped: Mapping[int, Any], busy: _Busy) -> None:
        while queue and self._idle:
            hand = self._idle.pop()
            unit = queue.take(
                hand.model, [*(one.model for one in self._idle), *(one.model for one, _ in busy.values())]
            )
            hand.model = queue.models[unit.job]
            busy[hand.actor.answer.remote([shipped[unit.job]], unit.part).future()] = (hand, unit)

    def _collected(self, queue: Queue, busy: _Busy, losses: Counter[Unit]) -> tuple[list[Answered], Exception | None]:
        """What has been answered, and what went wrong; a unit whose worker was lost is put back into the queue."""
        done: list[Answered] = []
        failure: Exception | None = None
        for future in self._ended(busy):
            hand, unit = busy.pop(future)
            try:
                records, tokens = future.result()
            except self._ray.exceptions.RayTaskError as error:
                self._idle.append(hand)
                failure = error.cause or error
            except self._ray.exceptions.RayError as error:
                # Perhaps it is only out of reach, or its answer is lost: another one takes its place.
                self._dismiss([hand])
                losses[unit] += 1
                queue.give_back(unit)
                if losses[unit] == TRIES:
                    failure = ModelError(
                        f"a worker was lost {TRIES} times on the same part: it may need more memory than there is; "
                        "what was finished is kept"
                    )
                    failure.__cause__ = error
            else:
                self._idle.append(hand)
                done.append(Answered(unit, records, tokens))
        return done, failure

    def _ended(self, busy: _Busy) -> list[Future[Any]]:
        """Calls of `busy` that have ended, once there are some or a worker has started."""
        # Not with `ray.wait`, which hears of Ctrl-C only when it is over.
        ended, _ = wait([*self._starting, *busy], None if busy else START_S, FIRST_COMPLETED)
        if not ended:
            raise UsageError(
                f"the Ray cluster started no worker in {START_S:.0f} s: 'ray status' says what it is busy with"
            )
        for future in ended & self._starting.keys():
            self._join(future)
        return [future for future in ended if future in busy]

    def _join(self, future: Future[Any]) -> None:
        """Take on a worker that has started.

        Raises:
            UsageError: it cannot start, or computes in another way than this process or other workers.
        """
        hand = self._starting.pop(future)
        try:
            facts = future.result()
        except self._ray.exceptions.RayError as error:
            self._lost_starts += 1
            if self._lost_starts < TRIES and not getattr(error, "actor_init_failed", True):
                return
            raise UsageError(
                f"a worker of the Ray cluster cannot start ({_line(error, -1)}): install the same packages on every "
                "machine"
            ) from error
        self._lost_starts = 0
        ours = library_versions()
        for name, theirs in facts["versions"].items():
            if theirs != ours.get(name):
                raise UsageError(
                    f"a worker has {name} {theirs}, this process {ours.get(name)}: install the same everywhere"
                )
        if self._numerics and facts["numerics"] != self._numerics:
            raise UsageError(
                f"some workers compute with {', '.join(self._numerics.values())}, some with "
                f"{', '.join(facts['numerics'].values())}: their numbers differ, use one kind of machine"
            )
        self._numerics = facts["numerics"]
        self._idle.append(hand)

    def _room(self, jobs: Sequence[Job]) -> Crew:
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        return crew(nodes, self._device_map is not None, max((model_bytes(job.model) for job in jobs), default=0))

    def _staff(self, room: Crew, wanted: int, busy: int) -> None:
        """Have as many workers as there is room for, but no more than are wanted; `busy` of them are at work."""
        if (room.cpus, room.gpus) != (self._crew.cpus, self._crew.gpus):
            self._dismiss([*self._idle, *self._starting.values()])
            self._idle, self._starting = [], {}
        self._crew = room
        # Not by `max_restarts`: a worker that Ray restarts refuses what it is asked meanwhile.
        remote = self._ray.remote(num_cpus=room.cpus, num_gpus=room.gpus, max_restarts=0)(Worker)
        for _ in range(min(room.workers, wanted) - len(self._idle) - len(self._starting) - busy):
            actor = remote.remote(self._device_map)
            self._starting[actor.facts.remote().future()] = _Hand(actor)

    def _dismiss(self, hands: Sequence[_Hand]) -> None:
        if self._ray.is_initialized():
            for hand in hands:
                self._ray.kill(hand.actor)


def connected(address: str | None) -> tuple[Any, bool]:
    """The module `ray`, connected, and whether it was connected here."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray warns where it is not set
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if ray.is_initialized():
        return ray, False
    where = address or os.environ.get("RAY_ADDRESS") or "local"
    _check_reachable(where)
    if where == "local":
        # Without one, Ray leaves a secret in the home folder, and from then on asks for it elsewhere.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    terminate = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=where, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        what = "no Ray cluster can be started here" if where == "local" else f"no Ray cluster at '{where}'"
        raise UsageError(f"{what}: {_line(error)}") from error
    finally:
        # Ray takes over how this process ends.
        if terminate is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, terminate)
    # Ray prints what it hears from its own processes to stdout, where our result goes.
    ray._private.worker._worker_logs_enabled = False
    return ray, True


def _check_reachable(address: str) -> None:
    """Refuse at once what Ray would try for minutes."""
    if address in ("local", "auto"):
        return
    if "://" in address:
        raise UsageError(
            f"'{address}': expected host:port of a Ray cluster that this machine belongs to; "
            "'ray job submit' runs the same command from elsewhere"
        )
    try:
        place = urlsplit(f"//{address}")
        socket.create_connection((place.hostname or "", place.port or 0), REACH_S).close()
    except (OSError, ValueError) as error:
        raise UsageError(
            f"no Ray cluster at '{address}' ({_line(error)}): expected host:port, as 'ray start' shows it"
        ) from error


def _line(error: BaseException, which: int = 0) -> str:
    """One of the lines of a message; libraries write many."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[which] if lines else type(error).__name__
