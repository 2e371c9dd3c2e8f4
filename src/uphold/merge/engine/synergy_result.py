"""A merge against each of its models, in numbers and in tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from uphold.core import stats
from uphold.core.storage import write_json
from uphold.core.text import one_line
from uphold.measure.comparison import Comparison
from uphold.measure.rates import format_value
from uphold.measure.several import folder_name

FILE = "synergy.json"
COMPARISONS = "comparisons"
_CONTINUOUS = ("score_old", "score_new", "mean_difference", "nfr_score")
"""What stands for accuracies, gain and NFR where scores are continuous."""


@dataclass(frozen=True)
class Against:
    """A merge against one of its models, on one task."""

    task: str
    model: str
    role: str
    """`base`, `parent`, or both."""
    comparison: Comparison | None
    """The merge is its new version; None where both are one and the same model."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        known = self.comparison.to_dict() if self.comparison is not None else None
        return {"task": self.task, "model": self.model, "role": self.role, "comparison": known}

    def cells(self) -> tuple[str, ...]:
        """A row of the table, without the p-values."""
        # In full: two adapters of one base differ at the end.
        where = (one_line(self.task), one_line(self.model, len(self.model)), self.role)
        if self.comparison is None:
            return (*where, *[""] * 5, "the same model")
        one = self.comparison
        names = ("accuracy_old", "accuracy_new", "gain", "nfr") if one.matrix else _CONTINUOUS
        old, new, gain, nfr = (one[name] for name in names)
        flips = one.matrix.negative_flips if one.matrix else round((nfr.value or 0.0) * one.count)
        values = (format_value(rate.value, rate.unit) for rate in (old, new))
        return (
            *where,
            *values,
            _signed(gain.value, gain.unit),
            f"{flips:,}",
            format_value(nfr.value, nfr.unit),
            _range(nfr.low, nfr.high, nfr.unit),
        )


@dataclass(frozen=True)
class TaskSynergy:
    """Scores of a merge and of its models on one task."""

    task: str
    count: int
    """Instances that all of them have a score on."""
    merged: float
    """Accuracy, or the mean score where answers are not right or wrong."""
    parents: tuple[float, ...]
    base: float | None
    low: float | None
    """Lower end of the 95% interval of `synergy`: the paired bootstrap over instances; None for a single instance."""
    high: float | None

    @property
    def expected(self) -> float:
        """The mean of the parents' scores."""
        return math.fsum(self.parents) / len(self.parents)

    @property
    def synergy(self) -> float:
        """S: the merge's score less the mean of its parents'."""
        return self.merged - self.expected

    @property
    def over_best(self) -> float:
        """R: the merge's score less that of the parent that is best on these instances."""
        return self.merged - max(self.parents)

    @property
    def relative_gain(self) -> float | None:
        """The merge's score over the base's, less 1; None without a base, or where it scores 0."""
        return self.merged / self.base - 1 if self.base else None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        own = {"expected": self.expected, "synergy": self.synergy, "over_best": self.over_best}
        return {**asdict(self), "parents": list(self.parents), **own, "relative_gain": self.relative_gain}


@dataclass(frozen=True)
class Mean:
    """The mean over several tasks. The interval is over instances: other tasks could give anything."""

    synergy: float
    low: float | None
    high: float | None
    over_best: float
    relative_gain: float | None
    """None where one of the tasks has none."""


@dataclass(frozen=True)
class Synergy:
    """A merge against all of its models, on one task or several."""

    merged: str
    """As it was named."""
    against: tuple[Against, ...]
    """By task, the base first, then the parents."""
    tasks: tuple[TaskSynergy, ...]
    mean: Mean | None
    """None for a single task."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "merged": self.merged,
            "against": [one.to_dict() for one in self.against],
            "synergy": [one.to_dict() for one in self.tasks],
            "mean": asdict(self.mean) if self.mean is not None else None,
        }

    def save(self, folder: str | Path) -> list[Path]:
        """Write `synergy.json`, and every comparison to `comparisons/MODEL/TASK`, as `uphold compare` would.

        Returns:
            The folders of the comparisons.

        Raises:
            StorageError: the disk refused a write.
        """
        root = Path(folder)
        made = [
            one.comparison.save(root / COMPARISONS / folder_name(one.model) / folder_name(one.task))
            for one in self.against
            if one.comparison is not None
        ]
        write_json(root / FILE, self.to_dict())
        return made

    def __str__(self) -> str:
        """For people."""
        return "\n".join([*self._table(), "", *self._scores()])

    def _table(self) -> list[str]:
        tests = [one.comparison.test.p for one in self.against if one.comparison is not None]
        corrected = iter(zip(tests, stats.benjamini_hochberg(tests), strict=True) if tests else ())
        rows: list[Sequence[str]] = [
            ("task", "against", "as", "score", "merge", "gain", "negative flips", "NFR", "95% interval", "p", "q")
        ]
        for one in self.against:
            last = [f"{value:.3g}" for value in next(corrected)] if one.comparison is not None else [""]
            rows.append((*one.cells(), *last))
        return aligned(rows, {0, 1, 2, 8})

    def _scores(self) -> list[str]:
        head = ("task", "instances", "merge", "mean of parents", "S", "95% interval", "R to the best", "over the base")
        rows: list[Sequence[str]] = [head]
        for one in self.tasks:
            scores = (format_value(value, "share") for value in (one.merged, one.expected))
            rows.append((one_line(one.task), f"{one.count:,}", *scores, *_shown(one)))
        if self.mean is not None:
            rows.append(("mean", "", "", "", *_shown(self.mean)))
        return aligned(rows, {0, 5})


def _shown(one: TaskSynergy | Mean) -> tuple[str, ...]:
    gain = "" if one.relative_gain is None else _signed(one.relative_gain, "share")
    best = _signed(one.over_best, "share")
    return _signed(one.synergy, "share"), _range(one.low, one.high, "share"), best, gain


def _signed(value: float | None, unit: str) -> str:
    return ("+" if value is not None and value > 0 else "") + format_value(value, unit)


def _range(low: float | None, high: float | None, unit: str) -> str:
    return "" if low is None else f"[{format_value(low, unit)}, {format_value(high, unit)}]"


def aligned(rows: Sequence[Sequence[str]], left: set[int]) -> list[str]:
    """Rows in columns; those in `left` begin, the others end, under one another."""
    widths = [max(len(row[column]) for row in rows if len(row) > column) for column in range(len(rows[0]))]
    return [
        "  ".join(
            text.ljust(width) if column in left else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=False))
        ).rstrip()
        for row in rows
    ]
