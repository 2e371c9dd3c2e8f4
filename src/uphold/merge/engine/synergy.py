"""What a merge gained and broke: against each of its models, and against what they score on average.

    S = score(merge) - mean of the parents' scores
    R = score(merge) - the best parent's score
    relative gain = score(merge) / score(base) - 1

S with its interval is the synergy of Lu, Luu and Buehler (arXiv:2409.03444), who found it above zero for models of 7 to
8 billion parameters and not for one of 1.7 billion: it has whatever sign it has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from uphold.core import stats
from uphold.core.errors import EmptyError, UsageError
from uphold.core.progress import Progress, silent
from uphold.core.runs import Run, RunStore, run_key
from uphold.measure.comparison import compare_runs
from uphold.measure.evaluate import Tally, evaluate_all
from uphold.measure.intervals import corrected_interval
from uphold.measure.jobs import Batching, Job
from uphold.merge.engine.parents import Parents, recorded_parents
from uphold.merge.engine.synergy_result import Against, Mean, Synergy, TaskSynergy
from uphold.tasks.base import Split, Task
from uphold.tasks.load import load_task

if TYPE_CHECKING:
    from uphold.core.stats import Floats, Interval
    from uphold.measure.executors import Executor

_DRAWS = 2000


def synergy(
    merged: str | Path,
    tasks: Sequence[str | Path | Task],
    *,
    parents: Sequence[str | Path] | None = None,
    base: str | Path | None = None,
    split: Split = "test",
    store: RunStore | None = None,
    batching: Batching | None = None,
    seed: int = 0,
    executor: Executor | None = None,
    progress: Progress = silent,
    tally: Tally | None = None,
) -> Synergy:
    """Measure a merge against all of its models; each is evaluated once, unless the store has its run.

    Args:
        merged: the merge's folder, or any other model.
        tasks: what to ask.
        parents: what was merged; by default, and the base with them, what `uphold-merge.json` in the folder says.
        base: what they were trained from.
        split: which instances.
        store: where runs are kept.
        batching: how instances share forward passes.
        seed: of sampled decoding.
        executor: who evaluates.
        progress: called while models are evaluated.
        tally: where instances, tokens and time are added up.

    Raises:
        UsageError: there is no task, or two of one name, or no parents.
        EmptyError: a task has no instances in this split.
        UpholdError: see `uphold.measure.evaluate.evaluate` for what else can go wrong.
    """
    if parents is None:
        named = recorded_parents(merged)
    elif parents:
        named = Parents(tuple(map(str, parents)), None if base is None else str(base))
    else:
        raise UsageError("a merge is measured against its parents: name at least one")
    asked = asked_on(tasks, split, progress)
    models = [*named.all, str(merged)]
    jobs = [
        Job(model, task, split, batching or Batching(), seed, f"{model} on {task.name}")
        for model in models
        for task in asked
    ]
    made = iter(evaluate_all(jobs, store=store, executor=executor, progress=progress, tally=tally))
    runs = {(model, task.name): next(made) for model in models for task in asked}
    against, found, draws = [], [], []
    for number, task in enumerate(asked):
        new = runs[str(merged), task.name]
        for model in named.all:
            old = runs[model, task.name]
            same = run_key(old.fingerprint) == run_key(new.fingerprint)
            comparison = None if same else compare_runs(old, new)
            against.append(Against(task.name, model, named.role(model), comparison))
        others = [runs[model, task.name] for model in named.parents]
        one, drawn = task_synergy(new, others, runs.get((str(named.base), task.name)), seed=number)
        found.append(one)
        draws.append(drawn)
    return Synergy(str(merged), tuple(against), tuple(found), _mean(found, draws))


def task_synergy(
    merged: Run, parents: Sequence[Run], base: Run | None = None, *, draws: int = _DRAWS, seed: int = 0
) -> tuple[TaskSynergy, Floats]:
    """Scores of finished runs on one task, and bootstrap draws of S, shape (draws,).

    Instances that one of the runs has no score on are left out of all.

    Args:
        merged: the merge's run.
        parents: those of its parents, at least one.
        base: the base's run.
        draws: resamples of the instances.
        seed: of the resampling.

    Raises:
        EmptyError: there is no instance that all have a score on.
    """
    scores = _scores([merged, *parents, *([base] if base is not None else [])])
    if not scores.shape[1]:
        raise EmptyError(f"no instance of '{merged.task}' has a score from the merge and from all of its models")
    means = [math.fsum(row) / len(row) for row in scores]
    differences = scores[0] - scores[1 : 1 + len(parents)].mean(axis=0)
    drawn, interval = _bootstrap(differences, draws, seed)
    low, high = interval or (None, None)
    found = TaskSynergy(
        merged.task,
        scores.shape[1],
        means[0],
        tuple(means[1 : 1 + len(parents)]),
        means[-1] if base is not None else None,
        low,
        high,
    )
    return found, drawn


def asked_on(tasks: Sequence[str | Path | Task], split: Split, progress: Progress = silent) -> list[Task]:
    """The tasks, loaded; each has instances in this split.

    Raises:
        UsageError: there is none, or two of one name.
        EmptyError: one has no instances in this split.
    """
    if not tasks:
        raise UsageError("measuring a merge needs a task: 'uphold tasks' lists some")
    asked: dict[str, Task] = {}
    for task in tasks:
        loaded = load_task(task, progress)
        if loaded.name in asked:
            raise UsageError(f"two of the {len(tasks)} tasks are called '{loaded.name}': tasks are told apart by names")
        if not loaded.instances(split):
            raise EmptyError(f"task '{loaded.name}' has no {split} instances: give it some, or name another task")
        asked[loaded.name] = loaded
    return list(asked.values())


def _scores(runs: Sequence[Run]) -> Floats:
    """Scores in [0, 1] of the instances that all runs have one on. Shape: (runs, instances)."""
    columns: list[dict[str, tuple[float, float]]] = []
    for run in runs:
        table = run.table(["id", "score", "correct"])
        scores, correct = (np.array(table[name].to_pylist(), dtype=float) for name in ("score", "correct"))
        columns.append(dict(zip(table["id"].to_pylist(), zip(scores, correct, strict=True), strict=True)))
    shared = [key for key in columns[0] if all(key in one for one in columns)]
    values = np.array([[one[key] for key in shared] for one in columns]).reshape(len(runs), len(shared), 2)
    values = values[:, ~np.isnan(values[:, :, 0]).any(axis=0)]
    return values[:, :, 0] if np.isnan(values[:, :, 1]).any() else values[:, :, 1]


def _bootstrap(differences: Floats, draws: int, seed: int) -> tuple[Floats, Interval | None]:
    """Draws of the mean of the differences, and its 95% interval."""
    count, total = len(differences), differences.sum()
    if count < 2:
        return np.full(draws, total), None
    drawn = stats.bootstrap_clusters(differences[:, None], lambda sums: sums[:, 0] / count, draws, seed)
    if not differences.any():
        # No draw would show a difference: what is left is that of so many instances without a flip.
        return drawn, stats.paired_difference_interval(0, 0, 0, count)
    return drawn, corrected_interval(total / count, drawn, (total - differences) / (count - 1), 0.95)


def _mean(found: Sequence[TaskSynergy], draws: Sequence[Floats]) -> Mean | None:
    if len(found) < 2:
        return None
    interval = None
    if all(one.low is not None for one in found):
        interval = stats.percentile_interval(np.mean(draws, axis=0))
    low, high = interval or (None, None)
    gains = [one.relative_gain for one in found]
    known = [gain for gain in gains if gain is not None]
    return Mean(
        math.fsum(one.synergy for one in found) / len(found),
        low,
        high,
        math.fsum(one.over_best for one in found) / len(found),
        math.fsum(known) / len(known) if len(known) == len(gains) else None,
    )
