"""Which of the derived slices (`uphold.measure.slices.DERIVED`) an instance of the report lies in."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence

from uphold.measure.slices import DERIVED, LENGTH, MARGIN, OPTIONS, Slice
from uphold.report.instances import Instance

_NUMBER = r"(-?\d+(?:\.\d+)?)"
_RANGES = (
    (re.compile(rf"below {_NUMBER} nats"), lambda low: (-math.inf, low)),
    (re.compile(rf"{_NUMBER} nats or more"), lambda low: (low, math.inf)),
    (re.compile(rf"{_NUMBER} to {_NUMBER} nats"), lambda low, high: (low, high)),
    (re.compile(rf"{_NUMBER}-{_NUMBER}(?: characters)?"), lambda low, high: (low, high + 1)),
    (re.compile(rf"{_NUMBER}(?: characters)?"), lambda only: (only, only + 1)),
)


def bounds(value: str) -> tuple[float, float] | None:
    """The range [low, high) that a derived slice's value names; None where it names none."""
    for pattern, ends in _RANGES:
        if match := pattern.fullmatch(value):
            low, high = ends(*map(float, match.groups()))
            return low, high
    return None


def with_derived(rows: Sequence[Instance], slices: Iterable[Slice]) -> list[dict[str, str]]:
    """The tags of every row, and the derived slices that it lies in as if they were tags."""
    own = {name for row in rows for name in row.tags}
    ranges = [
        (part.tag, part.value, *ends)
        for part in slices
        if part.tag in DERIVED and part.tag not in own and (ends := bounds(part.value)) is not None
    ]
    found = []
    for row in rows:
        numbers: Mapping[str, float | None] = {
            LENGTH: row.length,
            OPTIONS: len(row.options),
            MARGIN: row.answers[0].margin,
        }
        tags = dict(row.tags)
        for tag, value, low, high in ranges:
            number = numbers[tag]
            if number is not None and low <= number < high:
                tags[tag] = value
        found.append(tags)
    return found
