"""Which of the derived slices (`uphold.measure.slices.DERIVED`) an instance of the report lies in."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from uphold.measure.slices import DERIVED, LENGTH, MARGIN, OPTIONS, Slice, derived_range
from uphold.report.instances import Instance


def with_derived(rows: Sequence[Instance], slices: Iterable[Slice]) -> list[dict[str, str]]:
    """The tags of every row, and the derived slices that it lies in as if they were tags."""
    own = {name for row in rows for name in row.tags}
    ranges = [
        (part.tag, part.value, *ends)
        for part in slices
        if part.tag in DERIVED and part.tag not in own and (ends := derived_range(part.value)) is not None
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
            if number is not None and (low <= number < high or number == high == math.inf):
                tags[tag] = value
        found.append(tags)
    return found
