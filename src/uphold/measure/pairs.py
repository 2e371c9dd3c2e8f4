"""Two runs joined on instance id, as arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uphold.core.errors import EmptyError, NotComparableError
from uphold.core.runs import Run, run_key

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Pairs:
    """The scored instances of two runs, in the order of their ids. All arrays have shape (n,)."""

    old_correct: Bools | None
    """None when the task has continuous scores only."""
    new_correct: Bools | None
    same_answer: Bools
    """Whether both models gave the same answer, right or wrong."""
    old_score: Floats
    new_score: Floats
    unscored: int = 0
    """Instances left out because one of the models has no score there."""

    def __len__(self) -> int:
        return len(self.same_answer)


def check_comparable(old: Run, new: Run) -> list[str]:
    """Remarks on how two comparable runs still differ (kernel, dtype, library versions).

    Raises:
        NotComparableError: they are the same run, or did not answer the same questions in the same way.
    """
    if run_key(old.fingerprint) == run_key(new.fingerprint):
        raise NotComparableError(
            f"'{old.name}' and '{new.name}' are one and the same run (equal weights, task and settings): "
            "name two different versions"
        )
    old_task, new_task = (dict(run.fingerprint["task"]) for run in (old, new))
    differing = [
        f"{key} ({_short(old_task.get(key))} against {_short(new_task.get(key))})"
        for key in sorted(old_task.keys() | new_task.keys())
        if key != "name" and old_task.get(key) != new_task.get(key)
    ]
    if differing:
        raise NotComparableError(
            f"the runs of '{old.name}' and '{new.name}' are not comparable, they differ in "
            f"{', '.join(differing)}: evaluate both on the same task"
        )
    return [
        f"the runs differ in {where}.{key}: {_short(ours)} (old) against {_short(theirs)} (new)"
        for where, keys in (("model", ("dtype", "attention", "device")), ("batching", None), ("versions", None))
        for key, ours, theirs in _differences(old.fingerprint, new.fingerprint, where, keys)
    ]


def _differences(
    old: Mapping[str, Any], new: Mapping[str, Any], where: str, keys: tuple[str, ...] | None
) -> Iterator[tuple[str, object, object]]:
    ours, theirs = old.get(where, {}), new.get(where, {})
    for key in keys or sorted(ours.keys() | theirs.keys()):
        if ours.get(key) != theirs.get(key):
            yield key, ours.get(key), theirs.get(key)


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 24 else text[:12] + "…"


def join(old: Run, new: Run) -> Pairs:
    """Join two runs on instance id.

    Raises:
        NotComparableError: an id is in one run only.
        EmptyError: no instance is scored in both.
    """
    import duckdb

    with duckdb.connect() as connection:
        connection.execute("SET enable_progress_bar = false")
        columns = connection.execute(_JOIN, [str(old.records_path), str(new.records_path)]).fetchnumpy()
    lonely = int(columns["lonely"].sum())
    if lonely:
        raise NotComparableError(
            f"{lonely} instances were answered by only one of '{old.name}' and '{new.name}': "
            "evaluate both on the same instances"
        )
    scored = columns["scored"]
    if not scored.any():
        raise EmptyError(f"no instance is scored in both '{old.name}' and '{new.name}': nothing to compare")
    judged = bool(columns["judged"][scored].all())
    return Pairs(
        old_correct=columns["old_correct"][scored] if judged else None,
        new_correct=columns["new_correct"][scored] if judged else None,
        same_answer=columns["same_answer"][scored],
        old_score=columns["old_score"][scored],
        new_score=columns["new_score"][scored],
        unscored=int((~scored).sum()),
    )


# No column may hold NULL: DuckDB then hands over plain arrays instead of masked ones.
_JOIN = """
SELECT o.id IS NULL OR n.id IS NULL AS lonely,
       coalesce(NOT isnan(o.score) AND NOT isnan(n.score), false) AS scored,
       o.correct IS NOT NULL AND n.correct IS NOT NULL AS judged,
       coalesce(o.correct, false) AS old_correct, coalesce(n.correct, false) AS new_correct,
       coalesce(o.score, 0) AS old_score, coalesce(n.score, 0) AS new_score,
       coalesce(o.answer = n.answer, false) AS same_answer
FROM read_parquet(?) o FULL OUTER JOIN read_parquet(?) n USING (id)
ORDER BY coalesce(o.id, n.id)
"""
