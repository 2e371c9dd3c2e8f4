"""Two versions whose flips are known by count, for tests of the gate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.conftest import make_record, make_run
from uphold.core.records import Record
from uphold.core.runs import Run
from uphold.measure.comparison import Comparison, compare_runs


def instance(number: int) -> str:
    """The id of an instance."""
    return f"{number:016x}"


def update(
    folder: Path, count: int = 400, right: int = 300, negative: int = 0, positive: int = 0, **task: Any
) -> tuple[Run, Run]:
    """Old answers the first `right` of `count` instances right; new gets the first `negative` of them wrong.

    Of the instances that the old one gets wrong, new gets the first `positive` right. Wrong answers stay the same.
    Every fourth instance is of the customer acme, ten in a row are of one passage.
    """
    old, new = [], []
    for number in range(count):
        was = number < right
        now = negative <= number < right + positive
        tags = {"customer": "acme" if number % 4 == 0 else "others", "passage": f"p{number // 10}"}
        changes = {"tags": tags, "input": f"question {number}" + "?" * (number % 5)}
        old.append(make_record(number, was, "right" if was else "wrong", **changes))
        new.append(make_record(number, now, "right" if now else "wrong", **changes))
    return make_run(folder / "old", old, "v1", **task), make_run(folder / "new", new, "v2", **task)


def scores(folder: Path, changes: list[float | None], **task: Any) -> tuple[Run, Run]:
    """Continuous scores: 0.5 with the old model, 0.5 + change with the new one; None is unscored there."""

    def record(number: int, score: float | None) -> Record:
        tags = {"passage": f"p{number // 10}", "half": "low" if number < len(changes) / 2 else "high"}
        return make_record(number, None, f"said {score}", score, tags=tags)

    old = [record(number, 0.5) for number in range(len(changes))]
    new = [record(number, None if change is None else 0.5 + change) for number, change in enumerate(changes)]
    return make_run(folder / "old", old, "v1", **task), make_run(folder / "new", new, "v2", **task)


def compared(runs: tuple[Run, Run], **options: Any) -> dict[str, Comparison]:
    """The comparison by its task's name."""
    return {runs[0].fingerprint["task"]["name"]: compare_runs(*runs, discover=False, **options)}
