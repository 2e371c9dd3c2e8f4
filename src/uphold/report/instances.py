"""The instances of a report: who flipped, what each version answered, and what the repair did about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from uphold.core.runs import Run
from uphold.measure.paired_records import paired_records
from uphold.measure.pairs import TIE
from uphold.report.points import Points, spread_out

if TYPE_CHECKING:
    import duckdb

CODES = ("negative", "positive", "both_wrong", "both_right", "tie", "unscored")
"""Kinds of instance by their code in the queries below."""

LIMIT = 50_000
"""Instances that a report holds at most."""
INPUT_LIMIT, ANSWER_LIMIT = 2000, 1000
"""Characters of a question, and of an answer, that a report holds at most."""
TEXT_BUDGET = 50_000_000
"""Characters of all texts together; beyond, `INPUT_LIMIT` and `ANSWER_LIMIT` are scaled down for this report."""
_SCALES = (1.0, 0.5, 0.25, 0.1)


@dataclass(frozen=True)
class Answer:
    """What one version said."""

    text: str
    """The part of the output that was scored."""
    output: str | None
    """All of the output; None where that is `text`."""
    correct: bool | None
    score: float | None
    margin: float | None
    """Log-likelihood of the gold option minus the best other one (nats); None without log-likelihoods."""
    logprobs: tuple[float, ...] = ()
    """Log-likelihood of each option (nats)."""


@dataclass(frozen=True)
class Instance:
    """One question with every version's answer; long texts are cut in their middle."""

    id: str
    kind: str
    """One of `CODES`: the old model against the plain update."""
    after: str
    """The same with the repaired update in the plain one's place; `kind` where there is no repair."""
    effect: str | None
    """What the repair did, a key of `glossary.EFFECTS`; None without a repair."""
    input: str
    gold: str
    answers: tuple[Answer, ...]
    """Old, new, and repaired where there is a repair."""
    tags: Mapping[str, str]
    options: tuple[str, ...] = ()
    """The options of a choice, in the task's order."""
    length: int = 0
    """Characters of the question before it was cut."""


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
    """The rows' points; None when every score is 0 or 1 and there are no log-likelihoods: they would be four dots."""
    after: Points | None
    limits: tuple[int, int] = (INPUT_LIMIT, ANSWER_LIMIT)
    """Characters of a question and of an answer beyond which they were cut."""


def read_instances(
    old: Run, new: Run, repaired: Run | None, judged: bool, limit: int = LIMIT, budget: int = TEXT_BUDGET
) -> Instances:
    """Join the runs on instance id, out of core.

    Where there are more than `limit` instances, flips are kept first, and of the others an even sample (by the
    MD5 of their ids).

    Args:
        old: the run of the old model.
        new: the run of the plain update.
        repaired: the run of the repaired update, if any.
        judged: whether answers are right or wrong; otherwise flips are rises and falls of the score.
        limit: how many instances to read with their texts.
        budget: how many characters of text to read in all, about.
    """
    names = ("o", "n") if repaired is None else ("o", "n", "r")
    joins = "JOIN new_run n USING (id)" + (" JOIN repaired_run r USING (id)" if repaired else "")
    later = names[-1]
    with paired_records(old, new, repaired) as connection:
        connection.execute(_FLIP_JUDGED if judged else _FLIP_SCORES)
        connection.execute(_CUT)
        connection.execute(_PAIRS.format(joins=joins, later=later))
        counted = connection.execute("SELECT kind, after, count(*) FROM pairs GROUP BY ALL ORDER BY ALL").fetchall()
        connection.execute(_CHOSEN, [limit])
        limits = _limits(connection, names, joins, budget)
        texts = ", ".join(_ANSWER.format(run=name, size=limits[1]) for name in names)
        query = _ROWS.format(texts=texts, joins=joins, input=limits[0], answer=limits[1])
        rows = tuple(_instance(row, len(names)) for row in connection.execute(query).fetchall())
    kinds: dict[str, int] = {}
    effects: dict[str, int] = {}
    for kind, after, count in counted:
        kinds[CODES[kind]] = kinds.get(CODES[kind], 0) + count
        if repaired is not None:
            effect = repair_effect(CODES[kind], CODES[after])
            effects[effect] = effects.get(effect, 0) + count
    panels = _panels(rows)
    return Instances(rows, sum(kinds.values()), kinds, effects, *panels, limits)


def _limits(connection: duckdb.DuckDBPyConnection, names: tuple[str, ...], joins: str, budget: int) -> tuple[int, int]:
    """The largest limits of a question's and an answer's length under which all texts stay within `budget`."""
    sums = []
    for scale in _SCALES:
        lengths = [f"least(length(o.input), {int(scale * INPUT_LIMIT)})"]
        for name in names:
            lengths.append(f"least(length({name}.answer), {int(scale * ANSWER_LIMIT)})")
            lengths.append(
                f"CASE WHEN {name}.output = {name}.answer THEN 0 "
                f"ELSE least(length({name}.output), {int(scale * ANSWER_LIMIT)}) END"
            )
        sums.append(f"coalesce(sum({' + '.join(lengths)}), 0)")
    found = connection.execute(f"SELECT {', '.join(sums)} FROM chosen JOIN old_run o USING (id) {joins}").fetchone()
    sizes = found or (0,) * len(_SCALES)
    fitting = [scale for scale, size in zip(_SCALES, sizes, strict=True) if size <= budget]
    scale = fitting[0] if fitting else _SCALES[-1]
    return int(scale * INPUT_LIMIT), int(scale * ANSWER_LIMIT)


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
    identity, kind, after, prompt, gold, tags, options, length = row[:8]
    answers = tuple(_answer(row[start : start + 6]) for start in range(8, 8 + 6 * versions, 6))
    effect = repair_effect(CODES[kind], CODES[after]) if versions == 3 else None
    return Instance(
        identity,
        CODES[kind],
        CODES[after],
        effect,
        prompt,
        gold,
        answers,
        dict(tags or {}),
        tuple(options or ()),
        length,
    )


def _answer(values: tuple[Any, ...]) -> Answer:
    text, output, correct, score, margin, logprobs = values
    return Answer(text, output, correct, score, margin, tuple(logprobs or ()))


def _panels(rows: tuple[Instance, ...]) -> tuple[Points | None, Points | None]:
    """The points of old against new, and of old against repaired."""
    if not rows:
        return None, None
    versions = len(rows[0].answers)
    columns = {
        unit: np.array([[getattr(answer, unit) for answer in row.answers] for row in rows], dtype=np.float64).reshape(
            len(rows), versions
        )
        for unit in ("margin", "score")
    }
    margins = bool(np.isfinite(columns["margin"][:, :1]).any())
    values = columns["margin" if margins else "score"]
    if not margins and np.isin(values[np.isfinite(values)], (0.0, 1.0)).all():
        return None, None
    both = [(row.kind, row.after) for row in rows]
    kinds = [np.array([CODES.index(kind) for kind in side]) for side in zip(*both, strict=True)]
    panels = []
    for version in range(1, versions):
        scored = kinds[version - 1] != CODES.index("unscored")
        drawn = scored & np.isfinite(values[:, 0]) & np.isfinite(values[:, version])
        x, y, spread = spread_out(values[drawn, 0], values[drawn, version])
        missing = int(scored.sum() - drawn.sum())
        panels.append(Points(x, y, kinds[version - 1][drawn], np.flatnonzero(drawn), margins, missing, spread))
    return panels[0], panels[1] if versions == 3 else None


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

# `uphold.report.text.clip`, where the texts are: a prompt of a megabyte never leaves the database.
_CUT = """
CREATE TEMP MACRO cut(words, size) AS
CASE WHEN length(words) <= 1.2 * size + 20 THEN words
     ELSE left(words, size // 3) || ' […' || (length(words) - size) || ' characters left out…] '
          || right(words, size - size // 3) END
"""

_PAIRS = """
CREATE TEMP TABLE pairs AS
SELECT o.id AS id, CAST(flip(o.score, n.score, o.correct, n.correct) AS TINYINT) AS kind,
       CAST(flip(o.score, {later}.score, o.correct, {later}.correct) AS TINYINT) AS after
FROM old_run o {joins}
"""

_CHOSEN = """
CREATE TEMP TABLE chosen AS
SELECT *, CASE WHEN kind = 0 THEN 0 WHEN after = 0 THEN 1 WHEN kind = 1 THEN 2 WHEN after = 1 THEN 3
               WHEN kind = 5 THEN 6 WHEN kind = 2 THEN 4 ELSE 5 END AS rank
FROM pairs ORDER BY least(rank, 4), md5(id) LIMIT ?
"""

_ROWS = """
SELECT c.id, c.kind, c.after, cut(o.input, {input}), cut(o.target, {answer}), o.tags,
       list_transform(o.options, lambda option: cut(option, {answer})), length(o.input), {texts}
FROM chosen c JOIN old_run o USING (id) {joins}
ORDER BY c.rank, c.id
"""

_ANSWER = """
cut({run}.answer, {size}), CASE WHEN {run}.output <> {run}.answer THEN cut({run}.output, {size}) END,
{run}.correct, {run}.score, gold_margin({run}.options, {run}.target, {run}.option_logprobs), {run}.option_logprobs"""
