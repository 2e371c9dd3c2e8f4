"""What every version did on every instance, joined out of core and counted by pattern."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from uphold.core.query import connected
from uphold.core.runs import Run
from uphold.measure.pairs import TIE

if TYPE_CHECKING:
    import duckdb

KINDS: Mapping[str, str] = {
    "kept": "right in every version",
    "gained": "wrong at first, right from some version on",
    "recovered": "lost at some version, right again in the last one",
    "lost": "right in an earlier version, wrong in the last one",
    "never": "right in no version",
}
"""The five kinds of pattern; every instance is of exactly one."""


@dataclass(frozen=True)
class Answer:
    """What one version said on one instance."""

    text: str
    """The part of the output that was scored."""
    correct: bool | None
    score: float | None


@dataclass(frozen=True)
class Timeline:
    """One instance through all versions."""

    id: str
    pattern: str
    """One character per version: 1 where it holds, 0 where it does not; see `Pattern`."""
    input: str
    gold: str
    tags: Mapping[str, str]
    answers: tuple[Answer, ...]
    """One per version."""

    @property
    def changes(self) -> int:
        """How often it turned from right to wrong or back."""
        return changes(self.pattern)

    @property
    def kind(self) -> str:
        """A key of `KINDS`."""
        return kind(self.pattern)


def changes(pattern: str) -> int:
    """How many neighbouring versions of `pattern` differ."""
    return sum(left != right for left, right in itertools.pairwise(pattern))


def kind(pattern: str) -> str:
    """The key of `KINDS` that describes `pattern`, a string of 0 and 1."""
    if "0" not in pattern:
        return "kept"
    if "1" not in pattern:
        return "never"
    if pattern.endswith("0"):
        return "lost"
    return "recovered" if "10" in pattern else "gained"


class Timelines:
    """The instances that every one of N runs answered, and what the runs made of them.

    A version *holds* an instance when its answer is right. Where scores are continuous there is no right and wrong:
    there it holds an instance when its score is not below that of any earlier version, so the first version holds
    every instance.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, sources: Sequence[str]) -> None:
        """Join `sources`: views of the records, one per version."""
        self._connection = connection
        self._sources = sources
        self._versions = range(len(sources))
        connection.execute(_join(self._sources))
        self.joined, self.count, judged = self._row(
            "SELECT count(*), count(*) FILTER (scored), coalesce(bool_and(outcome IS NOT NULL) FILTER (scored), false) "
            "FROM timeline"
        )
        self.judged = bool(judged)
        connection.execute(_marks(len(sources), self.judged))

    def means(self) -> list[tuple[float, float]]:
        """Per version, the mean and the standard deviation of 0/1 correctness, or of the continuous score."""
        wanted = ", ".join(f"avg(v{k}), coalesce(stddev_samp(v{k}), 0)" for k in self._versions)
        row = self._row(f"SELECT {wanted} FROM marks")
        return [(row[2 * k], row[2 * k + 1]) for k in self._versions]

    def flips(self, pairs: Sequence[tuple[int, int]]) -> dict[tuple[int, int], tuple[int, int]]:
        """Per pair (earlier, later) of versions, how many instances fall and how many rise."""
        if not pairs:
            return {}
        wanted = ", ".join(
            f"count(*) FILTER (v{later} - v{earlier} < -{TIE}), count(*) FILTER (v{later} - v{earlier} > {TIE})"
            for earlier, later in pairs
        )
        row = self._row(f"SELECT {wanted} FROM marks")
        return {pair: (row[2 * index], row[2 * index + 1]) for index, pair in enumerate(pairs)}

    def debts(self) -> list[int]:
        """Per version, how many instances fare worse than in some earlier version."""
        wanted = ", ".join(f"count(*) FILTER ({_best(k)} - v{k} > {TIE})" for k in self._versions[1:])
        return [0, *self._row(f"SELECT {wanted} FROM marks")]

    @cached_property
    def _grouped(self) -> str:
        """The name of the table of patterns, made when it is first asked for."""
        self._connection.execute(
            """
            CREATE TEMP TABLE patterns AS
            SELECT pattern, count(*) AS instances,
                   CASE WHEN NOT contains(pattern, '0') THEN 'kept' WHEN NOT contains(pattern, '1') THEN 'never'
                        WHEN ends_with(pattern, '0') THEN 'lost' WHEN contains(pattern, '10') THEN 'recovered'
                        ELSE 'gained' END AS kind,
                   length(regexp_replace(regexp_replace(pattern, '0+', '0', 'g'), '1+', '1', 'g')) - 1 AS changes,
                   length(rtrim(pattern, '0')) AS held
            FROM marks GROUP BY pattern
            """
        )
        return "patterns"

    def kinds(self) -> dict[str, int]:
        """How many instances are of each kind; see `KINDS`."""
        rows = self._rows(f"SELECT kind, sum(instances)::BIGINT FROM {self._grouped} GROUP BY kind")
        counts = {name: int(count) for name, count in rows}
        return {name: counts.get(name, 0) for name in KINDS}

    def broken_since(self) -> list[int]:
        """Per version, how many instances hold in the version before it, and from it on no more."""
        rows = self._rows(f"SELECT held, sum(instances)::BIGINT FROM {self._grouped} WHERE kind = 'lost' GROUP BY held")
        counts = dict(rows)
        return [int(counts.get(k, 0)) if k else 0 for k in self._versions]

    def oscillating(self) -> dict[int, int]:
        """How many instances change how often, from two changes on, the most first."""
        rows = self._rows(
            f"SELECT changes, sum(instances)::BIGINT FROM {self._grouped} WHERE changes >= 2 "
            "GROUP BY changes ORDER BY changes DESC"
        )
        return {int(often): int(count) for often, count in rows}

    def patterns(self, limit: int) -> tuple[list[tuple[str, int]], int]:
        """The `limit` commonest patterns with their counts, and how many patterns there are in all."""
        rows = self._rows(
            f"SELECT pattern, instances FROM {self._grouped} ORDER BY instances DESC, pattern DESC LIMIT {limit:d}"
        )
        return [(pattern, int(count)) for pattern, count in rows], self._row(f"SELECT count(*) FROM {self._grouped}")[0]

    def instances(self, limit: int) -> list[Timeline]:
        """Up to `limit` instances that oscillate (most changes first), then up to `limit` that are lost (latest first).

        Only these are read with their texts.
        """
        self._connection.execute(
            f"""
            CREATE OR REPLACE TEMP TABLE chosen AS
            WITH ranked AS (SELECT id, pattern, kind, changes, held FROM marks JOIN {self._grouped} USING (pattern)
                            WHERE changes >= 2 OR kind = 'lost')
            SELECT id, pattern, row_number() OVER (ORDER BY least(changes, 2) < 2, changes DESC, held DESC, id) AS place
            FROM ((FROM ranked WHERE changes >= 2 ORDER BY changes DESC, held DESC, id LIMIT {limit:d})
                  UNION ALL
                  (FROM ranked WHERE changes < 2 ORDER BY held DESC, id LIMIT {limit:d}))
            """
        )
        texts = self._rows(
            "SELECT c.id, c.pattern, r.input, r.target, r.tags "
            f"FROM chosen c JOIN {self._sources[0]} r USING (id) ORDER BY c.place"
        )
        answers = [
            self._rows(f"SELECT r.answer, r.correct, r.score FROM chosen c JOIN {source} r USING (id) ORDER BY c.place")
            for source in self._sources
        ]
        return [
            Timeline(name, pattern, question, gold, dict(tags or {}), tuple(Answer(*row) for row in said))
            for (name, pattern, question, gold, tags), *said in zip(texts, *answers, strict=True)
        ]

    def _rows(self, query: str) -> list[tuple]:  # type: ignore[type-arg]
        return self._connection.execute(query).fetchall()

    def _row(self, query: str) -> tuple:  # type: ignore[type-arg]
        [row] = self._rows(query)
        return row


@contextlib.contextmanager
def timelines(runs: Sequence[Run]) -> Iterator[Timelines]:
    """Join `runs` on instance id, in temporary files that are gone when the block ends.

    Raises:
        DataError: the records cannot be read.
        StorageError: there is no room for the temporary files.
    """
    named = {f"run{k}": run for k, run in enumerate(runs)}
    with connected(named, tables_on_disk=True) as connection:
        # Whatever needs an order asks for it.
        connection.execute("SET preserve_insertion_order = false")
        yield Timelines(connection, list(named))


def _join(sources: Sequence[str]) -> str:
    names = [f"r{k}" for k in range(len(sources))]
    outcome = " || ".join(f"CASE {name}.correct WHEN true THEN '1' WHEN false THEN '0' END" for name in names)
    scored = " AND ".join(f"NOT isnan({name}.score)" for name in names)
    scores = ", ".join(f"{name}.score AS s{k}" for k, name in enumerate(names))
    joined = f"{sources[0]} r0 " + " ".join(
        f"JOIN {source} {name} USING (id)" for source, name in zip(sources[1:], names[1:], strict=True)
    )
    return (
        f"CREATE TABLE timeline AS SELECT id, {outcome} AS outcome, coalesce({scored}, false) AS scored, {scores} "
        f"FROM {joined}"
    )


def _best(version: int) -> str:
    return f"greatest({', '.join(f'v{k}' for k in range(version))})"


def _marks(versions: int, judged: bool) -> str:
    """A view of the scored instances with a number per version, in which falls and rises are counted."""
    if judged:
        numbers = ", ".join(f"(substr(outcome, {k + 1}, 1) = '1')::INTEGER AS v{k}" for k in range(versions))
        return f"CREATE VIEW marks AS SELECT id, outcome AS pattern, {numbers} FROM timeline WHERE scored"
    held = " || ".join(f"CASE WHEN {_best(k)} - v{k} > {TIE} THEN '0' ELSE '1' END" for k in range(1, versions))
    numbers = ", ".join(f"s{k} AS v{k}" for k in range(versions))
    return (
        f"CREATE VIEW marks AS SELECT *, '1' || {held} AS pattern "
        f"FROM (SELECT id, {numbers} FROM timeline WHERE scored)"
    )
