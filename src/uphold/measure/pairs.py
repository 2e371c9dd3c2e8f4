"""Two runs joined on instance id: what there is to count, counted out of core."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uphold.core import stats
from uphold.core.errors import DataError, EmptyError, NotComparableError
from uphold.core.runs import Run
from uphold.core.stats import Floats, Ints
from uphold.measure.joined import joined

Bools = NDArray[np.bool_]

CELLS = 8
"""A pair falls into one of eight cells: 4·(old right) + 2·(new right) + (same answer)."""
TIE = 1e-9
"""Score differences up to this count as ties: sums of floats in another order must not look like flips."""
SUMS = ("count", "old", "new", "difference", "losses", "gains", "loss", "gain")
"""Columns of `Pairs.cluster_sums`: instances, scores, D = new - old, how many D < 0 and D > 0, and the sums of |D|
where D < 0 and where D > 0."""


@dataclass(frozen=True)
class Moment:
    """Mean and sample variance (n - 1) of a quantity; both 0 where nothing was counted."""

    n: int
    mean: float
    variance: float


@dataclass(frozen=True, eq=False)
class Arrays:
    """The scored instances of two runs in the order of their ids. All arrays have shape (n,)."""

    old_score: Floats
    new_score: Floats
    same_answer: Bools
    """Whether both models gave the same answer, right or wrong."""
    old_correct: Bools | None = None
    """None when the task has continuous scores only."""
    new_correct: Bools | None = None


@dataclass(frozen=True, eq=False)
class Pairs:
    """The scored instances of two runs, in counts and moments; per instance only when asked for."""

    count: int
    """Instances scored in both runs; also `len(pairs)`."""
    unscored: int
    """Instances left out because one of the models has no score there."""
    judged: bool
    """Whether answers are right or wrong; otherwise the task has continuous scores only."""
    cells: Ints | None
    """How many pairs fall into each of the eight cells (`CELLS`), shape (8,); None when not judged."""
    moments: Mapping[str, Moment]
    """Of `old` and `new` scores and their `difference`; of |D| over the instances with a `loss`, and with a `gain`."""
    graded: bool
    """Whether scores say more than right and wrong: they move where answers do not, or the other way round."""
    read: Callable[[], Arrays]
    """Reads the instances; called once, by the first of the array properties below."""
    old_only: int = 0
    """Instances of the old run alone, left out."""
    new_only: int = 0
    """Instances of the new run alone, left out."""
    cluster_cells: Ints | None = None
    """`cells` of each of G clusters, shape (G, 8); None when not judged, or not joined with a cluster."""
    cluster_sums: Floats | None = None
    """Sums over each of G clusters, shape (G, 8), columns `SUMS`; None when not joined with a cluster."""

    def __len__(self) -> int:
        return self.count

    @property
    def clusters(self) -> int:
        """How many clusters there are; every instance is one of its own when not joined with a cluster."""
        return self.count if self.cluster_sums is None else len(self.cluster_sums)

    @property
    def independent(self) -> int:
        """How many independent instances would know the NFR as well; all of them when not joined with a cluster."""
        if self.cluster_sums is None:
            return self.count
        losses = self.cluster_sums[:, SUMS.index("losses")]
        if self.cluster_cells is not None:
            losses = self.cluster_cells[:, 4:6].sum(axis=1)
        size = stats.clustered_share(losses, self.cluster_sums[:, SUMS.index("count")]).effective_size
        return max(1, round(size or 1))

    @cached_property
    def arrays(self) -> Arrays:
        """All instances in memory: about 20 bytes each."""
        return self.read()

    @property
    def old_score(self) -> Floats:
        """Scores of the old model in [0, 1], shape (n,), in the order of the ids."""
        return self.arrays.old_score

    @property
    def new_score(self) -> Floats:
        """Scores of the new model, as `old_score`."""
        return self.arrays.new_score

    @property
    def same_answer(self) -> Bools:
        """Whether both models gave the same answer, shape (n,)."""
        return self.arrays.same_answer

    @property
    def old_correct(self) -> Bools | None:
        """Whether the old model was right, shape (n,); None when the task has continuous scores only."""
        return self.arrays.old_correct

    @property
    def new_correct(self) -> Bools | None:
        """Whether the new model was right, as `old_correct`."""
        return self.arrays.new_correct


def pairs_of(arrays: Arrays, clusters: Ints | None = None) -> Pairs:
    """Pairs of instances that are in memory already.

    Args:
        arrays: one entry per scored instance.
        clusters: the number of each instance's cluster, 0 to G - 1, shape (n,).
    """
    old, new = arrays.old_score, arrays.new_score
    difference = new - old
    losses, gains = difference < -TIE, difference > TIE
    judged = arrays.old_correct is not None and arrays.new_correct is not None
    codes: Ints | None = None
    graded = True
    if arrays.old_correct is not None and arrays.new_correct is not None:
        codes = 4 * arrays.old_correct + 2 * arrays.new_correct + arrays.same_answer
        turned = arrays.new_correct.astype(int) - arrays.old_correct
        follows = bool(np.array_equal(turned, gains.astype(int) - losses))
        graded = _graded(bool(np.isin([old, new], (0.0, 1.0)).all()), follows, bool(turned.any()))
    sums: Floats | None = None
    cluster_cells: Ints | None = None
    if clusters is not None:
        total = int(clusters.max()) + 1
        columns = (np.ones(len(old)), old, new, difference, losses, gains, -difference * losses, difference * gains)
        sums = np.stack([np.bincount(clusters, weights=column, minlength=total) for column in columns], axis=1)
        if codes is not None:
            cluster_cells = np.bincount(CELLS * clusters + codes, minlength=CELLS * total).reshape(total, CELLS)
    moments = {"old": old, "new": new, "difference": difference, "loss": -difference[losses], "gain": difference[gains]}
    return Pairs(
        count=len(old),
        unscored=0,
        judged=judged,
        cells=np.bincount(codes, minlength=CELLS) if codes is not None else None,
        moments={name: _moment(values) for name, values in moments.items()},
        graded=graded,
        read=lambda: arrays,
        cluster_cells=cluster_cells,
        cluster_sums=sums,
    )


def _moment(values: Floats) -> Moment:
    n = len(values)
    return Moment(n, float(values.mean()) if n else 0.0, float(values.var(ddof=1)) if n > 1 else 0.0)


def _graded(binary: bool, follows: bool, turned: bool) -> bool:
    # Two runs without a flip (the noise floor of a task with partial credit) have to show their zeros.
    return not (binary or (follows and turned))


def join(old: Run, new: Run, allow_mismatch: bool = False, cluster: str | None = None) -> Pairs:
    """Join two runs on instance id.

    The instances stay on disk: memory does not grow with their number, but with that of the clusters.

    Args:
        old: the run of the version that users have.
        new: the run of the version that is to replace it.
        allow_mismatch: leave out instances that only one of the runs has, instead of refusing.
        cluster: tag by which instances are not independent (a document, a user); the old run's tags count.

    Raises:
        NotComparableError: an instance is in one run only, or none is in both.
        EmptyError: no instance is scored in both.
        DataError: an instance lacks the tag `cluster`, or all have the same value of it.
    """
    with joined(old, new) as connection:
        groups = [_Group(*row) for row in connection.execute(_GROUPS).fetchall()]
        counts = {state: sum(group.count for group in groups if group.state == state) for state in _STATES}
        _check_counts(counts, old, new, allow_mismatch)
        grouped: Mapping[str, NDArray[Any]] = {}
        if cluster is not None:
            grouped = connection.execute(_CLUSTERS, [cluster]).fetchnumpy()
            _check_tag(connection, grouped, cluster)
    scored = [group for group in groups if group.state == "scored"]
    judged = all(group.judged for group in scored)
    return Pairs(
        count=counts["scored"],
        unscored=counts["unscored"],
        judged=judged,
        cells=_cells(scored) if judged else None,
        moments=_moments(scored),
        graded=not judged
        or _graded(
            all(group.binary for group in scored),
            all(group.turned == group.direction for group in scored),
            any(group.turned for group in scored),
        ),
        read=lambda: _read(old, new, judged),
        old_only=counts["old only"],
        new_only=counts["new only"],
        cluster_cells=_stacked(grouped, (f"cell_{cell}" for cell in range(CELLS))) if grouped and judged else None,
        cluster_sums=_stacked(grouped, SUMS).astype(float) if grouped else None,
    )


_STATES = ("scored", "unscored", "old only", "new only")


@dataclass(frozen=True)
class _Group:
    """Instances that are alike in everything but the size of their scores."""

    state: str
    judged: bool
    cell: int
    binary: bool
    direction: int
    count: int
    old: float
    old_variance: float
    new: float
    new_variance: float
    difference: float
    difference_variance: float

    @property
    def turned(self) -> int:
        """1 where the answer was mended, -1 where it was broken, 0 else."""
        return (self.cell >> 1 & 1) - (self.cell >> 2)


def _check_counts(counts: Mapping[str, int], old: Run, new: Run, allow_mismatch: bool) -> None:
    here, there = counts["old only"], counts["new only"]
    if here + there and not allow_mismatch:
        raise NotComparableError(
            f"not the same instances: {here} of '{old.name}' are not in '{new.name}', and {there} of '{new.name}' "
            f"not in '{old.name}': evaluate both on the same instances, or leave these out with --allow-mismatch"
        )
    if not counts["scored"] + counts["unscored"]:
        raise NotComparableError(f"'{old.name}' and '{new.name}' have no instance in common: nothing to compare")
    if not counts["scored"]:
        raise EmptyError(f"no instance is scored in both '{old.name}' and '{new.name}': nothing to compare")


def _check_tag(connection: Any, grouped: Mapping[str, NDArray[Any]], cluster: str) -> None:
    missing = int(grouped["count"][grouped["missing"]].sum())
    if missing:
        known = [name for (name,) in connection.execute(_TAGS).fetchall()]
        raise DataError(
            f"{missing} of {int(grouped['count'].sum())} instances lack the tag '{cluster}' that says which belong "
            f"together; tags that there are: {', '.join(known) or 'none'}"
        )
    if len(grouped["count"]) < 2:
        raise DataError(
            f"all {int(grouped['count'].sum())} instances have the same value of the tag '{cluster}': intervals by "
            "cluster need at least two, choose another tag"
        )


def _cells(groups: Iterable[_Group]) -> Ints:
    cells = np.zeros(CELLS, dtype=np.int64)
    for group in groups:
        cells[group.cell] += group.count
    return cells


def _moments(groups: list[_Group]) -> dict[str, Moment]:
    losses = [group for group in groups if group.direction < 0]
    gains = [group for group in groups if group.direction > 0]
    return {
        "old": _pooled((group.count, group.old, group.old_variance) for group in groups),
        "new": _pooled((group.count, group.new, group.new_variance) for group in groups),
        "difference": _pooled((group.count, group.difference, group.difference_variance) for group in groups),
        "loss": _pooled((group.count, -group.difference, group.difference_variance) for group in losses),
        "gain": _pooled((group.count, group.difference, group.difference_variance) for group in gains),
    }


def _pooled(parts: Iterable[tuple[int, float, float]]) -> Moment:
    """The moment of groups together, from their counts, means and population variances."""
    counts, means, variances = np.array([*parts, (0, 0.0, 0.0)]).T
    n = int(counts.sum())
    if n == 0:
        return Moment(0, 0.0, 0.0)
    mean = float(counts @ means / n)
    squares = float(counts @ (variances + (means - mean) ** 2))
    return Moment(n, mean, squares / (n - 1) if n > 1 else 0.0)


def _stacked(columns: Mapping[str, NDArray[Any]], names: Iterable[str]) -> NDArray[Any]:
    return np.stack([columns[name] for name in names], axis=1)


def _read(old: Run, new: Run, judged: bool) -> Arrays:
    with joined(old, new) as connection:
        columns = connection.execute(_ARRAYS).fetchnumpy()
    return Arrays(
        columns["old_score"],
        columns["new_score"],
        columns["same_answer"],
        columns["old_correct"] if judged else None,
        columns["new_correct"] if judged else None,
    )


_SCORED = "coalesce(NOT isnan(old_score) AND NOT isnan(new_score), false)"
_JUDGED = "(old_correct IS NOT NULL AND new_correct IS NOT NULL)"
_SAME = "coalesce(old_answer = new_answer, false)"
_CELL = f"4 * coalesce(old_correct, false)::TINYINT + 2 * coalesce(new_correct, false)::TINYINT + {_SAME}::TINYINT"
_DIRECTION = f"(new_score - old_score > {TIE})::TINYINT - (new_score - old_score < -{TIE})::TINYINT"

_GROUPS = f"""
WITH kinds AS (
    SELECT CASE WHEN old_id IS NULL THEN 'new only' WHEN new_id IS NULL THEN 'old only'
                WHEN {_SCORED} THEN 'scored' ELSE 'unscored' END AS state,
           {_JUDGED} AS judged, {_CELL} AS cell,
           coalesce(old_score IN (0, 1) AND new_score IN (0, 1), false) AS zero_or_one,
           coalesce({_DIRECTION}, 0) AS direction,
           coalesce(old_score, 0) AS a, coalesce(new_score, 0) AS b
    FROM pairs
)
SELECT state, judged, cell, zero_or_one, direction, count(*),
       avg(a), var_pop(a), avg(b), var_pop(b), avg(b - a), var_pop(b - a)
FROM kinds GROUP BY ALL ORDER BY ALL
"""

_CLUSTERS = f"""
WITH kinds AS (
    SELECT map_extract(old_tags, ?)[1] AS cluster, {_CELL} AS cell, {_DIRECTION} AS direction,
           old_score AS a, new_score AS b
    FROM pairs WHERE {_SCORED}
)
SELECT cluster IS NULL AS missing,
       {", ".join(f"count(*) FILTER (cell = {cell}) AS cell_{cell}" for cell in range(CELLS))},
       count(*) AS count, sum(a) AS old, sum(b) AS new, sum(b - a) AS difference,
       count(*) FILTER (direction < 0) AS losses, count(*) FILTER (direction > 0) AS gains,
       coalesce(sum(a - b) FILTER (direction < 0), 0) AS loss, coalesce(sum(b - a) FILTER (direction > 0), 0) AS gain
FROM kinds GROUP BY cluster ORDER BY cluster
"""

_TAGS = "SELECT DISTINCT unnest(map_keys(old_tags)) AS name FROM pairs ORDER BY name LIMIT 20"

# No column may hold NULL: DuckDB then hands over plain arrays instead of masked ones.
_ARRAYS = f"""
SELECT old_score, new_score, {_SAME} AS same_answer,
       coalesce(old_correct, false) AS old_correct, coalesce(new_correct, false) AS new_correct
FROM pairs WHERE {_SCORED} ORDER BY old_id
"""
