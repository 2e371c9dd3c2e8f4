"""Stop as soon as the gate is decided: an anytime-valid paired test on instances in random order.

Each limit has two test martingales, one against "the limit is broken" and one against "the limit is kept"
(`stats.EProcess`). By Ville's inequality each rejects wrongly with probability at most alpha however often one looks,
so that looking after every chunk and stopping at will costs nothing (Waudby-Smith and Ramdas, JRSS B 2024). The update
passes when every limit is shown to be kept; it fails when one is shown to be broken at alpha over the number of limits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from uphold.core.errors import DataError, NotComparableError, UsageError
from uphold.core.progress import Progress, silent
from uphold.core.records import Record
from uphold.core.runs import Run, RunStore, default_store
from uphold.measure.comparison import Comparison, compare_runs
from uphold.measure.gate import GateResult, gate
from uphold.measure.stored import stored_runs
from uphold.measure.watch import Watch, watches

if TYPE_CHECKING:
    from uphold.core.policy import Policy
    from uphold.measure.evaluate import Tally
    from uphold.measure.executors import Executor
    from uphold.measure.jobs import Batching, Job
    from uphold.models.load import ModelLike
    from uphold.tasks.base import Instance, Split, Task

CHUNK = 64
"""Instances that are evaluated between two looks at the gate."""


def compare_until_decided(
    old: ModelLike | Run,
    new: ModelLike | Run,
    task: str | Path | Task,
    policy: Policy,
    *,
    split: Split = "test",
    store: RunStore | None = None,
    batching: Batching | None = None,
    seed: int = 0,
    chunk: int = CHUNK,
    executor: Executor | None = None,
    allow_inconclusive: bool = False,
    progress: Progress = silent,
    tally: Tally | None = None,
) -> tuple[Comparison, GateResult]:
    """Evaluate two versions on instances in random order until `policy` is decided, or there are no more.

    Must-keep instances are asked first; for the other limits they count at their place in the random order. Both
    models stay in memory. What a full run in the store holds already is not asked again.

    Args:
        old: the version that users have: a model, or a stored run.
        new: the version that is to replace it.
        task: what to ask.
        policy: what must hold; limits for other tasks are left aside.
        split: which instances.
        store: where runs are kept.
        batching: how instances share forward passes.
        seed: of the random order, and of sampled decoding.
        chunk: instances between two looks.
        executor: who evaluates.
        allow_inconclusive: let an undecided update pass.
        progress: called after every chunk.
        tally: where instances, tokens and time are added up.

    Returns:
        The comparison on the instances that were asked, and the verdict. The comparison's intervals are those of a
        sample of fixed size; the verdict's bounds hold at the time of stopping.

    Raises:
        UsageError: the policy has clusters, or nothing for this task; or both versions are stored runs.
        UpholdError: see `uphold.measure.compare.compare`.
    """
    from uphold.measure.compare import comparison_jobs
    from uphold.tasks.base import required_instances
    from uphold.tasks.load import load_task

    asked, keep = load_task(task, progress), store or default_store()
    sides = (stored_runs(old, store=keep), stored_runs(new, store=keep))
    if all(sides):
        raise UsageError("old and new are stored runs: there is nothing left to evaluate, leave out --until-decided")
    if policy.cluster is not None:
        raise UsageError(
            "a policy with clusters cannot be decided on the way: leave out --until-decided or its cluster"
        )
    instances = required_instances(asked, split)
    watched = watches(policy, asked.name, instances)
    plan = comparison_jobs(
        old, new, [asked], sides=sides, split=split, batching=batching, noise_floor=False, seed=seed,
        executor=executor, progress=progress,
    )  # fmt: skip
    pair = _Pair(
        *(_Version(plan[asked.name, role], asked, split, keep, executor, tally, chunk) for role in ("old", "new"))
    )
    order = [instances[place] for place in np.random.default_rng(seed).permutation(len(instances))]
    must_keep = policy.model_copy(update={"limits": ()})
    kept = _kept(policy, asked.name, order)
    pair.ask(kept)
    decided = bool(kept) and gate(must_keep, {asked.name: pair.compared(discover=False)}).verdict == "fail"
    if not decided:
        decided = _watch(watched, policy.alpha, pair, order, chunk, progress)
    comparison = pair.compared(_stopped(pair.count, len(order), decided))
    found = gate(must_keep, {asked.name: comparison}, allow_inconclusive=allow_inconclusive)
    checks = [watch.check(asked.name, policy.alpha, len(watched)) for watch in watched]
    return comparison, replace(found, checks=(*checks, *found.checks))


def _watch(
    watched: Sequence[Watch],
    alpha: float,
    pair: _Pair,
    order: Sequence[Instance],
    chunk: int,
    progress: Progress,
) -> bool:
    """Ask chunk after chunk until all limits are decided; whether they are."""
    decided, seen = not watched, 0
    while not decided and seen < len(order):
        part = order[seen : seen + chunk]
        seen += len(part)
        answers = pair.ask(part)
        for watch in watched:
            watch.see(answers)
        verdicts = [watch.verdict(alpha, len(watched)) for watch in watched]
        decided = "fail" in verdicts or "inconclusive" not in verdicts
        progress("until decided", seen, seen if decided else len(order), "; ".join(map(str, watched)))
    return decided


def _kept(policy: Policy, task: str, instances: Sequence[Instance]) -> list[Instance]:
    ids = {instance.id for instance in instances}
    missing = [name for name in policy.must_keep if name not in ids]
    if missing:
        raise DataError(
            f"must_keep names {len(missing)} instances that the task '{task}' does not have: {', '.join(missing[:10])}"
        )
    return [instance for instance in instances if instance.id in set(policy.must_keep)]


def _stopped(count: int, total: int, decided: bool) -> str:
    if not decided:
        return f"the gate was still undecided after all {total:,} instances"
    return (
        f"stopped after {count:,} of {total:,} instances, when the gate was decided: its bounds hold at any time of "
        "stopping, the intervals of the rates do not"
    )


@dataclass(frozen=True)
class _Pair:
    old: _Version
    new: _Version

    @property
    def count(self) -> int:
        """Instances asked."""
        return len(self.old.records)

    def ask(self, instances: Sequence[Instance]) -> list[tuple[Record, Record]]:
        """What both versions answer, in the order of `instances`."""
        return list(zip(self.old.answers(instances), self.new.answers(instances), strict=True))

    def compared(self, *notes: str, discover: bool = True) -> Comparison:
        """The comparison on all instances asked so far."""
        found = compare_runs(self.old.stored(), self.new.stored(), discover=discover)
        return replace(found, notes=(*notes, *found.notes))


class _Version:
    """One version, asked chunk by chunk; what was answered is kept in the store, chunk by chunk."""

    def __init__(
        self,
        job: Job | Run,
        task: Task,
        split: Split,
        store: RunStore,
        executor: Executor | None,
        tally: Tally | None,
        chunk: int,
    ) -> None:
        self.task, self.split, self.store, self.tally, self.chunk = task, split, store, tally, chunk
        self.executor = executor
        self.records: dict[str, Record] = {}
        self.instances: dict[str, Instance] = {}
        self._run = job if isinstance(job, Run) else store.find(job.fingerprint(self._numerics))
        self._job = None if isinstance(job, Run) else self._in_memory(job) if self._run is None else job

    @property
    def _numerics(self) -> Any:
        return self.executor.numerics() if self.executor is not None else None

    def _in_memory(self, job: Job) -> Job:
        """The job with its model loaded where it will be asked, so that no chunk loads it again."""
        from uphold.measure.executors import LocalExecutor
        from uphold.models.endpoint_reference import is_endpoint
        from uphold.models.load import load

        if is_endpoint(job.model) or not isinstance(self.executor, LocalExecutor | None):
            return job
        return replace(job, model=load(job.model))

    def answers(self, instances: Sequence[Instance]) -> list[Record]:
        """The records of `instances`, in their order."""
        missing = {one.id: one for one in instances if one.id not in self.records}
        if missing:
            self.records |= self._read(list(missing)) if self._run is not None else self._evaluated(missing)
            self.instances |= missing
        return [self.records[one.id] for one in instances]

    def _read(self, ids: Sequence[str]) -> dict[str, Record]:
        assert self._run is not None
        found = {record.id: record for record in self._run.records(ids)}
        if len(found) < len(ids):
            raise NotComparableError(
                f"the run of '{self._run.name}' has no answer to {len(ids) - len(found)} of {len(ids)} instances of "
                f"the task '{self.task.name}': it is of another task; evaluate the model again"
            )
        if self.tally is not None:
            self.tally.stored += len(ids)
        return found

    def _evaluated(self, instances: dict[str, Instance]) -> dict[str, Record]:
        from uphold.measure.evaluate import evaluate_all

        [run] = evaluate_all([self._of(instances)], store=self.store, executor=self.executor, tally=self.tally)
        return {record.id: record for record in run.records()}

    def _of(self, instances: dict[str, Instance]) -> Job:
        from uphold.tasks.base import subset

        assert self._job is not None
        return replace(self._job, task=subset(self.task, self.split, tuple(instances.values())))

    def stored(self) -> Run:
        """All answers so far as one run in the store."""
        from uphold.tasks.base import subset, task_fingerprint

        if self._run is not None:
            part = subset(self.task, self.split, tuple(self.instances.values()))
            fingerprint = {**self._run.fingerprint, "task": task_fingerprint(part, self.split)}
        else:
            fingerprint = self._of(self.instances).fingerprint(self._numerics)
        fingerprint["batching"] = {**fingerprint["batching"], "chunk": self.chunk}
        with self.store.claim(fingerprint, lambda: None):
            found = self.store.find(fingerprint)
            if found is None:
                writer = self.store.writer(fingerprint)
                writer.write(0, list(self.records.values()))
                found = writer.finish(1)
        return Run(found.path, fingerprint, found.count, found.sha256)
