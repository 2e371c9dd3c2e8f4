"""Two runs side by side in DuckDB, out of core."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from uphold.core.query import connected
from uphold.core.runs import Run

if TYPE_CHECKING:
    import duckdb


@contextlib.contextmanager
def joined(old: Run, new: Run) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection with the view `pairs`: every column of both records, named `old_...` and `new_...`.

    Instances are paired by id. An instance of one run only has NULL for everything of the other.

    Raises:
        DataError: the records cannot be read.
        StorageError: there is no room for what does not fit into memory.
    """
    with connected({"old_run": old, "new_run": new}) as connection:
        _create_view(connection)
        yield connection


def _create_view(connection: duckdb.DuckDBPyConnection) -> None:
    # Records are sorted by id: where both runs answered the same instances, row stands by row, and no hash table
    # has to be built. That is seen by comparing all ids.
    (apart,) = connection.execute(
        "SELECT count(*) FILTER (NOT coalesce(o.id = n.id, false)) FROM old_run o POSITIONAL JOIN new_run n"
    ).fetchall()[0]
    how = "POSITIONAL JOIN new_run n"
    if apart:
        how = "FULL OUTER JOIN new_run n ON o.id = n.id"
        # Whatever needs an order asks for it.
        connection.execute("SET preserve_insertion_order = false")
    names = [column[0] for column in connection.execute("DESCRIBE old_run").fetchall()]
    columns = ", ".join(f'o."{name}" AS "old_{name}", n."{name}" AS "new_{name}"' for name in names)
    connection.execute(f"CREATE TEMP VIEW pairs AS SELECT {columns} FROM old_run o {how}")
