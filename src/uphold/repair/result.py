"""What a repair leaves behind: an adapter, its controls, and a comparison of each with the old model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from uphold.core.errors import DataError
from uphold.core.runs import load_run
from uphold.core.storage import read_json, write_json

if TYPE_CHECKING:
    from uphold.measure.comparison import Comparison
    from uphold.measure.rates import Rate

FILE = "repair.json"
REPAIRED = "repaired"
VALIDATION = "validation"
"""Folder of the comparisons on the validation split."""
Form = Literal["adapter", "weights", "pair"]


@dataclass(frozen=True)
class Epoch:
    """One line of a training history."""

    epoch: int
    """0 is the state before the first step."""
    train: Mapping[str, float]
    """Means over the epoch's trained tokens (`loss`, and what the method logs); empty for epoch 0."""
    validation: Mapping[str, float]
    """Means over the validation split (`accuracy`, `nfr`, `loss`), as far as measured."""
    chosen: bool = False
    """Whether the saved weights are those of this epoch."""


@dataclass(frozen=True)
class Arm:
    """One trained variant: the repair itself, or a control that shows what the repair owes to its method."""

    name: str
    """`repaired`, or the control's name."""
    label: str
    """How a table calls it."""
    comparison: Comparison
    """The old model against this arm (never the new model against it), on the test split."""
    validation: Comparison
    """The same on the validation split."""
    history: tuple[Epoch, ...]
    control: bool
    """Whether it is a control."""


class Headline(NamedTuple):
    """What an update is judged by first."""

    score: Rate
    """Accuracy of the new version, or its mean score on a continuous task."""
    nfr: Rate
    """Negative flip rate against the old version; on a continuous task the share of lower scores."""


def headline(comparison: Comparison) -> Headline:
    """Score and NFR of a comparison's new version, whichever kind of task it is."""
    if comparison.matrix is None:
        return Headline(comparison["score_new"], comparison["nfr_score"])
    return Headline(comparison["accuracy_new"], comparison["nfr"])


@dataclass(frozen=True)
class Repair:
    """A repaired update with its evidence."""

    method: str
    """Registered name, e.g. `muscle`."""
    paper: str
    before: Comparison
    """The old model against the plain update, on the test split."""
    validation: Comparison
    """The same on the validation split."""
    arms: tuple[Arm, ...]
    """The repair first, then its controls."""
    config: Mapping[str, Any]
    """The method's options, as used."""
    splits: Mapping[str, int]
    """Sizes of train, validation and test, which share no instance."""
    artifact: Path
    """The folder with what is to be deployed."""
    form: Form = "adapter"
    """What is in it: an ordinary PEFT adapter for the new base, whole weights, or a pair of models that are both
    asked."""
    notes: tuple[str, ...] = field(default=())

    @property
    def repaired(self) -> Arm:
        """The repair itself."""
        return next(arm for arm in self.arms if arm.name == REPAIRED)

    def save(self, folder: str | Path) -> Path:
        """Write everything but the artifact to `folder`, from which `load_repair` and a report can be made."""
        path = self.before.save(folder)
        self.validation.save(path / VALIDATION)
        for arm in self.arms:
            arm.comparison.new.copy_to(path / "runs" / arm.name)
            arm.validation.new.copy_to(path / VALIDATION / "runs" / arm.name)
        write_json(path / FILE, self.to_dict())
        return path

    def to_dict(self) -> dict[str, Any]:
        """Everything but records and weights, as plain JSON; the artifact is named by its folder's name."""
        return {
            "method": self.method,
            "paper": self.paper,
            "config": dict(self.config),
            "splits": dict(self.splits),
            "artifact": self.artifact.name,
            "form": self.form,
            "notes": list(self.notes),
            "arms": [
                {
                    "name": arm.name,
                    "label": arm.label,
                    "control": arm.control,
                    "comparison": arm.comparison.to_dict(),
                    "history": [
                        {
                            "epoch": entry.epoch,
                            "train": dict(entry.train),
                            "validation": dict(entry.validation),
                            "chosen": entry.chosen,
                        }
                        for entry in arm.history
                    ],
                }
                for arm in self.arms
            ],
        }

    def table(self) -> list[tuple[str, str, str, str, str]]:
        """Rows (model, accuracy or score, NFR, NFR against the plain update, NFR^mc), the header first."""
        from uphold.measure.rates import format_value

        continuous = self.before.matrix is None
        plain = headline(self.before).nfr.value
        rows = [("", "score" if continuous else "accuracy", "NFR", "relative to plain", "" if continuous else "NFR^mc")]
        old = self.before["score_old" if continuous else "accuracy_old"]
        rows.append(("old", format_value(old.value, old.unit), "", "", ""))
        columns = [("new (plain update)", self.before)] + [(arm.label, arm.comparison) for arm in self.arms]
        for label, comparison in columns:
            score, nfr = headline(comparison)
            now = nfr.value
            change = "" if not plain or now is None or comparison is self.before else f"{now / plain - 1:+.1%}"
            mc = "" if continuous else format_value(comparison["nfr_mc"].value, "share")
            rows.append((label, format_value(score.value, score.unit), format_value(now, "share"), change, mc))
        return rows

    def __str__(self) -> str:
        rows = self.table()
        widths = [max(len(row[column]) for row in rows) for column in range(5)]
        lines = [
            "  ".join([f"{row[0]:<{widths[0]}}", *(f"{row[c]:>{widths[c]}}" for c in range(1, 5))]).rstrip()
            for row in rows
        ]
        return "\n".join(lines) + "".join(f"\nnote: {note}" for note in self.notes)


def load_repair(folder: Path) -> Repair:
    """The repair saved in `folder`.

    Raises:
        DataError: there is none.
        CorruptError: its file or one of its runs does not hold what was written.
    """
    from uphold.measure.comparison import compare_runs, load_comparison

    if not (folder / FILE).is_file():
        raise DataError(f"no repair in {folder}: expected {FILE}; 'uphold repair METHOD OLD NEW' makes one")
    saved = read_json(folder / FILE)
    before, validation = load_comparison(folder), load_comparison(folder / VALIDATION)

    def against(comparison: Comparison, place: Path, name: str) -> Comparison:
        return compare_runs(comparison.old, load_run(place / "runs" / name), comparison.again, discover=False)

    arms = tuple(
        Arm(
            entry["name"],
            entry["label"],
            against(before, folder, entry["name"]),
            against(validation, folder / VALIDATION, entry["name"]),
            tuple(Epoch(**line) for line in entry["history"]),
            entry["control"],
        )
        for entry in saved["arms"]
    )
    return Repair(
        saved["method"],
        saved["paper"],
        before,
        validation,
        arms,
        saved["config"],
        saved["splits"],
        folder / saved["artifact"],
        saved["form"],
        tuple(saved["notes"]),
    )
