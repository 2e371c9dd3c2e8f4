from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.conftest import make_record, make_run
from uphold.core.errors import DataError
from uphold.core.query import connected
from uphold.core.runs import Run


def run(folder: Path, count: int) -> Run:
    return make_run(folder, [make_record(n, True, "a") for n in range(count)], folder.name)


def counts(runs: dict[str, Run], **options: bool) -> list[int]:
    with connected(runs, **options) as connection:
        found = [connection.execute(f"SELECT count(*) FROM {name}").fetchall()[0][0] for name in runs]
    return [int(count) for count in found]


@pytest.mark.parametrize("on_disk", [True, False])
def test_every_run_is_a_view(tmp_path: Path, on_disk: bool) -> None:
    assert counts({"old": run(tmp_path / "a", 3), "new": run(tmp_path / "b", 5)}, tables_on_disk=on_disk) == [3, 5]


@pytest.mark.parametrize("name", ["[ab]", "a*", "?", "it's", "[[*]]", "key=value"])
def test_folders_are_no_patterns(tmp_path: Path, name: str) -> None:
    run(tmp_path / "a", 1)
    run(tmp_path / "b", 2)
    odd = run(tmp_path / name, 7)

    assert counts({"old": odd}) == [7]
    with connected({"old": odd}) as connection:
        columns = [column[0] for column in connection.execute("DESCRIBE old").fetchall()]
    assert columns == [*odd.table().column_names, "file_row_number"]


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "spill"))
    (tmp_path / "spill").mkdir()
    one = run(tmp_path / "run", 3)

    counts({"old": one}, tables_on_disk=True)

    assert os.listdir(tmp_path / "spill") == []
    assert sorted(os.listdir(tmp_path)) == ["run", "spill"]


def test_unreadable_records_are_one_line(tmp_path: Path) -> None:
    broken = run(tmp_path / "run", 3)
    broken.records_path.write_bytes(b"PAR1 nonsense")

    with pytest.raises(DataError, match=r"the records of 'run' cannot be joined \(.*\); evaluate them again"):
        counts({"old": broken})
