"""`uphold compare`: two models, or two stored runs, on one task."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from uphold.core.errors import NotComparableError, UsageError
from uphold.core.progress import Progress, silent
from uphold.core.runs import Run, RunStore, is_run, load_run
from uphold.measure.comparison import Comparison, compare_runs

if TYPE_CHECKING:
    from uphold.measure.evaluate import Batching
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
    progress: Progress = silent,
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
        progress: called while models are evaluated.

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
    return _compare_models(
        stored_old or old, stored_new or new, task, split, store, batching, noise_floor, seed, progress
    )


def _stored(what: Any) -> Run | None:
    if isinstance(what, Run):
        return what
    if isinstance(what, str | Path) and "\0" not in str(what) and is_run(Path(what)):
        return load_run(Path(what))
    return None


def _compare_models(
    old: Any,
    new: Any,
    task: str | Path | Task,
    split: Split,
    store: RunStore | None,
    batching: Batching | None,
    noise_floor: bool,
    seed: int,
    progress: Progress,
) -> Comparison:
    from uphold.core.runs import run_key
    from uphold.measure.evaluate import Batching, evaluate, run_fingerprint
    from uphold.models.load import load
    from uphold.tasks.load import load_task

    chosen = load_task(task)
    batches = batching or Batching()
    # A model in memory is hashed when it is loaded; passing it on as it came would hash it at every use.
    old, new = (model if isinstance(model, Run | str | Path) else load(model) for model in (old, new))
    if not isinstance(old, Run) and not isinstance(new, Run):
        keys = [run_key(run_fingerprint(model, chosen, split, batches, seed)) for model in (old, new)]
        if keys[0] == keys[1]:
            raise NotComparableError(
                "old and new are one and the same model (equal weights and adapter): nothing to compare"
            )
    runs = [
        model
        if isinstance(model, Run)
        else evaluate(
            model,
            chosen,
            split=split,
            store=store,
            batching=batches,
            seed=seed,
            progress=progress,
            what=f"{role} model",
        )
        for role, model in (("old", old), ("new", new))
    ]
    again = None
    if noise_floor and not isinstance(old, Run):
        again = evaluate(
            old,
            chosen,
            split=split,
            store=store,
            batching=batches.other(),
            seed=seed + 1,
            progress=progress,
            what="old model again (noise floor)",
        )
    return compare_runs(runs[0], runs[1], again)
