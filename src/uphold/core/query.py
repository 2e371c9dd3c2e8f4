"""Runs in DuckDB: questions to the records of several runs, out of core."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from uphold.core.errors import DataError, StorageError
from uphold.core.runs import Run

if TYPE_CHECKING:
    import duckdb

MEMORY = "1GB"
"""What DuckDB may hold; the rest is spilled to temporary files."""


@contextlib.contextmanager
def connected(runs: Mapping[str, Run], tables_on_disk: bool = False) -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckDB connection with a view of every run's records: the columns of `Record`, and `file_row_number`.

    Args:
        runs: the runs by the names of their views.
        tables_on_disk: keep tables that are made on the connection in a temporary file, not in memory.

    Raises:
        DataError: the records cannot be read.
        StorageError: there is no room for what does not fit into memory.
    """
    import duckdb

    names = " and ".join(f"'{name}'" for name in dict.fromkeys(run.name for run in runs.values()))
    with tempfile.TemporaryDirectory(prefix="uphold-") as folder:
        config: dict[str, str | bool | int | float | list[str]] = {"memory_limit": MEMORY, "temp_directory": folder}
        database = str(Path(folder) / "tables.duckdb") if tables_on_disk else ":memory:"
        try:
            with duckdb.connect(database, config=config) as connection:
                connection.execute("SET enable_progress_bar = false")
                for name, run in runs.items():
                    connection.execute(f"CREATE TEMP VIEW {name} AS SELECT * FROM {source(run)}")
                yield connection
        except duckdb.OutOfMemoryException as error:
            raise StorageError(
                f"joining {names} takes more than {MEMORY} of memory and what is free in {tempfile.gettempdir()}: free "
                "some disk space there, or set TMPDIR to a larger disk"
            ) from error
        except duckdb.Error as error:
            reason = " ".join(str(error).split())[:200]
            raise DataError(f"the records of {names} cannot be joined ({reason}); evaluate them again") from error


def source(run: Run) -> str:
    """SQL that reads the run's records. DuckDB takes `*`, `?` and `[` in a path for patterns; here they are literal."""
    path = re.sub(r"([*?\[])", r"[\1]", str(run.records_path)).replace("'", "''")
    return f"read_parquet('{path}', hive_partitioning = false, file_row_number = true)"
