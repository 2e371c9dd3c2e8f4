"""What the gate looks up in two runs' records: sums by cluster, ids of flips, the instances that must be kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

from uphold.core.errors import DataError
from uphold.measure.comparison import Comparison
from uphold.measure.limits import ClusterSums, ScoreSums
from uphold.measure.paired_records import SCORED, paired_records
from uphold.measure.pairs import TIE
from uphold.measure.slices import DERIVED, LENGTH, MARGIN, OPTIONS, Slice, derived_range

if TYPE_CHECKING:
    import duckdb


@dataclass(frozen=True)
class KeptInstance:
    """What became of an instance that must be kept."""

    id: str
    scored: bool
    """Whether both models have a score there."""
    fell: bool
    """Whether it is a negative flip (a fall of the score)."""
    old_right: bool | None
    """None where scores are continuous."""
    new_right: bool | None


class Lookups(AbstractContextManager["Lookups"]):
    """Questions about the pairs of one comparison; the runs are joined at the first of them."""

    def __init__(self, comparison: Comparison) -> None:
        self._comparison = comparison
        self._judged = comparison.matrix is not None
        self._stack = ExitStack()
        self._opened: duckdb.DuckDBPyConnection | None = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def score_sums(self, part: Slice | None) -> ScoreSums:
        """Sums of the score differences of a slice, or of the whole task."""
        where, values = self._where(part)
        query = f"SELECT count(*), sum(change), sum(change * change), {_COUNTS} FROM gated WHERE {where}"
        count, total, squares, falls, rises, _ = self._rows(query, values)[0]
        return ScoreSums(count, float(total), float(squares), int(falls), int(rises))

    def cluster_sums(self, tag: str, part: Slice | None) -> ClusterSums:
        """Sums per value of `tag`, of a slice or of the whole task.

        Raises:
            DataError: an instance lacks the tag, or there is one cluster only.
        """
        where, values = self._where(part)
        name = self._comparison.old.name
        lacking = f"SELECT count(*) FROM gated WHERE map_extract(tags, ?)[1] IS NULL AND {where}"
        if missing := self._rows(lacking, [tag, *values])[0][0]:
            raise DataError(f"{missing} instances of '{name}' have no tag '{tag}': clusters need it on every instance")
        query = (
            f"SELECT count(*) AS sizes, {_COUNTS}, CAST(sum(change) AS DOUBLE) AS totals, "
            f"CAST(sum(change * change) AS DOUBLE) AS squares "
            f"FROM gated WHERE {where} GROUP BY map_extract(tags, ?)[1]"
        )
        columns = self._connection().execute(query, [*values, tag]).fetchnumpy()
        if len(columns["sizes"]) < 2:
            raise DataError(f"all instances are one cluster by the tag '{tag}': at least two are needed")
        return ClusterSums(**columns)

    def flip_ids(self, part: Slice | None, inconsistent: bool = False, most: int = 20) -> tuple[str, ...]:
        """The first negative flips by id (or inconsistent answers) of a slice, or of the whole task."""
        where, values = self._where(part)
        event = "inconsistent" if inconsistent else "fell"
        rows = self._rows(f"SELECT id FROM gated WHERE {event} AND {where} ORDER BY id LIMIT {most}", values)
        return tuple(row[0] for row in rows)

    def kept(self, ids: Sequence[str]) -> list[KeptInstance]:
        """Those of `ids` that one of the runs has, in their order."""
        rows = self._rows(_KEPT, [list(ids)])
        found = {row[0]: KeptInstance(*row) for row in rows}
        return [found[name] for name in ids if name in found]

    def texts(self, ids: Sequence[str], longest: int = 4000) -> list[tuple[str, str, str, str, str]]:
        """Id, question (its end), gold, old and new answer of instances, in the order of `ids`; each text cut."""
        rows = self._rows(_TEXTS.format(size=int(longest)), [list(ids)])
        found = {row[0]: row for row in rows}
        return [found[name] for name in ids if name in found]

    def _where(self, part: Slice | None) -> tuple[str, list[Any]]:
        """A condition on the rows of `marked` that are in a slice, and its values."""
        if part is None:
            return "true", []
        ends = derived_range(part.value) if part.tag in DERIVED else None
        if ends is None or self._rows(_TAGGED, [part.tag])[0][0]:
            return "map_extract(tags, ?)[1] = ?", [part.tag, part.value]
        column = {LENGTH: "length", OPTIONS: "choices", MARGIN: "margin"}[part.tag]
        # NaN is above infinity here, and a margin can be infinite.
        return f"{column} >= ? AND {column} {'<=' if ends[1] == math.inf else '<'} ?", list(ends)

    def _rows(self, query: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        return self._connection().execute(query, list(values)).fetchall()

    def _connection(self) -> duckdb.DuckDBPyConnection:
        if self._opened is None:
            self._opened = self._stack.enter_context(paired_records(self._comparison.old, self._comparison.new))
            self._opened.execute(_MARKED.format(events=_JUDGED if self._judged else _SCORES))
        return self._opened


_COUNTS = (
    "count(*) FILTER (fell) AS falls, count(*) FILTER (rose) AS rises, count(*) FILTER (inconsistent) AS inconsistent"
)

_JUDGED = """
o.correct AND NOT n.correct AS fell, NOT o.correct AND n.correct AS rose,
NOT n.correct AND NOT coalesce(o.answer = n.answer, false) AS inconsistent,
CAST(n.correct AS INTEGER) - CAST(o.correct AS INTEGER) AS change
"""

_SCORES = f"""
n.score - o.score < -{TIE} AS fell, n.score - o.score > {TIE} AS rose, false AS inconsistent,
n.score - o.score AS change
"""

_MARKED = f"""
CREATE TEMP VIEW marked AS
SELECT coalesce(o.id, n.id) AS id, o.tags AS tags, length(o.input) AS length, len(o.options) AS choices,
       gold_margin(o.options, o.target, o.option_logprobs) AS margin,
       o.correct AS old_right, n.correct AS new_right, {SCORED} AS scored, {{events}}
FROM old_run o FULL OUTER JOIN new_run n ON o.id = n.id;
CREATE TEMP VIEW gated AS SELECT * FROM marked WHERE scored
"""

_TAGGED = "SELECT count(*) > 0 FROM gated WHERE map_extract(tags, ?)[1] IS NOT NULL"

_KEPT = """
SELECT id, scored, coalesce(scored AND fell, false), old_right, new_right FROM marked WHERE id IN (SELECT unnest(?))
"""

_TEXTS = """
SELECT id, right(o.input, {size}), left(o.target, {size}), left(o.answer, {size}), left(n.answer, {size})
FROM old_run o JOIN new_run n USING (id) WHERE id IN (SELECT unnest(?))
"""
