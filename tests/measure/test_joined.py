from __future__ import annotations

from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest

from tests.conftest import make_record, make_run
from uphold.core import query as module
from uphold.core.errors import DataError, StorageError
from uphold.core.runs import Run
from uphold.measure.joined import joined


def run_of(folder: Path, numbers: list[int], name: str) -> Run:
    return make_run(folder, [make_record(number, True, f"{name} {number}") for number in numbers], name)


def answers(old: Run, new: Run) -> list[tuple[str | None, str | None]]:
    with joined(old, new) as connection:
        return connection.execute("SELECT old_answer, new_answer FROM pairs ORDER BY old_id, new_id").fetchall()


@pytest.mark.parametrize("name", ["it's", "score=1", "a[1]", "c*", "\u00fc", 'say "hi"'])
def test_runs_may_lie_in_folders_of_any_name(tmp_path: Path, name: str) -> None:
    old, new = run_of(tmp_path / name / "old", [1], "old"), run_of(tmp_path / name / "new", [1], "new")

    assert answers(old, new) == [("old 1", "new 1")]


def test_instances_of_one_run_only_stand_alone(tmp_path: Path) -> None:
    old, new = run_of(tmp_path / "old", [1, 2], "old"), run_of(tmp_path / "new", [2, 3], "new")

    assert sorted(answers(old, new), key=str) == [("old 1", None), ("old 2", "new 2"), (None, "new 3")]


def test_records_that_are_not_sorted_are_paired_by_id_all_the_same(tmp_path: Path) -> None:
    old, new = run_of(tmp_path / "old", [1, 2, 3], "old"), run_of(tmp_path / "new", [1, 2, 3], "new")
    pq.write_table(new.table().take([2, 0, 1]), new.records_path)

    assert answers(old, new) == [(f"old {number}", f"new {number}") for number in (1, 2, 3)]


def test_records_without_a_column_are_unreadable_in_one_line(tmp_path: Path) -> None:
    old, new = run_of(tmp_path / "old", [1], "old"), run_of(tmp_path / "new", [1], "new")
    pq.write_table(new.table(["id", "score"]), new.records_path)

    with pytest.raises(DataError, match="the records of 'old' and 'new' cannot be joined") as caught:
        answers(old, new)
    assert "\n" not in str(caught.value)


def many(folder: Path, count: int, first: int, name: str) -> Run:
    """A run with answers too long to be kept in little memory."""
    run = run_of(folder, [1], name)
    rows = f"""SELECT printf('%016x', range) AS id, '' AS input, '' AS target, '' AS output,
                      sha256(range::VARCHAR) || sha256(range::VARCHAR || 'x') AS answer, true AS correct, 1.0 AS score,
                      MAP {{'a': 'b'}} AS tags FROM range({first}, {first + count})"""
    duckdb.execute(f"COPY ({rows}) TO '{run.records_path}' (FORMAT parquet)")
    return run


def test_no_room_to_work_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = many(tmp_path / "old", 50_000, 0, "old"), many(tmp_path / "new", 50_000, 1, "new")
    monkeypatch.setattr(module, "MEMORY", "1MB")

    with (
        pytest.raises(StorageError, match=r"takes more than 1MB of memory and what is free in .*set TMPDIR") as caught,
        joined(old, new) as connection,
    ):
        connection.execute("SELECT count(*) FILTER (old_answer = new_answer) FROM pairs")
    assert "\n" not in str(caught.value)
