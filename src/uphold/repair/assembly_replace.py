"""One stage of a deployed model made anew: trained from fresh weights among its frozen deployed neighbours.

The update workflow of Deep Model Assembling (arXiv:2212.04129): phase 2, with the deployed model in the place of the
meta model. All other stages keep their bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uphold.core.errors import ModelError, UsageError
from uphold.core.progress import Progress, silent
from uphold.core.storage import atomic_folder, write_json
from uphold.repair.assembly_jobs import PAPER, Job, incubate
from uphold.repair.assembly_report import Paired

if TYPE_CHECKING:
    from uphold.models.stages.build import StageBuilder
    from uphold.models.stages.data import Examples, Objective
    from uphold.models.stages.stages import Stages
    from uphold.models.stages.training import Training


@dataclass(frozen=True)
class Replacement:
    """A model with one stage made anew, and what that changed."""

    stages: Stages
    """The new model, in eval mode, cut like the deployed one."""
    job: Job
    comparison: Paired
    """The deployed model against the new one, on examples that neither was trained on here."""
    model: Path
    """The new model on disk: a folder of transformers, or a folder with `model.safetensors`."""
    patch: Path | None
    """The change as a patch, where one was asked for."""


def replace_stage(
    deployed: Stages,
    stage: int,
    builder: StageBuilder | None,
    examples: Examples,
    *,
    test: Examples,
    out: str | Path,
    objective: Objective | None = None,
    config: Training | None = None,
    tokenizer: Any = None,
    patch: bool = False,
    progress: Progress = silent,
) -> Replacement:
    """Train one stage of a deployed model anew against its frozen neighbours; every other stage keeps its bytes.

    An interrupted call that is repeated goes on where it stopped.

    Args:
        deployed: the model and where it is cut; it is not changed. A tensor that the stage shares with others (tied
            embeddings) stays as it is.
        stage: which stage, counted from 0.
        builder: makes the new stage, of any depth; None draws one of the same shape. One that returns a copy of the
            deployed model goes on from its weights.
        examples: what to train on.
        test: what both models are measured on.
        out: gets `job/`, `model/`, `replacement.json` and, where asked for, `patch.safetensors`.
        objective: what for; None: classification with label smoothing 0.1.
        config: how long and how fast.
        tokenizer: saved beside a transformers model.
        patch: write the change as a patch too; the new stage must have the old one's shapes.
        progress: called after every step.

    Raises:
        UsageError: see `incubate`; or a patch is asked for and the shapes differ.
        ModelError: the loss is not finite.
    """
    from uphold.models.stages.build import redrawn
    from uphold.models.stages.data import Classification, correct
    from uphold.models.stages.stages import compose
    from uphold.models.stages.training import Training, seeded, stage_seed

    folder = Path(out)
    make = builder or (lambda _: redrawn(deployed))
    seed = (config or Training()).seed
    fresh: Stages = seeded(lambda: make(stage), stage_seed(seed, stage))
    if patch:
        _check_same_shapes(deployed, fresh, stage)
    before = deployed.hashes
    job = incubate(
        deployed, stage, make, examples, out=folder / "job", objective=objective, config=config, progress=progress
    )
    made = compose([fresh if number == stage else deployed for number in range(deployed.count)]).copied()
    made.load(stage, job.tensors())
    made.model.eval()
    changed = [number for number, (old, new) in enumerate(zip(before, made.hashes, strict=True)) if old != new]
    if set(changed) - {stage} or deployed.hashes != before:
        raise ModelError(f"stages {changed} have changed where only {stage} may: the model is not saved")
    judge = objective or Classification()
    comparison = Paired.of(correct(deployed.model, test, judge), correct(made.model, test, judge))
    written = _patch(deployed, made, stage, comparison, folder) if patch else None
    _save(made, folder / "model", tokenizer)
    write_json(
        folder / "replacement.json",
        {
            "paper": PAPER,
            "stage": stage,
            "stages": deployed.count,
            "before": list(before),
            "after": list(made.hashes),
            "comparison": comparison.to_json(),
            "losses": job.result["losses"],
        },
    )
    return Replacement(made, job, comparison, folder / "model", written)


def _save(stages: Stages, folder: Path, tokenizer: Any) -> None:
    from safetensors.torch import save_file

    with atomic_folder(folder) as temporary:
        save = getattr(stages.model, "save_pretrained", None)
        if callable(save):
            save(str(temporary))
            if tokenizer is not None:
                tokenizer.save_pretrained(str(temporary))
            return
        seen: set[int] = set()
        once = {}
        for name, value in stages.model.state_dict(keep_vars=True).items():
            if id(value) not in seen:
                once[name] = value.detach().cpu().contiguous()
                seen.add(id(value))
        save_file(once, temporary / "model.safetensors")


def _check_same_shapes(deployed: Stages, fresh: Stages, stage: int) -> None:
    ours, theirs = (
        {name: tuple(value.shape) for name, value in one.tensors(stage).items()} for one in (deployed, fresh)
    )
    if ours != theirs:
        name = min(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
        raise UsageError(
            f"a patch needs equal shapes, and {name} of stage {stage} is {ours.get(name, 'absent')} now and "
            f"{theirs.get(name, 'absent')} in the new stage: leave the patch out (patch=False)"
        )


def _patch(old: Stages, new: Stages, stage: int, comparison: Paired, folder: Path) -> Path:
    from uphold.models.patches.make import make

    made = make(
        old.model,
        new.model,
        method="replace-stage",
        paper=PAPER,
        figures={"before": {"accuracy": comparison.old}, "after": {"accuracy": comparison.new}},
        facts={"stage": stage, "stages": old.count, "comparison": comparison.to_json()},
    )
    return made.save(folder / "patch.safetensors")
