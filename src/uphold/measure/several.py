"""Comparisons of one update on several tasks: kept in one folder, shown in one table."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from uphold.core import stats
from uphold.core.errors import DataError
from uphold.core.hashing import sha256_of
from uphold.core.storage import unreadable, writable_folder
from uphold.core.text import one_line
from uphold.measure.comparison import FILE, Comparison, load_comparison
from uphold.measure.rates import format_value

RUNS = "runs"
"""Inside a comparison's folder, the one with its runs."""


def save_comparisons(comparisons: Mapping[str, Comparison], folder: str | Path) -> dict[str, Path]:
    """Write every comparison, and return where: a single one to `folder` itself, several to folders inside it.

    Raises:
        StorageError: the disk refused a write.
    """
    root = writable_folder(Path(folder))
    if len(comparisons) == 1:
        return {name: comparison.save(root) for name, comparison in comparisons.items()}
    return {name: comparison.save(root / folder_name(name)) for name, comparison in comparisons.items()}


def folder_name(task: str) -> str:
    """A folder's name for a task's, the same every time; two tasks never share one."""
    plain = re.sub(r"[^\w.+-]+", "-", task).strip("-.")[:80]
    return plain if plain and plain == task != RUNS else f"{plain or 'task'}-{sha256_of(task)[:8]}"


def load_comparisons(folder: str | Path) -> dict[str, Comparison]:
    """The comparisons saved in `folder` or below it, by the names of their tasks.

    Raises:
        DataError: there is none, or two are of one task.
        CorruptError: one of them does not hold what was written.
    """
    root = Path(folder)
    found: dict[str, Comparison] = {}
    for path in comparison_folders(root):
        comparison = load_comparison(path)
        name = comparison.old.task
        if name in found:
            raise DataError(f"{root} holds two comparisons of the task '{name}': name the folder of one of them")
        found[name] = comparison
    if not found:
        raise DataError(
            f"no comparison in {root} or below it: expected {FILE}; 'uphold compare OLD NEW --out {root}' makes one"
        )
    return found


def comparison_folders(root: Path) -> list[Path]:
    """Every folder with a saved comparison, `root` included; links are not followed, stored runs not entered.

    Raises:
        DataError: a folder cannot be read.
    """
    found = []
    for folder, below, names in os.walk(root, onerror=unreadable):
        below[:] = sorted(name for name in below if not name.startswith(".") and name != RUNS)
        if FILE in names:
            found.append(Path(folder))
    return found


def overview(comparisons: Mapping[str, Comparison]) -> list[str]:
    """One line per task: scores, negative flips with their interval, and the paired test corrected for all tasks.

    The last column is the Benjamini-Hochberg q-value over the tasks (Benjamini and Hochberg, JRSS B 1995).
    """
    q_values = stats.benjamini_hochberg([comparison.test.p for comparison in comparisons.values()])
    rows: list[Sequence[str]] = [("task", "instances", "old", "new", "NFR", "95% interval", "noise floor", "p", "q")]
    for (name, comparison), q in zip(comparisons.items(), q_values, strict=True):
        judged = comparison.matrix is not None
        old, new, nfr = (
            comparison[rate] for rate in (("accuracy_old", "accuracy_new", "nfr") if judged else CONTINUOUS)
        )
        interval = "" if nfr.low is None else f"[{format_value(nfr.low, nfr.unit)}, {format_value(nfr.high, nfr.unit)}]"
        rows.append(
            (
                one_line(name),
                f"{comparison.count:,}",
                format_value(old.value, old.unit),
                format_value(new.value, new.unit),
                format_value(nfr.value, nfr.unit),
                interval,
                "" if nfr.floor is None else format_value(nfr.floor, nfr.unit),
                f"{comparison.test.p:.3g}",
                f"{q:.3g}",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            text.ljust(width) if column in (0, 5) else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


CONTINUOUS = ("score_old", "score_new", "nfr_score")
"""What stands for accuracies and NFR where scores are continuous."""
