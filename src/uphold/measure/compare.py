"""`uphold compare`: two models, or two stored runs, on one task."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from uphold.core.errors import NotComparableError, UsageError
from uphold.core.progress import Progress, silent
from uphold.core.runs import Run, RunStore, is_run, load_run
from uphold.measure.comparison import Comparison, compare_runs

if TYPE_CHECKING:
    from uphold.measure.evaluate import Tally
    from uphold.measure.executors import Executor
    from uphold.measure.jobs import Batching, Job
    from uphold.tasks.base import Split, Task


def compare(
    old: Any,
    new: Any,
    task: str | Path | Task | None = None,
    *,
    split: Split = "test",
    store: RunStore | None = None,
    batching: Batching | None = None,
    noise_floor: bool = True,
    seed: int = 0,
    executor: Executor | None = None,
    progress: Progress = silent,
    tally: Tally | None = None,
) -> Comparison:
    """Measure what an update broke.

    Args:
        old: the version that users have: a model reference, a loaded model, a `Run`, or a folder with a run.
        new: the version that is to replace it, in any of these forms.
        task: what to ask (see `uphold.load_task`); not needed for two stored runs.
        split: which instances.
        store: where runs are kept.
        batching: how instances share forward passes; the same for both, so that its noise cancels in the pair.
        noise_floor: evaluate the old model once more, in other batches (and with another seed where decoding
            samples), to see how many flips a model has against itself.
        seed: of sampled decoding.
        executor: who evaluates; this process by default (`uphold.measure.executors`).
        progress: called while models are evaluated.
        tally: where instances, tokens and time are added up.

    Raises:
        UsageError: a model without a task, or a name that does not exist.
        NotComparableError: both are one model, or the runs answered different questions.
        UpholdError: see `uphold.core.errors` for what else can go wrong.
    """
    stored_old, stored_new = _stored(old), _stored(new)
    if task is None:
        if stored_old is None or stored_new is None:
            missing = old if stored_old is None else new
            raise UsageError(f"'{missing}' is no stored run: give --task, so that it can be evaluated as a model")
        return compare_runs(stored_old, stored_new)
    from uphold.measure.evaluate import evaluate_all
    from uphold.measure.executors import LocalExecutor

    work = executor or LocalExecutor()
    jobs = comparison_jobs(
        stored_old or old,
        stored_new or new,
        task,
        split=split,
        batching=batching,
        noise_floor=noise_floor,
        seed=seed,
        executor=work,
        progress=progress,
    )
    made = evaluate_all(list(jobs.values()), store=store, executor=work, progress=progress, tally=tally)
    runs = dict(zip(jobs, made, strict=True))
    both = runs.get("old") or stored_old, runs.get("new") or stored_new
    assert both[0] is not None
    assert both[1] is not None
    return compare_runs(both[0], both[1], runs.get("again"))


def _stored(what: Any) -> Run | None:
    if isinstance(what, Run):
        return what
    if isinstance(what, str | Path) and "\0" not in str(what) and is_run(Path(what)):
        return load_run(Path(what))
    return None


def comparison_jobs(
    old: Any,
    new: Any,
    task: str | Path | Task,
    *,
    split: Split = "test",
    batching: Batching | None = None,
    noise_floor: bool = True,
    seed: int = 0,
    executor: Executor | None = None,
    progress: Progress = silent,
) -> dict[str, Job]:
    """What has to be evaluated to compare: `old`, `again` (the noise floor) and `new`, as far as they are no runs.

    See `compare` for the arguments and errors.
    """
    from uphold.core.runs import run_key
    from uphold.measure.jobs import Batching, Job
    from uphold.models.load import load
    from uphold.tasks.load import load_task

    chosen, batches = load_task(task, progress), batching or Batching()
    numerics = executor.numerics() if executor is not None else None
    # A model in memory is hashed when it is loaded; passing it on as it came would hash it at every use.
    old, new = (model if isinstance(model, Run | str | Path) else load(model) for model in (old, new))
    jobs: dict[str, Job] = {}
    if not isinstance(old, Run):
        jobs["old"] = Job(old, chosen, split, batches, seed, "old model")
        if noise_floor:
            # Right after the first time, while the model is there.
            other = batches.other(jobs["old"].fingerprint(numerics)["model"].get("device", "cpu"))
            jobs["again"] = Job(old, chosen, split, other, seed + 1, "old model again (noise floor)")
    if not isinstance(new, Run):
        jobs["new"] = Job(new, chosen, split, batches, seed, "new model")
    if "old" in jobs and "new" in jobs:
        keys = [run_key(jobs[role].fingerprint(numerics)) for role in ("old", "new")]
        if keys[0] == keys[1]:
            raise NotComparableError(
                "old and new are one and the same model (equal weights and adapter): nothing to compare"
            )
    return jobs
