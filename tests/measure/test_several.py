from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.conftest import make_record, make_run
from uphold.core.errors import DataError
from uphold.measure.comparison import Comparison, compare_runs
from uphold.measure.several import comparison_folders, folder_name, load_comparisons, overview, save_comparisons


def comparison(folder: Path, task: str, kept: int, scores: bool = False) -> Comparison:
    """100 instances that the old model answers right; the new one keeps `kept` of them."""

    def records(right: int) -> list[object]:
        return [
            make_record(n, None if scores else n < right, str(n < right), 0.25 + 0.5 * (n < right) if scores else None)
            for n in range(100)
        ]

    old = make_run(folder / "old", records(100), "v1", name=task)  # type: ignore[arg-type]
    new = make_run(folder / "new", records(kept), "v2", name=task)  # type: ignore[arg-type]
    return compare_runs(old, new)


def test_one_comparison_is_saved_where_it_is_asked_for(tmp_path: Path) -> None:
    made = {"colours": comparison(tmp_path / "runs", "colours", 90)}

    assert save_comparisons(made, tmp_path / "out") == {"colours": tmp_path / "out"}
    assert str(load_comparisons(tmp_path / "out")["colours"]) == str(made["colours"])


def test_several_comparisons_have_a_folder_each(tmp_path: Path) -> None:
    made = {name: comparison(tmp_path / f"runs{n}", name, 90) for n, name in enumerate(["piqa", "a/b:c=1", "a/b:c=2"])}

    folders = save_comparisons(made, tmp_path / "out")

    assert folders["piqa"] == tmp_path / "out" / "piqa"
    assert len(set(folders.values())) == 3
    assert load_comparisons(tmp_path / "out").keys() == made.keys()
    assert set(comparison_folders(tmp_path / "out")) == set(folders.values())


@given(st.text(max_size=200))
@example("runs")
def test_folder_names_stay_inside_the_folder(task: str) -> None:
    name = folder_name(task)

    assert name
    assert len(name) < 100
    assert not set(name) & set("/\\\0:\n")
    assert name not in (".", "..", "runs")


@given(st.text(max_size=20), st.text(max_size=20))
def test_two_tasks_never_share_a_folder(one: str, other: str) -> None:
    assert (folder_name(one) == folder_name(other)) == (one == other)


def test_nothing_saved_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no comparison in .*: expected comparison.json"):
        load_comparisons(tmp_path)


def test_one_task_twice_below_a_folder_is_an_error(tmp_path: Path) -> None:
    made = comparison(tmp_path / "runs", "colours", 90)
    made.save(tmp_path / "out" / "a")
    made.save(tmp_path / "out" / "b")

    with pytest.raises(DataError, match="two comparisons of the task 'colours'"):
        load_comparisons(tmp_path / "out")


def test_the_overview_corrects_for_the_number_of_tasks(tmp_path: Path) -> None:
    made = {
        "worse": comparison(tmp_path / "1", "worse", 90),
        "same": comparison(tmp_path / "2", "same", 100),
        "scores": comparison(tmp_path / "3", "scores", 99, scores=True),
    }

    lines = overview(made)

    assert lines[0].split() == ["task", "instances", "old", "new", "NFR", "95%", "interval", "noise", "floor", "p", "q"]
    assert lines[1].split()[:5] == ["worse", "100", "100.00%", "90.00%", "10.00%"]
    # Two-sided exact McNemar of 10 against 0 flips is 2 / 2^10; the smallest of three p-values is multiplied by 3.
    assert lines[1].split()[-2:] == [f"{2 / 2**10:.3g}", f"{3 * 2 / 2**10:.3g}"]
    assert lines[2].split()[-2:] == ["1", "1"]
    assert lines[3].split()[2:4] == ["0.750", "0.745"]


def test_a_folder_that_cannot_be_read_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_comparisons({"a": comparison(tmp_path / "runs", "a", 90)}, tmp_path / "out" / "a")
    locked = tmp_path / "out" / "locked"
    locked.mkdir()
    # The tests may run as root, whom no permission stops.
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path) == str(locked):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"cannot read .*locked: Permission denied"):
        load_comparisons(tmp_path / "out")
