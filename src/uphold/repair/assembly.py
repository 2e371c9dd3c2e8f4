"""Deep Model Assembling: a deep network out of separately trained stages, and one stage of a deployed model replaced.

Ni et al., "Deep Incubation: Training Large Models by Divide-and-Conquering", ICCV 2023, arXiv:2212.04129.

    1  meta = train_meta(blueprint.meta, data)                       one block per stage, trained end to end
    2  jobs = incubate_all(meta, blueprint.stage, data)              each stage among the frozen meta stages
    3  model = assemble(jobs, blueprint.whole(), meta)               nothing is trained
    4  model = fine_tune(model, data)                                end to end, no warm-up, gradients clipped at 1

What makes separately trained stages fit is the meta model that they share: `assemble` refuses those of another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from uphold.core.errors import UsageError
from uphold.core.progress import Progress, silent
from uphold.repair.assembly_jobs import Job, read_job, train_whole

if TYPE_CHECKING:
    from uphold.models.stages.data import Examples, Objective
    from uphold.models.stages.stages import Stages
    from uphold.models.stages.training import FineTuning, Training


def train_meta(
    builder: Callable[[], Stages],
    examples: Examples,
    *,
    out: str | Path,
    objective: Objective | None = None,
    config: Training | None = None,
    progress: Progress = silent,
) -> Stages:
    """Phase 1: train a very shallow model of the target's stages, end to end.

    Args:
        builder: makes the freshly drawn meta model, under the seed of `config`; `Blueprint.meta`, or one of yours.
        examples: what to train on.
        out: the training's folder; a finished one is read from it.
        objective: what for; None: classification with label smoothing 0.1.
        config: how long and how fast.
        progress: called after every step.

    Raises:
        UsageError: `out` holds another training or is in use.
        ModelError: the loss is not finite.
    """
    from uphold.models.stages.training import Training, seeded

    config = config or Training()
    start: Stages = seeded(builder, config.seed)
    return train_whole(start, examples, kind="meta", out=out, objective=objective, config=config, progress=progress)


def assemble(jobs: Sequence[Job | str | Path], into: Stages, meta: Stages | None = None) -> Stages:
    """Phase 3: a model of separately trained stages. The order of `jobs` does not matter.

    Args:
        jobs: finished incubations or their folders, one for each stage.
        into: a model of the target's architecture; its weights are not used, and it is not changed.
        meta: the meta model that the jobs must have been trained against; None: any, but one for all.

    Returns:
        A copy of `into` with the trained stages, in eval mode.

    Raises:
        UsageError: a stage is missing or there twice, was trained against another meta model or another number of
            stages, or does not fit `into`.
        CorruptError: a stored module is not the one that was trained.
    """
    found = [job if isinstance(job, Job) else read_job(job) for job in jobs]
    wanted = meta.digest if meta is not None else str(found[0].manifest["meta"]) if found else ""
    for job in found:
        if job.manifest["meta"] != wanted:
            raise UsageError(
                f"{job.folder} was trained against another meta model ({str(job.manifest['meta'])[:12]}, expected "
                f"{wanted[:12]}): stages of different meta models do not fit together; incubate it against this one"
            )
        if job.manifest["stages"] != into.count:
            raise UsageError(
                f"{job.folder} is one of {job.manifest['stages']} stages and the model has {into.count}: cut it alike"
            )
    numbers = sorted(job.stage for job in found)
    if numbers != list(range(into.count)):
        raise UsageError(f"the jobs bring stages {numbers}: expected each of 0 to {into.count - 1} once")
    made = into.copied()
    for job in found:
        made.load(job.stage, job.tensors())
    made.model.eval()
    return made


def fine_tune(
    assembled: Stages,
    examples: Examples,
    *,
    out: str | Path,
    objective: Objective | None = None,
    config: FineTuning | Training | None = None,
    progress: Progress = silent,
) -> Stages:
    """Phase 4: train the assembled model end to end; by default without warm-up and with gradients clipped at 1.

    Args:
        assembled: where to start; it is not changed.
        examples: what to train on.
        out: the training's folder; a finished one is read from it.
        objective: see `train_meta`.
        config: how long and how fast.
        progress: called after every step.

    Raises:
        UsageError: `out` holds another training or is in use.
        ModelError: the loss is not finite.
    """
    from uphold.models.stages.training import FineTuning

    config = config or FineTuning()
    return train_whole(
        assembled, examples, kind="fine-tune", out=out, objective=objective, config=config, progress=progress
    )
