"""The records of two runs in DuckDB, out of core, for questions that need more than scores: tags, prompts, options."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from uphold.core.query import connected
from uphold.core.runs import Run

if TYPE_CHECKING:
    import duckdb

SCORED = "coalesce(NOT isnan(o.score) AND NOT isnan(n.score), false)"
"""SQL: whether an instance is scored in both runs, joined as `o` and `n`."""

# A gold text that is no option, or a single option, has no margin.
GOLD_MARGIN = """
CREATE TEMP MACRO gold_margin(options, gold, logprobs) AS
CASE WHEN len(logprobs) > 1 AND list_position(options, gold) BETWEEN 1 AND len(logprobs)
     THEN logprobs[list_position(options, gold)] - list_max(list_concat(
          logprobs[1 : list_position(options, gold) - 1],
          logprobs[list_position(options, gold) + 1 : len(logprobs)])) END
"""


@contextmanager
def paired_records(old: Run, new: Run, repaired: Run | None = None) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection with the views `old_run`, `new_run` and perhaps `repaired_run` (see `uphold.core.query.connected`).

    The macro `gold_margin(options, gold, logprobs)` is the log-likelihood (nats) of the gold option minus that of the
    best other one, or NULL where there is none.
    """
    runs = {"old_run": old, "new_run": new} | ({"repaired_run": repaired} if repaired is not None else {})
    with connected(runs) as connection:
        # Whatever needs an order asks for it.
        connection.execute("SET preserve_insertion_order = false")
        connection.execute(GOLD_MARGIN)
        yield connection
