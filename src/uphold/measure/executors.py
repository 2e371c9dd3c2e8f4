"""Who does the work: this process, or a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple, Protocol

from uphold.core.errors import unknown_name
from uphold.core.records import Record
from uphold.measure.answer import answer
from uphold.measure.jobs import Job
from uphold.models.engine import Engine, Meter
from uphold.models.pool import ModelPool

NAMES = ("local", "ray")


class Unit(NamedTuple):
    """A part of a job: the smallest piece of work, and of what is stored."""

    job: int
    part: int


class Answered(NamedTuple):
    """A unit that is done, and what it took."""

    unit: Unit
    records: list[Record]
    tokens: int
    requests: int = 0
    cost: float | None = None


class Executor(Protocol):
    """Answers units of work; what is done is stored by whoever asks, so executors may change between runs."""

    @property
    def side_by_side(self) -> bool:
        """Whether units of several jobs are worked on at once."""
        ...

    def numerics(self) -> Mapping[str, str] | None:
        """Device, dtype and attention kernel of the workers; None for this process."""
        ...

    def answers(
        self, jobs: Sequence[Job], units: Sequence[Unit], heard: Callable[[int, int], None]
    ) -> Iterator[Answered]:
        """Answer `units`, in any order; `heard` is called with a job and the tokens so far of its unit in work."""
        ...


class LocalExecutor:
    """Works in this process, one unit after the other."""

    side_by_side = False

    def __init__(self, pool: ModelPool | None = None) -> None:
        self.pool = pool or ModelPool()

    def numerics(self) -> None:
        """What this process loads with."""

    def answers(
        self, jobs: Sequence[Job], units: Sequence[Unit], heard: Callable[[int, int], None]
    ) -> Iterator[Answered]:
        """Answer `units` in their order; a model is loaded when its first unit comes."""
        engine: Engine | None = None
        current = -1
        meter = Meter()
        for unit in units:
            job = jobs[unit.job]
            if engine is None or unit.job != current:
                engine = None  # or its model could not be released before the next one is loaded
                engine, current = self.pool.engine(job.model, job.batching.tokens, meter), unit.job
            before = (meter.tokens, meter.requests, meter.cost or 0.0)
            meter.listener = partial(_tell, heard, unit.job, meter, meter.tokens)
            records = answer(engine, job.task, job.parts[unit.part], job.seed)
            cost = None if meter.cost is None else meter.cost - before[2]
            yield Answered(unit, records, meter.tokens - before[0], meter.requests - before[1], cost)


def _tell(heard: Callable[[int, int], None], job: int, meter: Meter, start: int) -> None:
    heard(job, meter.tokens - start)


def executor(name: str, device_map: str | None = None, address: str | None = None) -> Executor:
    """The executor called `name`.

    Args:
        name: `local` or `ray`.
        device_map: how a model is spread over several devices; see `ModelPool`.
        address: of a Ray cluster; None starts one on this machine, or takes the one in `$RAY_ADDRESS`.

    Raises:
        UsageError: there is none of this name; the message suggests the nearest one.
    """
    if name == "local":
        return LocalExecutor(ModelPool(device_map))
    if name == "ray":
        from uphold.measure.ray_executor import RayExecutor

        return RayExecutor(device_map, address)
    raise unknown_name("executor", name, NAMES)
