"""Runs: the records of one model on one task, stored by content and resumable.

A run's folder is named by the hash of its fingerprint, so the same model on the same task is evaluated once.
While it is being made it holds `parts/NNNNNN.parquet`, each written whole; when all parts are there they
become `records.parquet`, sorted by id, and `run.json`. Parts are cut the same way every time, so a killed
run that is taken up again ends byte-equal to one that was never interrupted.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uphold.core import records as rec
from uphold.core.errors import CorruptError, DataError, EmptyError
from uphold.core.hashing import sha256_of, sha256_of_file
from uphold.core.records import Record
from uphold.core.storage import atomic_folder, atomic_path, disk_errors, read_json, write_json

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = 1
Fingerprint = Mapping[str, Any]
"""What is needed to repeat a run: `model`, `task`, `batching`, `seed` and `versions`, all plain JSON."""


@dataclass(frozen=True)
class Run:
    """A finished run on disk."""

    path: Path
    """Its folder."""
    fingerprint: Fingerprint
    """What was run on what; see `Fingerprint`."""
    count: int
    """How many records it holds."""
    sha256: str
    """Hash of `records.parquet`."""

    @property
    def name(self) -> str:
        """The model as its user named it."""
        return str(self.fingerprint.get("model", {}).get("name", self.path.name))

    @property
    def task(self) -> str:
        """The task as its user named it."""
        return str(self.fingerprint.get("task", {}).get("name", "task"))

    @property
    def records_path(self) -> Path:
        """The Parquet file with the records, sorted by id."""
        return self.path / "records.parquet"

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The records as an Arrow table sorted by id."""
        return _read_parquet(self.records_path, columns)

    def records(self, ids: Sequence[str] | None = None) -> Iterator[Record]:
        """The records, one at a time, sorted by id; of `ids` only, where they are given."""
        for batch in _read_parquet(self.records_path, None, ids).to_batches(max_chunksize=4096):
            for row in batch.to_pylist():
                yield rec.from_row(row)

    def copy_to(self, folder: Path) -> Run:
        """Copy this run to `folder` and return the copy; nothing is copied when it is there already."""
        if is_run(folder):
            there = load_run(folder)
            if (there.sha256, there.fingerprint) == (self.sha256, self.fingerprint):
                return there
        with atomic_folder(folder) as temporary:
            shutil.copyfile(self.records_path, temporary / "records.parquet")
            _write_header(temporary, self)
        return load_run(folder)


def run_key(fingerprint: Fingerprint) -> str:
    """The content address (24 hex digits) of a run.

    Names that a user gave do not count, nor does `log`: remarks on how another tool's log was read.
    """
    model = {key: value for key, value in fingerprint["model"].items() if key != "name"}
    task = {key: value for key, value in fingerprint["task"].items() if key != "name"}
    rest = {key: value for key, value in fingerprint.items() if key != "log"}
    return sha256_of([FORMAT, {**rest, "model": model, "task": task}])[:24]


def is_run(folder: Path) -> bool:
    """Whether `folder` holds a finished run."""
    return (folder / "run.json").is_file()


def load_run(folder: Path) -> Run:
    """The finished run in `folder`.

    Raises:
        DataError: there is no finished run.
        CorruptError: its records are not those that were written.
    """
    if not is_run(folder):
        raise DataError(f"no finished run in {folder}: expected run.json and records.parquet")
    header = read_json(folder / "run.json")
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise CorruptError(f"{folder / 'run.json'} is not a run of format {FORMAT}; evaluate the model again")
    if not _describes(header.get("fingerprint")) or "count" not in header or "sha256" not in header:
        raise CorruptError(
            f"{folder / 'run.json'} lacks the fingerprint of model and task, count or sha256; evaluate the model again"
        )
    run = Run(folder, header["fingerprint"], header["count"], header["sha256"])
    if not run.records_path.is_file():
        raise CorruptError(f"{run.records_path} is missing; remove {folder} and evaluate the model again")
    if sha256_of_file(run.records_path) != run.sha256:
        raise CorruptError(
            f"{run.records_path} is not the file that was written (its hash differs); "
            f"remove {folder} and evaluate the model again"
        )
    return run


def write_run(folder: Path, records: Iterable[Record], fingerprint: Fingerprint) -> Run:
    """Store `records` as a finished run in `folder`.

    Raises:
        EmptyError: there are no records.
        DataError: two records share an id, or the fingerprint does not say which model and which task.
    """
    if not _describes(fingerprint):
        raise DataError("a run's fingerprint needs the mappings 'model' and 'task', see uphold.core.runs.Fingerprint")
    table = rec.to_table(records)
    return _finish(folder, table, fingerprint)


class RunWriter:
    """A run in the making: write numbered parts, in any order, then `finish`."""

    def __init__(self, folder: Path, fingerprint: Fingerprint) -> None:
        self.folder = folder
        self.fingerprint = fingerprint
        self._parts = folder / "parts"

    def has(self, part: int) -> bool:
        """Whether `part` was written before."""
        return self._part_path(part).is_file()

    def write(self, part: int, records: Sequence[Record]) -> None:
        """Write one part, whole or not at all."""
        _write_parquet(self._part_path(part), rec.to_table(records))

    def finish(self, parts: int) -> Run:
        """Join parts 0..parts-1 into the finished run.

        Raises:
            CorruptError: a part cannot be read; the message names the file to remove.
            DataError: an instance was answered in two parts.
        """
        import pyarrow as pa

        tables = []
        for part in range(parts):
            path = self._part_path(part)
            try:
                tables.append(_read_parquet(path, None))
            except CorruptError:
                raise CorruptError(
                    f"{path} cannot be read; remove that one file and type the same command again: "
                    "only its records are evaluated anew"
                ) from None
        table = pa.concat_tables(tables) if tables else rec.to_table(())
        # Parquet calls the inner fields of lists and maps otherwise than Arrow; cast, so that parts do not show.
        run = _finish(self.folder, table.sort_by("id").cast(rec.schema()), self.fingerprint)
        shutil.rmtree(self._parts, ignore_errors=True)
        return run

    def _part_path(self, part: int) -> Path:
        return self._parts / f"{part:06d}.parquet"


class RunStore:
    """A folder of runs, addressed by content."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, fingerprint: Fingerprint) -> Run | None:
        """The finished run with this fingerprint, if there is one."""
        folder = self._folder(fingerprint)
        return load_run(folder) if is_run(folder) else None

    def writer(self, fingerprint: Fingerprint) -> RunWriter:
        """A writer that takes up whatever parts of this run exist."""
        return RunWriter(self._folder(fingerprint), fingerprint)

    @contextlib.contextmanager
    def claim(self, fingerprint: Fingerprint, waiting: Callable[[], None]) -> Iterator[None]:
        """Hold this run against other processes; a process that dies gives it up.

        Args:
            fingerprint: which run.
            waiting: called once where another process holds it, before waiting for that process.

        Raises:
            StorageError: the store cannot be written.
        """
        from filelock import FileLock, Timeout

        folder = self.root / ".claims"
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / f"{run_key(fingerprint)}.lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                waiting()
                lock.acquire(poll_interval=0.2)
        try:
            yield
        finally:
            lock.release()

    def _folder(self, fingerprint: Fingerprint) -> Path:
        return self.root / run_key(fingerprint)


def default_store() -> RunStore:
    """The store in `$UPHOLD_STORE`, or in `$XDG_CACHE_HOME/uphold/runs` (`~/.cache/uphold/runs`)."""
    named = os.environ.get("UPHOLD_STORE")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return RunStore(Path(named) if named else cache / "uphold" / "runs")


def _finish(folder: Path, table: pa.Table, fingerprint: Fingerprint) -> Run:
    if table.num_rows == 0:
        raise EmptyError(f"the run for {folder} has no records: the task gave no instances")
    if len(table["id"].unique()) != table.num_rows:
        raise DataError(f"two records of the run for {folder} share an id: every instance may be answered once")
    path = folder / "records.parquet"
    _write_parquet(path, table)
    run = Run(folder, fingerprint, table.num_rows, sha256_of_file(path))
    _write_header(folder, run)
    return run


def _write_header(folder: Path, run: Run) -> None:
    header = {"format": FORMAT, "fingerprint": dict(run.fingerprint), "count": run.count, "sha256": run.sha256}
    write_json(folder / "run.json", header)


def _describes(fingerprint: Any) -> bool:
    """Whether `fingerprint` says which model and which task."""
    return isinstance(fingerprint, Mapping) and all(
        isinstance(fingerprint.get(key), Mapping) for key in ("model", "task")
    )


def _write_parquet(path: Path, table: pa.Table) -> None:
    import pyarrow.parquet as pq

    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def _read_parquet(path: Path, columns: Sequence[str] | None, ids: Sequence[str] | None = None) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows = None if ids is None else [("id", "in", set(ids))]
        return pq.read_table(path, columns=list(columns) if columns else None, filters=rows, partitioning=None)
    except FileNotFoundError:
        raise CorruptError(f"{path} is missing; evaluate the model again") from None
    except (pa.ArrowException, OSError) as error:
        raise CorruptError(f"{path} cannot be read as Parquet ({str(error).splitlines()[0]})") from error
