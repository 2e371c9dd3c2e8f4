"""The instances of a report: who flipped, what each version answered, and what the repair did about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from uphold.core.runs import Run
from uphold.measure.continuous import TIE

if TYPE_CHECKING:
    import duckdb

CODES = ("negative", "positive", "both_wrong", "both_right", "tie", "unscored")
"""Kinds of instance by their code in the queries below."""

Floats = NDArray[np.float64]


MOST_DISCS = 24
"""Up to so many different points, equal ones are spread into discs."""
DISC = 0.12
"""Radius of the largest disc, in units of the score."""


@dataclass(frozen=True)
class Answer:
    """What one version said."""

    text: str
    """The part of the output that was scored."""
    output: str
    correct: bool | None
    score: float | None
    margin: float | None
    """Log-likelihood of the gold option minus the best other one (nats); None without log-likelihoods."""


@dataclass(frozen=True)
class Instance:
    """One question with every version's answer."""

    id: str
    kind: str
    """One of `CODES`: the old model against the plain update."""
    effect: str | None
    """What the repair did, a key of `glossary.EFFECTS`; None without a repair."""
    input: str
    gold: str
    answers: tuple[Answer, ...]
    """Old, new, and repaired where there is a repair."""
    tags: Mapping[str, str]


@dataclass(frozen=True)
class Points:
    """One scatter plot: arrays of shape (n,), instances in the order of their ids."""

    old: Floats
    new: Floats
    kind: NDArray[np.int64]
    """Index into `CODES`."""
    margins: bool
    """Whether the axes are gold-option margins rather than scores."""
    missing: int
    """Scored instances that have no finite value on one of the axes."""
    spread: bool = False
    """Whether equal points are spread into discs (see `spread_out`)."""


@dataclass(frozen=True)
class Instances:
    """All that a report says about single instances."""

    rows: tuple[Instance, ...]
    """Negative flips first, then what the repair broke, positive flips, and the rest; at most the limit."""
    total: int
    kinds: Mapping[str, int]
    """How many instances of each kind there are, shown or not."""
    effects: Mapping[str, int]
    """How many instances of each effect there are; empty without a repair."""
    before: Points | None
    """None when every score is 0 or 1 and there are no log-likelihoods: a scatter would be four dots."""
    after: Points | None


def read_instances(old: Run, new: Run, repaired: Run | None, judged: bool, limit: int = 5000) -> Instances:
    """Join the runs on instance id, out of core.

    Args:
        old: the run of the old model.
        new: the run of the plain update.
        repaired: the run of the repaired update, if any.
        judged: whether answers are right or wrong; otherwise flips are rises and falls of the score.
        limit: how many instances to read with their texts.
    """
    import duckdb

    with duckdb.connect() as connection:
        connection.execute("SET enable_progress_bar = false")
        for name, run in (("old_run", old), ("new_run", new), ("repaired_run", repaired or new)):
            path = str(run.records_path).replace("'", "''")
            connection.execute(f"CREATE TEMP VIEW {name} AS SELECT * FROM read_parquet('{path}')")
        connection.execute(_FLIP_JUDGED if judged else _FLIP_SCORES)
        connection.execute(_MARGIN)
        connection.execute(_PAIRS)
        counted = connection.execute("SELECT kind, after, count(*) FROM pairs GROUP BY ALL ORDER BY ALL").fetchall()
        rows = connection.execute(_ROWS, [limit]).fetchall()
        before, after = _points(connection, repaired is not None)
    kinds: dict[str, int] = {}
    effects: dict[str, int] = {}
    for kind, later, count in counted:
        kinds[CODES[kind]] = kinds.get(CODES[kind], 0) + count
        if repaired is not None:
            effect = repair_effect(CODES[kind], CODES[later])
            effects[effect] = effects.get(effect, 0) + count
    versions = 2 if repaired is None else 3
    return Instances(
        tuple(_instance(row, versions) for row in rows), sum(kinds.values()), kinds, effects, before, after
    )


def repair_effect(kind: str, after: str) -> str:
    """What a repair did to an instance, from its kind before and after (each against the old model)."""
    if "unscored" in (kind, after):
        return "not scored"
    if kind == "negative":
        return "still broken" if after == "negative" else "fixed"
    if after == "negative":
        return "newly broken"
    if kind == "positive":
        return "gain kept" if after == "positive" else "gain lost"
    if after == "positive":
        return "extra gain"
    return {"both_right": "stays right", "both_wrong": "stays wrong", "tie": "unchanged"}[kind]


def _instance(row: tuple[Any, ...], versions: int) -> Instance:
    identity, kind, after, prompt, gold, tags = row[:6]
    answers = tuple(Answer(*row[start : start + 5]) for start in range(6, 6 + 5 * versions, 5))
    effect = repair_effect(CODES[kind], CODES[after]) if versions == 3 else None
    return Instance(identity, CODES[kind], effect, prompt, gold, answers, dict(tags or {}))


def _points(connection: duckdb.DuckDBPyConnection, repaired: bool) -> tuple[Points | None, Points | None]:
    columns = connection.execute(_POINTS).fetchnumpy()
    margins = bool(np.isfinite(columns["old_margin"]).any())
    unit = "margin" if margins else "score"
    old = columns[f"old_{unit}"]
    scores = [columns[f"{role}_{unit}"] for role in ("old", "new", "repaired")]
    if not margins and all(np.isin(values[np.isfinite(values)], (0.0, 1.0)).all() for values in scores):
        return None, None
    panels = []
    for values, kind in ((scores[1], columns["kind"]), (scores[2], columns["after"])):
        scored = kind != CODES.index("unscored")
        drawn = scored & np.isfinite(old) & np.isfinite(values)
        missing = int(scored.sum() - drawn.sum())
        x, y, spread = spread_out(old[drawn], values[drawn])
        panels.append(Points(x, y, kind[drawn].astype(np.int64), margins, missing, spread))
    return panels[0], panels[1] if repaired else None


def spread_out(x: Floats, y: Floats) -> tuple[Floats, Floats, bool]:
    """Spread equal points into discs whose area is their number, where few different points would hide it.

    The k-th of equal points goes to angle k times the golden angle, at a radius that grows with the root of k.
    """
    places, place, counts = np.unique(np.stack([x, y]), axis=1, return_inverse=True, return_counts=True)
    if len(x) == 0 or places.shape[1] > MOST_DISCS or counts.max() == 1:
        return x, y, False
    place = place.ravel()
    order = np.argsort(place, kind="stable")
    rank = np.empty(len(x))
    rank[order] = np.arange(len(x)) - np.repeat(np.cumsum(counts) - counts, counts)
    radius = DISC * np.sqrt(rank / counts.max())
    angle = rank * np.pi * (3 - np.sqrt(5))
    return x + radius * np.cos(angle), y + radius * np.sin(angle), True


_SCORED = "coalesce(NOT isnan(score_a) AND NOT isnan(score_b), false)"

_FLIP_JUDGED = f"""
CREATE TEMP MACRO flip(score_a, score_b, right_a, right_b) AS
CASE WHEN NOT {_SCORED} THEN 5
     WHEN right_a AND NOT right_b THEN 0
     WHEN NOT right_a AND right_b THEN 1
     WHEN right_a THEN 3 ELSE 2 END
"""

_FLIP_SCORES = f"""
CREATE TEMP MACRO flip(score_a, score_b, right_a, right_b) AS
CASE WHEN NOT {_SCORED} THEN 5
     WHEN score_b - score_a < -{TIE} THEN 0
     WHEN score_b - score_a > {TIE} THEN 1
     ELSE 4 END
"""

# Gold minus best other option. A gold text that is no option, or a single option, has no margin.
_MARGIN = """
CREATE TEMP MACRO margin(options, gold, logprobs) AS
CASE WHEN len(logprobs) > 1 AND list_position(options, gold) BETWEEN 1 AND len(logprobs)
     THEN logprobs[list_position(options, gold)] - list_max(list_concat(
          logprobs[1 : list_position(options, gold) - 1],
          logprobs[list_position(options, gold) + 1 : len(logprobs)])) END
"""

_PAIRS = """
CREATE TEMP TABLE pairs AS
SELECT o.id AS id, flip(o.score, n.score, o.correct, n.correct) AS kind,
       flip(o.score, r.score, o.correct, r.correct) AS after
FROM old_run o JOIN new_run n USING (id) JOIN repaired_run r USING (id)
"""

_ROWS = """
WITH chosen AS (
    SELECT *, CASE WHEN kind = 0 THEN 0 WHEN after = 0 THEN 1 WHEN kind = 1 THEN 2 WHEN after = 1 THEN 3
                   WHEN kind = 5 THEN 6 WHEN kind = 2 THEN 4 ELSE 5 END AS rank
    FROM pairs ORDER BY rank, id LIMIT ?
)
SELECT c.id, c.kind, c.after, o.input, o.target, o.tags,
       o.answer, o.output, o.correct, o.score, margin(o.options, o.target, o.option_logprobs),
       n.answer, n.output, n.correct, n.score, margin(n.options, n.target, n.option_logprobs),
       r.answer, r.output, r.correct, r.score, margin(r.options, r.target, r.option_logprobs)
FROM chosen c JOIN old_run o USING (id) JOIN new_run n USING (id) JOIN repaired_run r USING (id)
ORDER BY c.rank, c.id
"""

# No column may hold NULL: DuckDB then hands over plain arrays instead of masked ones.
_POINTS = """
SELECT coalesce(margin(o.options, o.target, o.option_logprobs), 'nan'::DOUBLE) AS old_margin,
       coalesce(margin(n.options, n.target, n.option_logprobs), 'nan'::DOUBLE) AS new_margin,
       coalesce(margin(r.options, r.target, r.option_logprobs), 'nan'::DOUBLE) AS repaired_margin,
       coalesce(o.score, 'nan'::DOUBLE) AS old_score, coalesce(n.score, 'nan'::DOUBLE) AS new_score,
       coalesce(r.score, 'nan'::DOUBLE) AS repaired_score, p.kind AS kind, p.after AS after
FROM pairs p JOIN old_run o USING (id) JOIN new_run n USING (id) JOIN repaired_run r USING (id)
ORDER BY p.id
"""
