"""Models on tasks: from instances to stored runs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from uphold.core.progress import Progress, silent
from uphold.core.runs import Run, RunStore, RunWriter, default_store, run_key
from uphold.measure.executors import Answered, Executor, LocalExecutor, Unit
from uphold.measure.jobs import AS_THE_DEVICE_LIKES, Batching, Job, instances_in
from uphold.models.load import ModelLike, load
from uphold.tasks.base import Split, Task
from uphold.tasks.load import load_task


@dataclass
class Tally:
    """What evaluating took."""

    instances: int = 0
    """Instances asked."""
    stored: int = 0
    """Instances whose answers were in the store already."""
    tokens: int = 0
    """Tokens that went through models, padding included."""
    requests: int = 0
    """HTTP requests answered by endpoints."""
    cost: float | None = None
    """Currency units, where an endpoint has prices."""
    seconds: float = 0.0
    """Spent on instances asked."""

    def __str__(self) -> str:
        parts = [f"{self.instances:,} instances asked", f"{self.stored:,} found in the store"]
        if self.tokens:
            parts.append(f"{self.tokens:,} tokens in {self.seconds:.1f} s ({self.rate:,.0f} tokens/s)")
        if self.requests:
            parts.append(f"{self.requests:,} requests")
        if self.cost is not None:
            parts.append(f"cost {self.cost:.4f}")
        return ", ".join(parts)

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds if self.seconds else 0.0


def evaluate(
    model: ModelLike,
    task: str | Path | Task,
    *,
    split: Split = "test",
    store: RunStore | None = None,
    batching: Batching = AS_THE_DEVICE_LIKES,
    seed: int = 0,
    executor: Executor | None = None,
    progress: Progress = silent,
    what: str = "",
    tally: Tally | None = None,
) -> Run:
    """The run of `model` on one split of `task`: from the store, taken up where it stopped, or made anew.

    Args:
        model: a reference, a loaded model, or an endpoint; a reference is loaded only if something is left to do.
        task: what to ask (see `uphold.load_task`).
        split: which instances.
        store: where runs are kept (`uphold.core.runs.default_store`).
        batching: how instances share forward passes.
        seed: of sampled decoding; without effect on greedy decoding and on choices.
        executor: who does the work; this process by default.
        progress: called as instances are answered.
        what: what progress is reported as.
        tally: where instances, tokens and time are added up.

    Raises:
        EmptyError: the split has no instances.
        ModelError: the model cannot be loaded, or gives NaN.
        StorageError, CorruptError: the store cannot be written or read.
    """
    job = Job(model, load_task(task, progress), split, batching, seed, what)
    return evaluate_all([job], store=store, executor=executor, progress=progress, tally=tally)[0]


def evaluate_all(
    jobs: Sequence[Job],
    *,
    store: RunStore | None = None,
    executor: Executor | None = None,
    progress: Progress = silent,
    tally: Tally | None = None,
) -> list[Run]:
    """The runs of `jobs`, in their order; equal jobs are done once. See `evaluate`.

    A process that finds another one at work on the same run waits for it and takes its result.
    """
    keep, work, total = store or default_store(), executor or LocalExecutor(), tally or Tally()
    # A model in memory is hashed when it is loaded; passing it on as it came would hash it at every use.
    jobs = [job if isinstance(job.model, str | Path) else replace(job, model=load(job.model)) for job in jobs]
    fingerprints = [job.fingerprint(work.numerics()) for job in jobs]
    makings: dict[str, _Making] = {}
    for job, fingerprint in zip(jobs, fingerprints, strict=True):
        key = run_key(fingerprint)
        if key not in makings:
            makings[key] = _Making(job, keep.writer(fingerprint), keep.find(fingerprint))
    for making in makings.values():
        if making.run is not None:
            total.stored += making.run.count
            progress(making.job.label(), making.run.count, making.run.count, "stored")
    pending = [making for making in makings.values() if making.run is None]
    for wave in [pending] if work.side_by_side else [[making] for making in pending]:
        _Wave(wave, keep, work, progress, total).work()
    runs = []
    for fingerprint in fingerprints:
        run = makings[run_key(fingerprint)].run
        assert run is not None
        # Equal content may have been evaluated under another name; this is the one that was asked for.
        runs.append(Run(run.path, fingerprint, run.count, run.sha256))
    return runs


@dataclass
class _Making:
    """A run in the making."""

    job: Job
    writer: RunWriter
    run: Run | None = None
    missing: set[int] = field(default_factory=set)
    """Parts that are not stored."""

    @property
    def done(self) -> int:
        """Instances that are stored."""
        return instances_in([part for index, part in enumerate(self.job.parts) if index not in self.missing])


class _Wave:
    """Runs that are made side by side, each locked against other processes."""

    def __init__(
        self, makings: Sequence[_Making], store: RunStore, executor: Executor, progress: Progress, tally: Tally
    ) -> None:
        self.makings, self.store, self.executor, self.progress, self.tally = makings, store, executor, progress, tally

    def work(self) -> None:
        """Make the runs."""
        if not self.makings:
            return
        with ExitStack() as locks:
            # One order for all processes, so that no two of them wait for each other.
            for making in sorted(self.makings, key=lambda making: making.writer.folder.name):
                locks.enter_context(self.store.claim(making.writer.fingerprint, lambda own=making: self._wait(own)))  # type: ignore[misc]
                self._open(making)
            self._answer()

    def _wait(self, making: _Making) -> None:
        total = instances_in(making.job.parts)
        self.progress(making.job.label(), 0, total, "another process makes this run; waiting for it")

    def _open(self, making: _Making) -> None:
        making.run = self.store.find(making.writer.fingerprint)
        if making.run is not None:
            self.tally.stored += making.run.count
            self.progress(making.job.label(), making.run.count, making.run.count, "stored")
            return
        parts = making.job.parts
        making.missing = {index for index in range(len(parts)) if not making.writer.has(index)}
        self.tally.stored += making.done
        if not making.missing:
            making.run = making.writer.finish(len(parts))

    def _answer(self) -> None:
        jobs = [making.job for making in self.makings]
        units = [
            Unit(index, part)
            for index, making in enumerate(self.makings)
            if making.run is None
            for part in sorted(making.missing)
        ]
        if not units:
            return
        started, before = time.monotonic(), self.tally.seconds
        for index in {unit.job for unit in units}:
            self._report(self.makings[index])

        def heard(job: int, tokens: int) -> None:
            self.tally.seconds = time.monotonic() - started + before
            self._report(self.makings[job], (self.tally.tokens + tokens) / self.tally.seconds)

        for answered in self.executor.answers(jobs, units, heard):
            self.tally.seconds = time.monotonic() - started + before
            self._store(answered)

    def _store(self, answered: Answered) -> None:
        making = self.makings[answered.unit.job]
        making.writer.write(answered.unit.part, answered.records)
        making.missing.discard(answered.unit.part)
        self.tally.instances += len(answered.records)
        self.tally.tokens += answered.tokens
        self.tally.requests += answered.requests
        if answered.cost is not None:
            self.tally.cost = (self.tally.cost or 0.0) + answered.cost
        if not making.missing:
            making.run = making.writer.finish(len(making.job.parts))
        self._report(making, self.tally.rate)

    def _report(self, making: _Making, rate: float = 0.0) -> None:
        total = instances_in(making.job.parts)
        note = f"{rate:,.0f} tokens/s" if rate >= 1 else ""
        self.progress(making.job.label(), making.done, total, note)
