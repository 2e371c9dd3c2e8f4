"""Automatic discovery of the kinds of instances in which negative flips pile up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from uphold.core.runs import Run
from uphold.core.stats import Ints
from uphold.core.text import one_line
from uphold.measure.features import Named, Question, conditions
from uphold.measure.paired_records import SCORED, paired_records
from uphold.measure.pairs import TIE
from uphold.measure.rule_search import RuleSearch, search_p, without

if TYPE_CHECKING:
    import duckdb

LEAST_FLIPS = 5
"""With fewer flips nothing is looked for."""
MOST_INSTANCES = 50_000
"""With more, a sample of the instances that did not flip is looked at."""
MOST_FLIPS = 1_000
"""With more, a sample of the flips is looked at."""
MOST_TEXT = 4_000
"""Characters of a prompt that are read, from its end: the question comes last."""


@dataclass(frozen=True)
class Rule:
    """A kind of instance with more negative flips than the others."""

    conditions: tuple[str, ...]
    """Plain text, all of which hold for the instances, e.g. `("level is hard", "input has the word 'not'")`."""
    count: int
    """Scored instances that the rule covers."""
    negative_flips: int
    """Negative flips among them."""
    nfr: float
    """NFR inside the rule, in [0, 1]."""
    nfr_rest: float
    """NFR of all other instances, in [0, 1]."""
    p: float
    """Corrected for everything that was looked at on the way to this rule."""
    sample: int | None = None
    """None when all instances were looked at; otherwise how many were, and the other numbers are estimates."""

    def __str__(self) -> str:
        estimated = "" if self.sample is None else f", estimated from {self.sample:,} instances"
        kind = " and ".join(map(one_line, self.conditions))
        return (
            f"{kind}: NFR {self.nfr:.2%} ({self.negative_flips:,} of {self.count:,}), "
            f"{self.nfr_rest:.2%} elsewhere (p = {self.p:.2g}, corrected for the whole search){estimated}"
        )


@dataclass(frozen=True)
class Discovery:
    """The rules that were found, and what was looked at."""

    rules: tuple[Rule, ...]
    """The most surprising first."""
    instances: int
    """Scored instances looked at."""
    flips: int
    """Negative flips among them."""
    conditions: int
    """Single conditions that rules could be made of."""
    notes: tuple[str, ...]
    """What was left out because of a limit, in words."""


@dataclass(frozen=True)
class _Sample:
    questions: list[Question]
    flipped: NDArray[np.bool_]
    population: int
    population_flips: int
    notes: tuple[str, ...]

    @property
    def whole(self) -> bool:
        return len(self.questions) == self.population


def look_for_rules(
    old: Run,
    new: Run,
    *,
    depth: int = 2,
    most: int = 5,
    minimum: int = 10,
    draws: int = 1000,
    alpha: float = 0.05,
    seed: int = 0,
) -> Discovery:
    """Look for kinds of instances in which negative flips pile up, without being told where.

    Conditions speak about tags, gold answer, options, and the prompt's length, numbers, signs and words; a rule is up
    to `depth` conditions that hold together. The rule whose number of flips is the least likely by chance comes first.
    Its p-value is that of the whole search: flips are dealt to instances at random `draws` times, the search is
    repeated, and the share of searches that find something as surprising is counted (Westfall and Young,
    Resampling-Based Multiple Testing, 1993). Then the instances it covers are put aside, flips or not, and the rest is
    searched in the same way, so that the next rule says something new; the first rule that is not below `alpha` ends
    the list. When flips have nothing to do with the conditions, the chance of any rule is at most `alpha`.
    Assumes independent instances. Where an answer is not right or wrong in every instance, falls of the score are the
    flips.

    Args:
        old: the run of the old model; its tags, prompts and options are used.
        new: the run of the new model.
        depth: conditions in a rule at most.
        most: rules at most.
        minimum: instances that a rule covers at least.
        draws: random deals per rule; no p-value is below 1 / (draws + 1).
        alpha: the chance of a false rule, in (0, 1).
        seed: of the random deals and of the sample.

    Returns:
        No rules where there are fewer than `LEAST_FLIPS` flips.

    Raises:
        ValueError: an argument is out of its range, or `draws` are too few to get below `alpha`.
    """
    if depth < 1 or most < 0 or minimum < 1 or not 0 < alpha < 1 or alpha * (draws + 1) < 1:
        raise ValueError(
            f"need depth >= 1, most >= 0, minimum >= 1, 0 < alpha < 1 and draws >= 1 / alpha - 1, not depth={depth}, "
            f"most={most}, minimum={minimum}, alpha={alpha}, draws={draws}"
        )
    sample = _read(old, new, seed)
    instances, flips = len(sample.questions), int(sample.flipped.sum())
    if flips < LEAST_FLIPS or flips == instances:
        return Discovery((), instances, flips, 0, sample.notes)
    named, notes = conditions(sample.questions, minimum)
    rules = _rules(sample, named, depth, most, minimum, draws, alpha, seed)
    return Discovery(tuple(rules), instances, flips, len(named), (*sample.notes, *notes))


def _rules(
    sample: _Sample,
    named: Sequence[Named],
    depth: int,
    most: int,
    minimum: int,
    draws: int,
    alpha: float,
    seed: int,
) -> list[Rule]:
    found: list[Rule] = []
    everywhere = [rows for _, rows in named]
    rows, flipped = everywhere, sample.flipped
    while len(found) < most and named:
        marked = np.flatnonzero(flipped)
        if not LEAST_FLIPS <= len(marked) < len(flipped):
            break
        search = RuleSearch(len(flipped), rows, minimum, depth)
        best = search.best(marked)
        p = search_p(search, best, len(marked), draws, alpha, seed + len(found)) if best else None
        if best is None or p is None:
            break
        held = everywhere[best.conjunction[0]]
        for place in best.conjunction[1:]:
            held = np.intersect1d(held, everywhere[place], assume_unique=True)
        found.append(_rule(sample, tuple(named[place][0] for place in best.conjunction), held, p))
        rows, stays = without(rows, search.covered(best.conjunction), len(flipped))
        flipped = flipped[stays]
    return found


def _rule(sample: _Sample, words: tuple[str, ...], held: Ints, p: float) -> Rule:
    """A rule with its numbers, scaled from the sample's flips and other instances to all of them."""
    flips = int(sample.flipped.sum())
    others = len(sample.questions) - flips
    inside = int(sample.flipped[held].sum())
    falls = sample.population_flips * inside / flips
    count = falls + (sample.population - sample.population_flips) * (len(held) - inside) / others
    return Rule(
        words,
        round(count),
        round(falls),
        falls / count,
        (sample.population_flips - falls) / (sample.population - count),
        p,
        None if sample.whole else len(sample.questions),
    )


def _read(old: Run, new: Run, seed: int) -> _Sample:
    with paired_records(old, new) as connection:
        connection.execute(_PAIRS)
        population, judged, negative, falls = connection.execute(_TOTALS).fetchone() or (0, 0, 0, 0)
        flip, flips = ("negative", negative) if judged == population else ("fall", falls)
        kept = min(flips, MOST_FLIPS)
        numbers = {"seed": seed, "flips": kept, "others": min(population - flips, MOST_INSTANCES - kept)}
        connection.execute(_CHOSEN.format(flip=flip), numbers)
        rows = connection.execute(_QUESTIONS, {"skip": _shared_beginning(connection), "most": MOST_TEXT}).fetchall()
    notes = []
    if len(rows) < population:
        notes.append(
            f"{kept:,} of {flips:,} flips and {len(rows) - kept:,} of {population - flips:,} other instances were "
            "looked at"
        )
    long = sum(row[-1] for row in rows)
    if long:
        notes.append(f"of {long:,} prompts only the last {MOST_TEXT:,} characters were looked at")
    questions = [
        Question(text, bool(cut), length, target, options, gold, dict(tags or ()))
        for _, text, length, target, options, gold, tags, cut in rows
    ]
    flipped = np.array([row[0] for row in rows], bool)
    return _Sample(questions, flipped, population, flips, tuple(notes))


def _shared_beginning(connection: duckdb.DuckDBPyConnection) -> int:
    """How many characters at the beginning of the prompts are the same in all of them, in whole words."""
    first, last = connection.execute(_EXTREMES).fetchone() or (None, None)
    length = 0
    for place, (ours, theirs) in enumerate(zip(first or "", last or "", strict=False), start=1):
        if ours != theirs:
            break
        if ours.isspace():
            length = place
    return length


_PAIRS = f"""
CREATE TEMP TABLE pairs AS
SELECT o.file_row_number AS row, o.correct IS NOT NULL AND n.correct IS NOT NULL AS judged,
       coalesce(o.correct AND NOT n.correct, false) AS negative, n.score - o.score < -{TIE} AS fall
FROM old_run o JOIN new_run n USING (id) WHERE {SCORED}
"""

_TOTALS = """
SELECT count(*), count(*) FILTER (judged), count(*) FILTER (negative), count(*) FILTER (fall) FROM pairs
"""

# Ordered by a hash, so that the same seed chooses the same instances whatever the number of threads.
_CHOSEN = """
CREATE TEMP TABLE chosen AS
(SELECT row, true AS flip FROM pairs WHERE {flip} ORDER BY hash(row, $seed), row LIMIT $flips)
UNION ALL
(SELECT row, false AS flip FROM pairs WHERE NOT {flip} ORDER BY hash(row, $seed), row LIMIT $others)
"""

_EXTREMES = """
SELECT min(input), max(input) FROM old_run WHERE file_row_number IN (SELECT row FROM chosen)
"""

_QUESTIONS = """
SELECT c.flip, right(substr(coalesce(o.input, ''), $skip + 1), $most), length(coalesce(o.input, '')),
       coalesce(o.target, ''), coalesce(len(o.options), 0), coalesce(list_position(o.options, o.target), 0), o.tags,
       length(coalesce(o.input, '')) - $skip > $most
FROM chosen c JOIN old_run o ON o.file_row_number = c.row ORDER BY c.row
"""
