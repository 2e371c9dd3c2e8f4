"""Incubation: one stage of a network trained from random weights among the frozen stages of a meta model.

Ni et al., "Deep Incubation: Training Large Models by Divide-and-Conquering", ICCV 2023, arXiv:2212.04129, phase 2.

    H_i = meta_K o ... o meta_{i+1} o M_i o meta_{i-1} o ... o meta_1          loss: the task's own; only M_i moves

A job is a folder: `manifest.json` (all that decides the outcome), `state/` while it trains, and in the end
`stage.safetensors` with `result.json`. Jobs do not know of each other.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uphold.core.errors import CorruptError, UsageError
from uphold.core.progress import Progress, silent
from uphold.core.storage import atomic_path, read_json, writable_folder, write_json

if TYPE_CHECKING:
    import torch

    from uphold.models.stages.build import StageBuilder
    from uphold.models.stages.data import Examples, Objective
    from uphold.models.stages.stages import Stages
    from uphold.models.stages.training import Trainee, Training

PAPER = "arXiv:2212.04129"
MANIFEST, RESULT, STATE, MODULE = "manifest.json", "result.json", "state", "stage.safetensors"


@dataclass(frozen=True)
class Job:
    """A finished incubation."""

    folder: Path
    manifest: Mapping[str, Any]
    """What decided the outcome: the meta model's hash (`meta`), number of stages (`stages`), `stage`, hashes of the
    fresh weights (`start`) and of the examples (`data`), `objective`, `augment` and `training`."""
    result: Mapping[str, Any]
    """What came out: the module's hash (`module`), mean loss per epoch (`losses`), whether what the stage reads was
    kept (`cached`), library versions."""

    @property
    def stage(self) -> int:
        """Which stage it is, counted from 0."""
        return int(self.manifest["stage"])

    def tensors(self) -> dict[str, torch.Tensor]:
        """The trained stage, by local name.

        Raises:
            CorruptError: the file does not hold what was written.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        from uphold.models.fingerprint import tensors_hash

        path = self.folder / MODULE
        try:
            tensors = load_file(path)
        except (SafetensorError, OSError) as error:
            raise CorruptError(f"{path} cannot be read ({error}); remove {self.folder} and incubate again") from error
        if tensors_hash(tensors) != self.result["module"]:
            raise CorruptError(f"{path} is not the module that was trained; remove {self.folder} and incubate again")
        return tensors


def read_job(folder: str | Path) -> Job:
    """The finished job in `folder`.

    Raises:
        UsageError: there is none, or it is not finished.
    """
    place = Path(folder)
    if not (place / MANIFEST).is_file():
        raise UsageError(f"{place} holds no job: expected {MANIFEST} in it")
    if not (place / RESULT).is_file():
        raise UsageError(f"the job in {place} is not finished: make the same call again to go on")
    manifest, result = read_json(place / MANIFEST), read_json(place / RESULT)
    try:
        job = Job(place, manifest, result)
        if manifest["kind"] != "stage":
            raise UsageError(f"{place} holds a whole model, not a stage: name the folder of an incubation")
        _ = job.stage, manifest["meta"], manifest["stages"], result["module"]
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptError(f"the job in {place} lacks {error}; remove it and incubate again") from error
    return job


def incubate(
    meta: Stages,
    stage: int,
    builder: StageBuilder,
    examples: Examples,
    *,
    out: str | Path,
    objective: Objective | None = None,
    config: Training | None = None,
    progress: Progress = silent,
) -> Job:
    """Train one stage from fresh weights among the frozen stages of `meta`.

    The optimiser holds this stage's parameters only. A tensor that this stage shares with others (tied embeddings)
    is the meta model's and stays frozen. The same arguments give the same bytes, alone, in any order or side by
    side; an interrupted call that is repeated goes on where it stopped.

    Args:
        meta: the model whose other stages are used; a trained meta model, or a deployed model. It is not changed.
        stage: which stage to train, counted from 0.
        builder: makes the fresh stage; `Blueprint.stage`, or a function of yours.
        examples: what to train on.
        out: the job's folder.
        objective: what for; None: classification with label smoothing 0.1.
        config: how long and how fast.
        progress: called after every step.

    Raises:
        UsageError: there is no such stage, the fresh stage does not fit between its neighbours, or `out` holds
            another job or is in use.
        ModelError: the loss is not finite.
    """
    from uphold.models.stages.boundary import check_fit, check_separable
    from uphold.models.stages.data import Classification
    from uphold.models.stages.stages import compose
    from uphold.models.stages.training import Training, seeded, stage_seed

    objective, config = objective or Classification(0.1), config or Training()
    if not 0 <= stage < meta.count:
        raise UsageError(f"there is no stage {stage}: expected 0 to {meta.count - 1}")
    fresh: Stages = seeded(lambda: builder(stage), stage_seed(config.seed, stage))
    parts = [fresh if number == stage else meta for number in range(meta.count)]
    if [one.aliases for one in fresh.shared] != [one.aliases for one in meta.shared]:
        raise UsageError("the fresh stage's model ties other weights than the meta model: tie both alike, or neither")
    hybrid = compose(parts, own=stage)
    check_fit(parts, examples.sample)
    check_separable(hybrid, examples.sample)
    _take_shared(hybrid, meta, stage)
    manifest = {
        "kind": "stage",
        "meta": meta.digest,
        "stages": meta.count,
        "stage": stage,
        "depth": fresh.depths[stage],
        "start": hybrid.hash(stage),
        **_facts(examples, objective, config),
    }
    with claimed(Path(out), manifest) as folder:
        if not (folder / RESULT).is_file():
            _train(hybrid, stage, examples, objective, config, folder, progress)
        job = read_job(folder)
        job.tensors()
        return job


def _train(
    hybrid: Stages,
    stage: int,
    examples: Examples,
    objective: Objective,
    config: Training,
    folder: Path,
    progress: Progress,
) -> None:
    from safetensors.torch import save_file

    from uphold.models.fingerprint import tensors_hash
    from uphold.models.load import library_versions
    from uphold.models.stages.training import fit

    started = time.monotonic()
    hybrid.model.to(config.decisive()["device"])
    tensors = hybrid.tensors(stage)
    trainee = hybrid_trainee(hybrid, stage, examples, config)
    what = f"stage {stage + 1} of {hybrid.count}"
    losses = fit(trainee, examples, objective, config, folder / STATE, what=what, progress=progress)
    made = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with atomic_path(folder / MODULE) as temporary:
        save_file(made, temporary)
    result = {
        "module": tensors_hash(made),
        "losses": losses,
        "cached": trainee.read is not None,
        "seconds": round(time.monotonic() - started, 2),
        "versions": library_versions(),
    }
    write_json(folder / RESULT, result)
    shutil.rmtree(folder / STATE, ignore_errors=True)


def hybrid_trainee(hybrid: Stages, stage: int, examples: Examples, config: Training) -> Trainee:
    """What `fit` trains: one stage of a composed model, behind what it reads where that can be kept."""
    from torch import nn

    from uphold.models.stages.boundary import tail
    from uphold.models.stages.training import Trainee, threads

    parameters = hybrid.parameters(stage)
    buffers = {name: value for name, value in hybrid.tensors(stage).items() if not isinstance(value, nn.Parameter)}
    modules = hybrid.modules(stage)
    with threads(config.threads):
        read = _kept(hybrid, stage, examples, config)
    if read is None:
        return Trainee(hybrid.model, parameters, buffers, modules)
    model, replay = tail(hybrid, stage, examples.sample)
    return Trainee(model, parameters, buffers, modules, replay, read)


def _kept(hybrid: Stages, stage: int, examples: Examples, config: Training) -> torch.Tensor | None:
    """What `stage` reads of every example; None where it changes from step to step or takes too much memory."""
    import torch

    from uphold.models.stages.boundary import boundaries
    from uphold.models.stages.data import chunks

    if stage == 0 or examples.augment is not None or config.frozen != "eval":
        return None
    one = boundaries(hybrid, examples.inputs[:1], upto=stage)[-1]
    if one.nbytes * len(examples) > config.cache_bytes:
        return None
    return torch.cat([boundaries(hybrid, rows, upto=stage)[-1].cpu() for rows in chunks(examples.inputs)])


def _take_shared(hybrid: Stages, meta: Stages, stage: int) -> None:
    import torch

    with torch.no_grad():
        for one in meta.shared:
            if one.owner == stage:
                hybrid.tensors(stage)[one.name].copy_(meta.tensors(stage)[one.name])


def _facts(examples: Examples, objective: Objective, config: Training) -> dict[str, Any]:
    from uphold.models.stages.data import described

    return {
        "data": examples.hash,
        "augment": described(examples.augment),
        "objective": described(objective),
        "training": config.decisive(),
    }


def train_whole(
    stages: Stages,
    examples: Examples,
    *,
    kind: str,
    out: str | Path,
    objective: Objective | None = None,
    config: Training | None = None,
    progress: Progress = silent,
) -> Stages:
    """Train all stages end to end, as any model is; `stages` is not changed.

    Args:
        stages: where to start.
        examples: what to train on.
        kind: what the training is called in its manifest and in progress.
        out: the training's folder; a finished one is read from it.
        objective: see `incubate`.
        config: how long and how fast.
        progress: called after every step.

    Returns:
        A trained copy, cut alike, in eval mode.

    Raises:
        UsageError: `out` holds another training or is in use.
        ModelError: the loss is not finite.
    """
    from torch import nn

    from uphold.models.load import library_versions
    from uphold.models.stages.data import Classification
    from uphold.models.stages.training import Trainee, Training, fit

    objective, config = objective or Classification(0.1), config or Training()
    manifest = {
        "kind": kind,
        "start": stages.digest,
        "stages": stages.count,
        **_facts(examples, objective, config),
    }
    made = stages.copied()
    made.model.to(config.decisive()["device"])
    tensors = {f"{stage}.{name}": value for stage in range(made.count) for name, value in made.tensors(stage).items()}
    parameters = {
        name: value for name, value in tensors.items() if isinstance(value, nn.Parameter) and value.is_floating_point()
    }
    for value in parameters.values():
        value.requires_grad_(True)
    buffers = {name: value for name, value in tensors.items() if name not in parameters}
    with claimed(Path(out), manifest) as folder:
        trainee = Trainee(made.model, parameters, buffers)
        losses = fit(trainee, examples, objective, config, folder / STATE, what=kind, progress=progress)
        write_json(folder / RESULT, {"digest": made.digest, "losses": losses, "versions": library_versions()})
    made.model.eval()
    return made


@contextmanager
def claimed(folder: Path, manifest: Mapping[str, Any]) -> Iterator[Path]:
    """Hold `folder` for the job that `manifest` describes; nobody else may work there meanwhile.

    Raises:
        UsageError: it holds another job, or another process is at work in it.
    """
    from filelock import FileLock, Timeout

    writable_folder(folder)
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise UsageError(f"another process is at work in {folder}: wait for it, or choose another folder") from error
    try:
        wanted = json.loads(json.dumps(manifest))
        path = folder / MANIFEST
        found = read_json(path) if path.is_file() else wanted
        if found != wanted:
            raise UsageError(
                f"{folder} holds another job (its {_difference(found, wanted)} differs): choose another folder, or "
                "remove that one"
            )
        write_json(path, wanted)
        yield folder
    finally:
        lock.release()


def _difference(found: Any, wanted: Mapping[str, Any]) -> str:
    if not isinstance(found, dict):
        return "manifest"
    names: Sequence[str] = sorted(found.keys() | wanted.keys())
    name = next(name for name in names if found.get(name) != wanted.get(name))
    inner = found.get(name)
    if isinstance(inner, dict) and isinstance(wanted.get(name), dict):
        return f"{name}.{_difference(inner, wanted[name])}"
    return name
