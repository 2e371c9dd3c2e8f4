"""What a search for a merge's strength found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from uphold.core.text import one_line
from uphold.measure.rates import format_value
from uphold.merge.engine.search_choice import Trial, shown
from uphold.merge.engine.synergy_result import aligned


@dataclass(frozen=True)
class Search:
    """All candidates on the validation split, and the one that was chosen."""

    key: str
    """Hash of what was searched over which models and tasks."""
    tasks: tuple[str, ...]
    reference: str
    """The model against which negative flips count."""
    instances: int
    """Of the validation splits."""
    trials: tuple[Trial, ...]
    chosen: int
    """Number of the chosen one in `trials`."""

    @property
    def values(self) -> dict[str, Any]:
        """The chosen values."""
        return dict(self.trials[self.chosen].values)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "key": self.key,
            "tasks": list(self.tasks),
            "split": "validation",
            "reference": self.reference,
            "instances": self.instances,
            "trials": [one.to_dict() for one in self.trials],
            "chosen": self.values,
        }

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Search:
        """What `to_dict` gave."""
        trials = tuple(Trial.from_dict(one) for one in saved["trials"])
        chosen = next(number for number, one in enumerate(trials) if dict(one.values) == saved["chosen"])
        return cls(saved["key"], tuple(saved["tasks"]), saved["reference"], saved["instances"], trials, chosen)

    def __str__(self) -> str:
        """For people."""
        names = list(self.trials[0].values)
        rows: list[Sequence[str]] = [(*names, "accuracy", "NFR", "asked", "")]
        for number, one in enumerate(self.trials):
            scores = (format_value(one.score, "share"), format_value(one.nfr, "share"), f"{one.asked:,}")
            last = f"given up: {one.stopped}" if one.stopped else "chosen" if number == self.chosen else ""
            rows.append((*(shown(value) for value in one.values.values()), *scores, last))
        tasks = ", ".join(map(one_line, self.tasks))
        head = (
            f"search on the validation split of {tasks} ({self.instances:,} instances), negative flips against "
            f"{one_line(self.reference, len(self.reference))}"
        )
        return "\n".join([head, *aligned(rows, {len(rows[0]) - 1})])
