"""Repair by training: one protocol for a method and its controls.

Every arm starts from the same copy of the new model, sees the same instances in the same order for the same
number of steps, chooses its epoch by the same rule, and is compared with the old model on the same test split.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from uphold.core.errors import UsageError
from uphold.core.hashing import sha256_of
from uphold.core.progress import Progress, silent
from uphold.core.runs import RunStore
from uphold.core.storage import writable_folder, write_text
from uphold.measure.compare import compare
from uphold.measure.comparison import Comparison, compare_runs
from uphold.measure.evaluate import evaluate
from uphold.models.adapter import adapted, base_name, save_adapter, trainable_copy
from uphold.models.load import Loaded, ModelLike, check_same_tokenizer, load
from uphold.models.train import NFR_TOLERANCE, History, Objective, train
from uphold.repair.adapt import epochs
from uphold.repair.card import repair_card
from uphold.repair.result import REPAIRED, Arm, Repair
from uphold.repair.training import AdapterConfig, Validation, training_rows, validation_scores
from uphold.tasks.base import Task, split_sizes, task_fingerprint

WORSE_MARGIN = 0.02
"""A new model whose validation accuracy is lower than the old one's by more than this is refused."""


@dataclass(frozen=True)
class ArmSpec:
    """One arm to train."""

    name: str
    label: str
    objective: Callable[[Loaded, Loaded], Objective]
    """From the frozen old and new model to the loss."""
    control: bool = False


def run_repair(
    method: str,
    paper: str,
    old: ModelLike,
    new: ModelLike,
    task: Task,
    arms: Sequence[ArmSpec],
    *,
    out: Path,
    config: AdapterConfig,
    force: bool = False,
    store: RunStore | None = None,
    progress: Progress = silent,
) -> Repair:
    """Measure the plain update, train every arm, measure each, and save it all to `out`.

    Args:
        method: registered name.
        paper: its source.
        old: the version that users have.
        new: the version that is to replace it.
        task: gives train, validation and test instances.
        arms: the method first, then its controls.
        out: gets `adapter/`, `controls/`, `training/`, `runs/`, `comparison.json` and `repair.json`.
        config: schedule and adapter shape, the same for all arms.
        force: go on although the new model is worse than the old one.
        store: where runs are kept.
        progress: called while models are trained and evaluated.
    """
    folder = writable_folder(out)
    frozen_old, frozen_new = load(old), load(new)
    check_same_tokenizer(frozen_old, frozen_new)
    before = compare(frozen_old, frozen_new, task, store=store, progress=progress)
    old_scores = validation_scores(frozen_old, task, store, progress, "old model on validation")
    new_scores = validation_scores(frozen_new, task, store, progress, "new model on validation")
    _check_gain(sum(old_scores.values()) / len(old_scores), sum(new_scores.values()) / len(new_scores), force)
    measured = []
    for spec in arms:
        history, trained = _train_arm(spec, method, frozen_old, frozen_new, task, old_scores, folder, config, progress)
        run = evaluate(trained, task, store=store, progress=progress, what=f"{spec.label} on test")
        measured.append((spec, history, compare_runs(before.old, run, before.again, discover=False)))
    repair = Repair(
        method=method,
        paper=paper,
        before=before,
        arms=tuple(
            Arm(spec.name, spec.label, comparison, epochs(history), spec.control)
            for spec, history, comparison in measured
        ),
        config=asdict(config),
        splits=split_sizes(task),
        adapter=folder / "adapter",
        notes=(*task.notes, *_notes(measured)),
    )
    repair.save(folder)
    write_text(repair.adapter / "README.md", repair_card(repair, base_name(frozen_new)))
    return repair


def _check_gain(old: float, new: float, force: bool) -> None:
    if new < old - WORSE_MARGIN and not force:
        raise UsageError(
            f"the new model is worse than the old one on validation ({new:.1%} against {old:.1%}): repairing would "
            "make it a copy of the old one; improve the update first, or go on with --force (force=True)"
        )


def _train_arm(
    spec: ArmSpec,
    method: str,
    old: Loaded,
    new: Loaded,
    task: Task,
    old_scores: dict[str, float],
    folder: Path,
    config: AdapterConfig,
    progress: Progress,
) -> tuple[History, Loaded]:
    """Train one arm, or read it from `folder` when it is there; returns the model with its chosen epoch's weights."""
    student = trainable_copy(new, config.rank, config.alpha, config.dropout, config.seed)
    objective = spec.objective(old, new)
    validation = Validation(task, new, config, objective, old_scores)
    history = train(
        student,
        training_rows(new, task, "train"),
        objective,
        config,
        lambda epoch: validation.measure(student),
        folder / "training" / spec.name,
        key=sha256_of(
            [
                method,
                spec.name,
                [{k: v for k, v in one.fingerprint.items() if k != "name"} for one in (old, new)],
                [task_fingerprint(task, split) for split in ("train", "validation")],
                asdict(config),
            ]
        ),
        what=spec.label,
        progress=progress,
    )
    place = folder / "adapter" if spec.name == REPAIRED else folder / "controls" / spec.name
    facts = {"method": method, "arm": spec.name, "task": task.name, "config": asdict(config)}
    card = f"# {spec.label}\n\nAdapter for `{base_name(new)}`.\n"
    save_adapter(student, new, place, card, facts)
    return history, adapted(student, new, place, f"{base_name(new)}+{place}")


def _notes(measured: Sequence[tuple[ArmSpec, History, Comparison]]) -> list[str]:
    """Warn of a repair that its own validation does not bear out."""
    notes = []
    for spec, history, _ in measured:
        start, chosen = (history.epochs[epoch]["validation"] for epoch in (0, history.chosen))
        if spec.control:
            continue
        if chosen["nfr"] >= start["nfr"] or chosen["accuracy"] < start["accuracy"] - NFR_TOLERANCE:
            notes.append(
                f"{spec.label} did not help on validation (NFR {start['nfr']:.2%} -> {chosen['nfr']:.2%}, accuracy "
                f"{start['accuracy']:.2%} -> {chosen['accuracy']:.2%}): ship the plain update, or train longer"
            )
    return notes
