"""Task adapters: the same LoRA recipe for every base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uphold.core.hashing import sha256_of
from uphold.core.progress import Progress, silent
from uphold.core.storage import writable_folder, write_json
from uphold.repair.recipe import configure, recipe_for
from uphold.repair.result import Epoch
from uphold.repair.training import AdapterConfig

if TYPE_CHECKING:
    from uphold.models.load import Loaded, ModelLike
    from uphold.models.train import History
    from uphold.tasks.base import Task

FILE = "adapt.json"


@dataclass(frozen=True)
class AdaptConfig(AdapterConfig):
    """Options of `adapt`; the defaults are those of MUSCLE (Table 8)."""


@dataclass(frozen=True)
class Adaptation:
    """A trained task adapter."""

    base: str
    """The base's reference."""
    task: str
    adapter: Path
    """The adapter's folder, an ordinary PEFT adapter."""
    config: Mapping[str, Any]
    """The options, as used."""
    splits: Mapping[str, int]
    """Sizes of the task's splits."""
    history: tuple[Epoch, ...]

    @property
    def reference(self) -> str:
        """What to type for the adapted model."""
        return f"{self.base}+{self.adapter}"

    def save(self, folder: str | Path) -> Path:
        """Write what is known of the adapter, and a copy of it, to `folder`."""
        import shutil

        from uphold.core.storage import atomic_folder

        path = writable_folder(Path(folder))
        if (path / "adapter").resolve() != self.adapter.resolve():
            with atomic_folder(path / "adapter") as temporary:
                shutil.copytree(self.adapter, temporary, dirs_exist_ok=True)
        entries = asdict(self)
        entries["adapter"] = "adapter"
        write_json(path / FILE, entries)
        return path

    def __str__(self) -> str:
        chosen = next(entry for entry in self.history if entry.chosen)
        start, best = self.history[0].validation["accuracy"], chosen.validation["accuracy"]
        return (
            f"{self.base} on {self.task}: validation accuracy {start:.1%} -> {best:.1%} "
            f"(epoch {chosen.epoch} of {len(self.history) - 1})\nadapter: {self.adapter}"
        )


def adapt(
    base: ModelLike,
    task: str | Path | Task,
    *,
    out: str | Path,
    config: AdaptConfig | None = None,
    progress: Progress = silent,
) -> Adaptation:
    """Train a LoRA task adapter on all linear layers of `base` (MUSCLE, section 4 and Table 8).

    Two bases adapted with the same task and config see the same instances in the same order. An interrupted
    call that is repeated goes on where it stopped; a finished one is read from `out`.

    Args:
        base: a model reference or a loaded model.
        task: what to train for (see `uphold.load_task`); its train split is trained on, its validation split
            chooses the epoch, its test split is not looked at.
        out: the folder to write `adapter/`, `adapt.json` and the training state to.
        config: the options; those of the recipe that belongs to the task where None.
        progress: called after every step.

    Raises:
        UsageError: `base` is a pair of models, or `out` holds what something else made.
        UpholdError: see `uphold.core.errors` for what else can go wrong.
    """
    from uphold.models.adapter import base_name, save_adapter
    from uphold.models.load import check_single, load
    from uphold.models.processes import current
    from uphold.repair.out_folder import ADAPT, check_out_folder
    from uphold.tasks.base import split_sizes
    from uphold.tasks.load import load_task

    check_out_folder(Path(out), ADAPT)
    folder = writable_folder(Path(out))
    chosen = load_task(task)
    options = config or configure(AdaptConfig(), "adapt", recipe_for(chosen))
    loaded = load(base)
    check_single(loaded)
    model, history = _trained(loaded, chosen, options, folder / "training", progress)
    result = Adaptation(
        base=base_name(loaded),
        task=chosen.name,
        adapter=folder / "adapter",
        config=asdict(options),
        splits=split_sizes(chosen),
        history=epochs(history),
    )

    def save() -> None:
        save_adapter(model, loaded, result.adapter, _card(result), {"task": chosen.name, "config": asdict(options)})
        result.save(folder)

    current().once(save)
    return result


def _trained(loaded: Loaded, task: Task, config: AdaptConfig, folder: Path, progress: Progress) -> tuple[Any, History]:
    """The base with a trained adapter, and how it was trained."""
    from uphold.models.adapter import fresh_adapter
    from uphold.models.fingerprint import nameless
    from uphold.models.objective import cross_entropy
    from uphold.models.train import decisive, train
    from uphold.repair.training import Validation, training_rows
    from uphold.tasks.base import task_fingerprint

    rows = training_rows(loaded, task, "train")
    model = fresh_adapter(loaded, config.rank, config.alpha, config.dropout, config.seed)
    objective = cross_entropy(config.tokens)
    validation = Validation(task, loaded, config, objective)
    history = train(
        model,
        [(row,) for row in rows],
        objective,
        config,
        lambda epoch: validation.measure(model),
        folder,
        key=sha256_of([nameless(loaded.fingerprint), task_fingerprint(task, "train"), decisive(config)]),
        what=f"adapting {loaded.name}",
        progress=progress,
    )
    return model, history


def epochs(history: History) -> tuple[Epoch, ...]:
    """A training history with the chosen epoch marked."""
    return tuple(Epoch(**entry, chosen=entry["epoch"] == history.chosen) for entry in history.epochs)


def _card(result: Adaptation) -> str:
    from uphold.repair.card import card_header

    lines = [
        card_header(result.base),
        f"# LoRA task adapter for {result.task}",
        "",
        str(result).partition("\n")[0] + ".",
        "",
        "Options: " + ", ".join(f"{key} {value}" for key, value in result.config.items()) + ".",
    ]
    return "\n".join(lines) + "\n"
