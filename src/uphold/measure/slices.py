"""Flip rates per slice: the instances that share a tag, a length, a number of options, or the old model's margin."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

from uphold.core import stats
from uphold.core.runs import Run
from uphold.core.stats import Ints
from uphold.core.text import one_line
from uphold.measure.hypergeometric import upper_tail
from uphold.measure.joined import joined
from uphold.measure.paired_records import GOLD_MARGIN
from uphold.measure.pairs import TIE

LENGTH, OPTIONS, MARGIN = "input length", "options", "old margin"
DERIVED = (LENGTH, OPTIONS, MARGIN)
"""Slices that need no tag. A tag of the same name takes the place of the derived one."""
MOST_VALUES = 1000
"""So many values of a tag get a slice of their own, the most frequent ones; the others share one."""
_BINS = 4
_FEW = 10
_MARGINS = ("below -2 nats", "-2 to 0 nats", "0 to 2 nats", "2 nats or more")
_RANGES = (
    (re.compile(r"below (-?\d+) nats"), lambda low: (-math.inf, low)),
    (re.compile(r"(-?\d+) nats or more"), lambda low: (low, math.inf)),
    (re.compile(r"(-?\d+) to (-?\d+) nats"), lambda low, high: (low, high)),
    (re.compile(r"(\d+)-(\d+)(?: characters)?"), lambda low, high: (low, high + 1)),
    (re.compile(r"(\d+)(?: characters)?"), lambda only: (only, only + 1)),
)


@dataclass(frozen=True)
class Slice:
    """The flips among the instances that share one property."""

    tag: str
    """The tag's name, e.g. `subject`, or one of `DERIVED`."""
    value: str
    """The tag's value, or a range, e.g. `120-340 characters`."""
    count: int
    """Scored instances in the slice."""
    old_right: int | None
    """None where scores are continuous only; flips are then falls and rises of the score."""
    new_right: int | None
    negative_flips: int
    positive_flips: int
    inconsistent: int | None
    """Instances that the new model gets wrong with another answer than the old one; None as above."""
    p: float
    """One-sided: is the NFR of the slice above that of all other instances? Fisher's exact test."""
    q: float
    """`p` corrected for the number of slices of the comparison (Benjamini and Hochberg)."""

    def __str__(self) -> str:
        name = one_line(f"{self.tag}={self.value}")
        return f"{name}: NFR {self.nfr:.2%} ({self.negative_flips:,} of {self.count:,}), q = {self.q:.2g}"

    @property
    def nfr(self) -> float:
        """Negative flips over all instances of the slice."""
        return self.negative_flips / self.count

    @property
    def nfr_interval(self) -> stats.Interval:
        """Exact 95% interval of `nfr`; not corrected for the number of slices looked at."""
        return stats.proportion_interval(self.negative_flips, self.count)


def slices(old: Run, new: Run, *, most_values: int = MOST_VALUES) -> list[Slice]:
    """Flips by tag and by derived property, worst NFR first.

    Instances that are scored in both runs count. An instance without a tag is in no slice of that tag. A tag with
    more than `most_values` values gets one slice for all but the most frequent, called e.g. `12 other values`; a tag
    with more than ten values that are all different names instances and makes no slice. Neither does a derived
    property that all instances share.

    The runs are read once, out of core. Where an answer is not right or wrong in every instance, flips are falls
    and rises of the score beyond `continuous.TIE`.

    Args:
        old: the run of the old model; its tags, prompts and options are used.
        new: the run of the new model.
        most_values: see above.
    """
    with joined(old, new) as connection:
        connection.execute(GOLD_MARGIN)
        connection.execute(_RATED)
        derived = connection.execute(_BY_PROPERTY).fetchall()
        connection.execute(_BY_TAG)
        tagged = connection.execute(_TAGS, {"most": most_values, "few": _FEW}).fetchall()
    if not derived:
        return []
    cells = np.array([row[3:] for row in derived], np.int64)
    properties = {name: [row[column] for row in derived] for column, name in enumerate(DERIVED)}
    groups = [(tag, value, np.array(counts, np.int64)) for tag, value, *counts in tagged]
    taken = {tag for tag, _, _ in groups}
    for name in DERIVED:
        if name not in taken:
            groups += [(name, value, counts) for value, counts in _grouped(name, properties[name], cells)]
    return sorted(_tested(groups, cells.sum(0)), key=lambda part: (-part.nfr, -part.count, part.tag, part.value))


def _grouped(name: str, values: list[int | None], cells: Ints) -> list[tuple[str, Ints]]:
    """The slices of a derived property from its value and its counts in every cell."""
    known = [place for place, value in enumerate(values) if value is not None]
    numbers = np.array([values[place] for place in known], np.int64)
    if len(np.unique(numbers)) < 2:
        return []
    # The margin comes as the place of its range already.
    places = [(int(place), int(place)) for place in np.unique(numbers)]
    bins = places if name == MARGIN else equal_bins(numbers, cells[known, 0], _BINS)
    found = []
    for low, high in bins:
        inside = (numbers >= low) & (numbers <= high)
        found.append((_label(name, low, high), cells[np.array(known)[inside]].sum(0)))
    return found


def _label(name: str, low: int, high: int) -> str:
    if name == MARGIN:
        return _MARGINS[low]
    span = str(low) if low == high else f"{low}-{high}"
    return span if name == OPTIONS else f"{span} characters"


def derived_range(value: str) -> tuple[float, float] | None:
    """The range [low, high) that the value of a derived slice names; None where it names none."""
    for pattern, ends in _RANGES:
        if match := pattern.fullmatch(value):
            low, high = ends(*map(float, match.groups()))
            return low, high
    return None


def equal_bins(values: Ints, weights: Ints, bins: int) -> list[tuple[int, int]]:
    """Ranges of `values` that hold about equally much weight, as the smallest and largest value in each.

    The cuts are the places between two different values that are nearest to the quantiles, so ties stay together;
    there are at most `bins` ranges, and at least two unless all values are equal.
    """
    distinct, place = np.unique(values, return_inverse=True)
    below = np.cumsum(np.bincount(place, weights))[:-1]
    if not len(below):
        return [(int(distinct[0]), int(distinct[0]))]
    wanted = weights.sum() * np.arange(1, bins) / bins
    cuts = np.unique(np.abs(below[None, :] - wanted[:, None]).argmin(1))
    starts, ends = np.append(0, cuts + 1), np.append(cuts, len(distinct) - 1)
    return [(int(distinct[start]), int(distinct[end])) for start, end in zip(starts, ends, strict=True)]


def _tested(groups: list[tuple[str, str, Ints]], total: Ints) -> list[Slice]:
    """Slices with their p-values from counts in the order of `_CELLS`."""
    table = np.array([counts for _, _, counts in groups], np.int64).reshape(-1, len(total))
    whole = dict(zip(_CELLS, total.tolist(), strict=True))
    judged = whole["judged"] == whole["count"]
    losses, gains = ("negative", "positive") if judged else ("falls", "rises")
    columns = dict(zip(_CELLS, table.T, strict=True))
    p = upper_tail(columns[losses], whole["count"], whole[losses], columns["count"])
    q = stats.benjamini_hochberg(p) if len(p) else p
    found = []
    for place, (tag, value, _) in enumerate(groups):
        cell = {name: int(numbers[place]) for name, numbers in columns.items()}
        found.append(
            Slice(
                tag,
                value,
                cell["count"],
                cell["old_right"] if judged else None,
                cell["new_right"] if judged else None,
                cell[losses],
                cell[gains],
                cell["inconsistent"] if judged else None,
                float(p[place]),
                float(q[place]),
            )
        )
    return found


_RATED = f"""
CREATE TEMP VIEW rated AS
SELECT old_correct IS NOT NULL AND new_correct IS NOT NULL AS judged, old_correct AS old_right,
       new_correct AS new_right, NOT new_correct AND old_answer <> new_answer AS inconsistent,
       new_score - old_score < -{TIE} AS fall, new_score - old_score > {TIE} AS rise,
       coalesce(length(old_input), 0) AS length, coalesce(len(old_options), 0) AS choices,
       CASE WHEN isnan(gold) THEN NULL WHEN gold < -2 THEN 0 WHEN gold < 0 THEN 1 WHEN gold < 2 THEN 2
            WHEN gold >= 2 THEN 3 END AS margin,
       old_tags AS tags
FROM (SELECT *, gold_margin(old_options, old_target, old_option_logprobs) AS gold FROM pairs)
WHERE coalesce(NOT isnan(old_score) AND NOT isnan(new_score), false)
"""

_CELLS = {
    "count": "true",
    "judged": "judged",
    "old_right": "old_right",
    "new_right": "new_right",
    "negative": "old_right AND NOT new_right",
    "positive": "NOT old_right AND new_right",
    "inconsistent": "inconsistent",
    "falls": "fall",
    "rises": "rise",
}
_COUNTS = ", ".join(f"count(*) FILTER ({condition}) AS {name}_n" for name, condition in _CELLS.items())
_SUMS = ", ".join(f"sum({name}_n)::BIGINT" for name in _CELLS)

_BY_PROPERTY = f"SELECT length, choices, margin, {_COUNTS} FROM rated GROUP BY ALL ORDER BY ALL"

_BY_TAG = f"""
CREATE TEMP TABLE tagged AS
SELECT tag.key AS tag, tag.value AS value, {_COUNTS}
FROM (SELECT * EXCLUDE (tags), unnest(map_entries(tags)) AS tag FROM rated) GROUP BY ALL
"""

_TAGS = f"""
WITH kept AS (
    SELECT tag, count(*) > $most AS many FROM tagged GROUP BY tag HAVING max(count_n) > 1 OR count(*) <= $few
), ranked AS (
    SELECT tagged.*, many AND row_number() OVER (PARTITION BY tag ORDER BY count_n DESC, value) > $most AS other
    FROM tagged JOIN kept USING (tag)
)
SELECT tag, CASE WHEN other THEN format('{{:,}} other values', count(*)) ELSE min(value) END AS value, {_SUMS}
FROM ranked GROUP BY tag, other, CASE WHEN other THEN NULL ELSE value END
ORDER BY tag, value
"""
