"""What a repair leaves behind: an adapter, its controls, and a comparison of each with the old model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uphold.core.errors import DataError
from uphold.core.runs import load_run
from uphold.core.storage import read_json, write_json

if TYPE_CHECKING:
    from uphold.measure.comparison import Comparison

FILE = "repair.json"
REPAIRED = "repaired"


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
    """The old model against this arm (never the new model against it)."""
    history: tuple[Epoch, ...]
    control: bool
    """Whether it is a control."""


@dataclass(frozen=True)
class Repair:
    """A repaired update with its evidence."""

    method: str
    """Registered name, e.g. `muscle`."""
    paper: str
    before: Comparison
    """The old model against the plain update."""
    arms: tuple[Arm, ...]
    """The repair first, then its controls."""
    config: Mapping[str, Any]
    """The method's options, as used."""
    splits: Mapping[str, int]
    """Sizes of train, validation and test, which share no instance."""
    adapter: Path
    """The adapter's folder; an ordinary PEFT adapter for the new base."""
    notes: tuple[str, ...] = field(default=())

    @property
    def repaired(self) -> Arm:
        """The repair itself."""
        return next(arm for arm in self.arms if arm.name == REPAIRED)

    def save(self, folder: str | Path) -> Path:
        """Write everything but the adapter to `folder`, from which `load_repair` and a report can be made."""
        path = self.before.save(folder)
        for arm in self.arms:
            arm.comparison.new.copy_to(path / "runs" / arm.name)
        write_json(path / FILE, self.to_dict())
        return path

    def to_dict(self) -> dict[str, Any]:
        """Everything but records and weights, as plain JSON; the adapter is named by its folder's name."""
        return {
            "method": self.method,
            "paper": self.paper,
            "config": dict(self.config),
            "splits": dict(self.splits),
            "adapter": self.adapter.name,
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
        accuracy, nfr = ("score_new", "nfr_score") if continuous else ("accuracy_new", "nfr")
        plain = self.before[nfr].value
        rows = [("", "score" if continuous else "accuracy", "NFR", "relative to plain", "" if continuous else "NFR^mc")]
        old = self.before["score_old" if continuous else "accuracy_old"]
        rows.append(("old", format_value(old.value, old.unit), "", "", ""))
        columns = [("new (plain update)", self.before)] + [(arm.label, arm.comparison) for arm in self.arms]
        for label, comparison in columns:
            now = comparison[nfr].value
            change = "" if not plain or now is None or comparison is self.before else f"{now / plain - 1:+.1%}"
            mc = "" if continuous else format_value(comparison["nfr_mc"].value, "share")
            score = comparison[accuracy]
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
    before = load_comparison(folder)
    arms = tuple(
        Arm(
            entry["name"],
            entry["label"],
            compare_runs(before.old, load_run(folder / "runs" / entry["name"]), before.again, discover=False),
            tuple(Epoch(**line) for line in entry["history"]),
            entry["control"],
        )
        for entry in saved["arms"]
    )
    return Repair(
        saved["method"],
        saved["paper"],
        before,
        arms,
        saved["config"],
        saved["splits"],
        folder / saved["adapter"],
        tuple(saved["notes"]),
    )
