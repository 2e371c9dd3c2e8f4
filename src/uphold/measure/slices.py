"""Flip rates per slice: the instances that share a tag."""

from __future__ import annotations

from dataclasses import dataclass

from uphold.core import stats
from uphold.core.runs import Run


@dataclass(frozen=True)
class Slice:
    """The flips among the instances that carry one tag."""

    tag: str
    """The tag's name, e.g. `length`."""
    value: str
    """The tag's value."""
    count: int
    """Scored instances in the slice."""
    old_right: int
    new_right: int
    negative_flips: int
    positive_flips: int

    @property
    def nfr(self) -> float:
        """Negative flips over all instances of the slice."""
        return self.negative_flips / self.count

    @property
    def nfr_interval(self) -> stats.Interval:
        """Exact 95% interval of `nfr`; not corrected for the number of slices looked at."""
        return stats.proportion_interval(self.negative_flips, self.count)


def slices(old: Run, new: Run) -> list[Slice]:
    """Flips by tag, worst NFR first; empty when instances carry no tags or have continuous scores only."""
    import duckdb

    with duckdb.connect() as connection:
        connection.execute("SET enable_progress_bar = false")
        rows = connection.execute(_BY_TAG, [str(old.records_path), str(new.records_path)]).fetchall()
    found = [Slice(*row) for row in rows]
    return sorted(found, key=lambda part: (-part.nfr, -part.count, part.tag, part.value))


_BY_TAG = """
WITH pairs AS (
    SELECT unnest(map_entries(o.tags)) AS tag, o.correct AS old_right, n.correct AS new_right
    FROM read_parquet(?) o JOIN read_parquet(?) n USING (id)
    WHERE o.correct IS NOT NULL AND n.correct IS NOT NULL
      AND coalesce(NOT isnan(o.score) AND NOT isnan(n.score), false)
)
SELECT tag.key, tag.value, count(*),
       count(*) FILTER (old_right), count(*) FILTER (new_right),
       count(*) FILTER (old_right AND NOT new_right), count(*) FILTER (NOT old_right AND new_right)
FROM pairs GROUP BY ALL
"""
