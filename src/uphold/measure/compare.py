"""`uphold compare`: two models, two stored runs, or two logs of another tool, on one task or several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uphold.core.errors import NotComparableError, UsageError
from uphold.core.progress import Progress, silent
from uphold.core.runs import Run, RunStore
from uphold.measure.comparison import Comparison, compare_runs
from uphold.measure.stored import RunsByTask, chosen, matched, stored_runs

if TYPE_CHECKING:
    from uphold.measure.evaluate import Tally
    from uphold.measure.executors import Executor
    from uphold.measure.jobs import Batching, Job
    from uphold.tasks.base import Split, Task

Role = tuple[str, str]
"""A task's name, and one of `old`, `again`, `new`."""


def compare(old: Any, new: Any, task: str | Path | Task | None = None, **options: Any) -> Comparison:
    """Measure what an update broke on one task.

    Args:
        old: the version that users have: a model reference, a loaded model, a `Run`, a folder with a run, or another
            tool's log (see `uphold.importers`).
        new: the version that is to replace it, in any of these forms.
        task: what to ask (see `uphold.load_task`); not needed for two stored runs or logs of one task.
        options: see `compare_all`.

    Raises:
        UsageError: a model without a task, a name that does not exist, or logs of several tasks.
        NotComparableError: both are one model, or the runs answered different questions.
        UpholdError: see `uphold.core.errors` for what else can go wrong.
    """
    found = compare_all(old, new, () if task is None else (task,), **options)
    if len(found) > 1:
        raise UsageError(f"there are several tasks ({', '.join(found)}): name one, or use compare_all")
    [comparison] = found.values()
    return comparison


def compare_all(
    old: Any,
    new: Any,
    tasks: Sequence[str | Path | Task] = (),
    *,
    split: Split = "test",
    store: RunStore | None = None,
    batching: Batching | None = None,
    noise_floor: bool = True,
    again: Any = None,
    seed: int = 0,
    executor: Executor | None = None,
    allow_mismatch: bool = False,
    cluster: str | None = None,
    discover: bool = True,
    log: dict[str, Any] | None = None,
    progress: Progress = silent,
    tally: Tally | None = None,
) -> dict[str, Comparison]:
    """Measure what an update broke on several tasks, by their names.

    Args:
        old: the version that users have, see `compare`.
        new: the version that is to replace it.
        tasks: what to ask; of stored runs and logs, which of their tasks to compare (all by default).
        split: which instances.
        store: where runs are kept.
        batching: how instances share forward passes; the same for both, so that its noise cancels in the pair.
        noise_floor: evaluate the old model once more, in other batches (and with another seed where decoding
            samples), to see how many flips a model has against itself.
        again: where `old` and `new` are stored: the old version measured a second time, for the noise floor.
        seed: of sampled decoding.
        executor: who evaluates; this process by default (`uphold.measure.executors`).
        allow_mismatch: compare runs that did not answer the same questions in the same way, on what they share; what
            differs is noted.
        cluster: the tag that says which instances belong together (same passage, same template); intervals and tests
            then take clusters, not instances, as independent.
        discover: look for kinds of instances in which negative flips pile up.
        log: how logs are to be read: keyword arguments of `uphold.importers.import_log`.
        progress: called while models are evaluated and logs are read.
        tally: where instances, tokens and time are added up.

    Raises:
        UpholdError: see `compare`.
    """
    old_runs, new_runs, floors = (
        None if what is None else stored_runs(what, store=store, progress=progress, **(log or {}))
        for what in (old, new, again)
    )
    how: dict[str, Any] = {"allow_mismatch": allow_mismatch, "cluster": cluster, "discover": discover}
    if again is not None and (old_runs is None or new_runs is None or floors is None):
        raise UsageError("the noise floor can be given where old and new are stored, too; models are evaluated again")
    if old_runs is not None and new_runs is not None:
        names = [str(task) if isinstance(task, str | Path) else task.name for task in tasks]
        ours, theirs = chosen(old_runs, names, str(old)), chosen(new_runs, names, str(new))
        pairs, notes = matched(ours, theirs, allow_mismatch)
        found = {
            name: compare_runs(*pair, _run_of(floors, name, again) if floors else None, **how)
            for name, pair in pairs.items()
        }
        return {
            name: replace(one, notes=(*one.notes, *notes, *_log_notes(one.old, "old"), *_log_notes(one.new, "new")))
            for name, one in found.items()
        }
    from uphold.measure.evaluate import evaluate_all
    from uphold.measure.executors import LocalExecutor

    work = executor or LocalExecutor()
    plan = comparison_jobs(
        old,
        new,
        tasks,
        sides=(old_runs, new_runs),
        split=split,
        batching=batching,
        noise_floor=noise_floor,
        seed=seed,
        executor=work,
        progress=progress,
    )
    jobs = {role: job for role, job in plan.items() if not isinstance(job, Run)}
    made = evaluate_all(list(jobs.values()), store=store, executor=work, progress=progress, tally=tally)
    runs = {role: job for role, job in plan.items() if isinstance(job, Run)}
    runs |= dict(zip(jobs, made, strict=True))
    return {
        name: compare_runs(run, runs[name, "new"], runs.get((name, "again")), **how)
        for (name, role), run in runs.items()
        if role == "old"
    }


def comparison_jobs(
    old: Any,
    new: Any,
    tasks: Sequence[str | Path | Task],
    *,
    sides: tuple[RunsByTask | None, RunsByTask | None] = (None, None),
    split: Split = "test",
    batching: Batching | None = None,
    noise_floor: bool = True,
    seed: int = 0,
    executor: Executor | None = None,
    progress: Progress = silent,
) -> dict[Role, Job | Run]:
    """What has to be evaluated to compare two versions, and the runs that are there already.

    All jobs of one model stand together, so that it is loaded once.

    Args:
        old: the version that users have.
        new: the version that is to replace it.
        tasks: what to ask.
        sides: the stored runs of `old` and `new`, where these are no models.
        split: see `compare_all`, here and below.
        batching: how instances share forward passes.
        noise_floor: whether to evaluate the old model once more.
        seed: of sampled decoding.
        executor: who will evaluate.
        progress: called while data are downloaded.

    Raises:
        UsageError: there is no task, or two of one name.
        NotComparableError: both are one model.
    """
    from uphold.measure.jobs import Batching, Job
    from uphold.models.load import load
    from uphold.tasks.load import load_task

    if not tasks:
        model = old if sides[0] is None else new
        raise UsageError(
            f"'{model}' is no stored run and no other tool's log: give --task, so that it can be evaluated as a model"
        )
    asked = {task.name: task for task in (load_task(task, progress) for task in tasks)}
    if len(asked) < len(tasks):
        raise UsageError(f"two of the {len(tasks)} tasks have one name: tasks are told apart by their names")
    batches = batching or Batching()
    numerics = executor.numerics() if executor is not None else None
    # A model in memory is hashed when it is loaded; passing it on as it came would hash it at every use.
    versions = [
        None if runs is not None else what if isinstance(what, str | Path) else load(what)
        for runs, what in zip(sides, (old, new), strict=True)
    ]
    label = {name: f" on {name}" if len(asked) > 1 else "" for name in asked}
    plan: dict[Role, Job | Run] = {}
    for name, task in asked.items():
        if sides[0] is not None:
            plan[name, "old"] = _run_of(sides[0], name, old)
            continue
        plan[name, "old"] = job = Job(versions[0], task, split, batches, seed, f"old model{label[name]}")
        if noise_floor:
            # Right after the first time, while the model is there.
            other = batches.other(job.fingerprint(numerics)["model"].get("device", "cpu"))
            what = f"old model again (noise floor){label[name]}"
            plan[name, "again"] = Job(versions[0], task, split, other, seed + 1, what)
    for name, task in asked.items():
        if sides[1] is not None:
            plan[name, "new"] = _run_of(sides[1], name, new)
        else:
            plan[name, "new"] = Job(versions[1], task, split, batches, seed, f"new model{label[name]}")
    _check_two_models(plan, numerics)
    return plan


def _log_notes(run: Run, side: str) -> list[str]:
    """What was noticed while the run was read from another tool's log."""
    return [f"{side} log: {note}" for note in run.fingerprint.get("log", {}).get("notes", ())]


def _run_of(runs: RunsByTask, name: str, where: Any) -> Run:
    if name not in runs and len(runs) == 1:
        return next(iter(runs.values()))
    return chosen(runs, [name], str(where))[name]


def _check_two_models(plan: dict[Role, Job | Run], numerics: Any) -> None:
    from uphold.core.runs import run_key

    for (name, role), old in plan.items():
        new = plan[name, "new"]
        if role != "old" or isinstance(old, Run) or isinstance(new, Run):
            continue
        if run_key(old.fingerprint(numerics)) == run_key(new.fingerprint(numerics)):
            raise NotComparableError(
                "old and new are one and the same model (equal weights and adapter): nothing to compare"
            )
