"""FisherBCWI: weight interpolation in which every weight counts by what it matters to the old model.

Schumann et al., "Backward Compatibility During Data Updates by Weight Interpolation", EACL 2024, arXiv:2301.10546.

    theta = (alpha F theta_old + (1 - alpha) theta_new) / (alpha F + 1 - alpha)   0 <= alpha < 1, by element
    F_j   = mean over x of (d/d theta_j log p_old(y_old(x) | x))^2                y_old(x): the old model's own answer

F is rescaled to mean 1 over the tensors in which the models differ. A weight with F = 0 is the new model's for every
alpha below 1; where F is the same everywhere the method is BCWI.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uphold.core.errors import UsageError
from uphold.core.progress import Progress, silent
from uphold.core.registry import repair
from uphold.repair.interpolation import InterpolationConfig, Mixture, interpolate
from uphold.repair.result import Repair

if TYPE_CHECKING:
    from collections.abc import Sequence

    from uphold.core.runs import RunStore
    from uphold.models.encode import Encoded
    from uphold.models.load import ModelLike
    from uphold.repair.protocol import Setting
    from uphold.tasks.base import Instance, Task

PAPER = "arXiv:2301.10546"
FINE_FROM, FINE_STEP = 0.8, 0.02
"""Where the grid gets finer, and its step there."""
ENDS = (0.001, 0.003, 0.01, 0.03, 0.99, 0.995, 0.999)
"""Few weights have a Fisher information far above the mean and move at once, most are far below it and move at last."""


@dataclass(frozen=True)
class FisherBcwiConfig(InterpolationConfig):
    """Options of FisherBCWI. The paper has a finer grid above 0.8, but does not print it; see `grid`."""

    examples: int = 1000
    """Train instances for the Fisher information, drawn by `seed`; each takes a backward pass of its own. 0: all."""
    seed: int = 0
    """Of the draw."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.examples < 0 or self.seed < 0:
            raise UsageError(f"examples and seed must not be negative, not {self.examples} and {self.seed}")

    @property
    def grid(self) -> tuple[float, ...]:
        """Steps of `step` up to 0.8, of at most 0.02 above it, and some values close to either end (`ENDS`)."""
        coarse = {alpha for alpha in super().grid if alpha <= FINE_FROM or self.step < FINE_STEP}
        fine = {round(FINE_FROM + FINE_STEP * index, 9) for index in range(10)}
        return tuple(sorted(coarse | fine | set(ENDS)))


@repair("fisher-bcwi", paper=PAPER)
def fisher_bcwi(
    old: ModelLike,
    new: ModelLike,
    task: str | Path | Task,
    *,
    out: str | Path,
    config: FisherBcwiConfig | None = None,
    store: RunStore | None = None,
    progress: Progress = silent,
) -> Repair:
    """Interpolate the weights of the old and the new model, each by its Fisher information in the old one.

    The old model also answers the train split. `out` gets `fisher/`, and `weights/`, a whole model, since the mixture
    of two LoRAs by element is none. Arguments and errors are otherwise those of `uphold.repair.bcwi.bcwi`.
    """
    return interpolate(
        "fisher-bcwi",
        PAPER,
        "FisherBCWI",
        old,
        new,
        task,
        out=out,
        config=config,
        default=FisherBcwiConfig(),
        mixture=_mixture,
        contents=lambda setting, options: _contents(options),
        store=store,
        progress=progress,
    )


def own_answers(setting: Setting, instances: Sequence[Instance]) -> tuple[list[Encoded], int]:
    """The old model's own answers to instances as sequences, and how many were empty and are left out."""
    from uphold.measure.answer import answer, questions
    from uphold.models.encode import Encoder
    from uphold.models.engine import LocalEngine
    from uphold.repair.training import answer_rows

    old, task = setting.old, setting.task
    said = [record.output for record in answer(LocalEngine(old), task, instances)]
    kept = [(instance, output) for instance, output in zip(instances, said, strict=True) if output]
    if task.kind == "choice":
        asked = questions(task, [instance for instance, _ in kept])
        pairs = [question[one.options.index(output)] for (one, output), question in zip(kept, asked, strict=True)]
        rows = Encoder(old.tokenizer).pairs(pairs)
    else:
        rows = answer_rows(old, task, [instance for instance, _ in kept], [output for _, output in kept])
    return rows, len(instances) - len(kept)


def _mixture(setting: Setting, options: FisherBcwiConfig) -> Mixture:
    from uphold.models.fisher import with_mean_one
    from uphold.models.mixture import WeightMixture, changed, distance_notes
    from uphold.models.weights import merged

    old, new = merged(setting.old.model), merged(setting.new.model)
    fisher, left_out = _fisher(setting, options, old, changed(old, new))
    notes = distance_notes(old, new)
    if left_out:
        notes.append(f"{left_out} train instances to which the old model says nothing are left out of the Fisher")
    return WeightMixture(old, new, with_mean_one(fisher), notes)


def _fisher(
    setting: Setting, options: FisherBcwiConfig, model: Any, names: Sequence[str]
) -> tuple[dict[str, Any], int]:
    """The Fisher information of the old model, and how many instances it leaves out; read from `fisher/` if there."""
    import numpy as np
    from safetensors.torch import load_file, save_file

    from uphold.core.hashing import sha256_of
    from uphold.core.storage import atomic_folder, read_json, write_json
    from uphold.models.fingerprint import nameless
    from uphold.models.fisher import diagonal_fisher
    from uphold.models.load import numerics
    from uphold.tasks.base import required_instances, task_fingerprint

    folder = setting.folder / "fisher"
    content, task = nameless(setting.old.fingerprint), task_fingerprint(setting.task, "train")
    key = sha256_of([content, task, _contents(options), list(names), numerics(setting.old.model)])
    saved = read_json(folder / "key.json") if (folder / "key.json").is_file() else {}
    if saved.get("key") == key:
        return load_file(folder / "fisher.safetensors", device=str(setting.old.model.device)), saved["left_out"]
    instances = list(required_instances(setting.task, "train"))
    if 0 < options.examples < len(instances):
        drawn = np.random.default_rng(options.seed).choice(len(instances), options.examples, replace=False)
        instances = [instances[index] for index in sorted(drawn.tolist())]
    rows, left_out = own_answers(setting, instances)
    fisher = diagonal_fisher(model, rows, names, progress=setting.progress)
    with atomic_folder(folder) as temporary:
        save_file(fisher, temporary / "fisher.safetensors")
        write_json(temporary / "key.json", {"key": key, "left_out": left_out})
    return fisher, left_out


def _contents(options: FisherBcwiConfig) -> Any:
    return [options.examples, options.seed]
