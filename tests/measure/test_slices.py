from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import make_record, make_run
from uphold.core.runs import Run
from uphold.measure.slices import Slice, slices

Row = tuple[int, bool, bool, dict[str, str]]


def two_runs(folder: Path, rows: list[Row]) -> tuple[Run, Run]:
    old = [make_record(number, was, "x", tags=tags) for number, was, _, tags in rows]
    new = [make_record(number, now, "x", tags=tags) for number, _, now, tags in rows]
    return make_run(folder / "old", old, "old"), make_run(folder / "new", new, "new")


def test_flips_are_counted_per_tag_worst_first(tmp_path: Path) -> None:
    easy, hard = {"level": "easy", "lang": "en"}, {"level": "hard", "lang": "en"}
    runs = two_runs(
        tmp_path,
        [
            (1, True, True, easy),
            (2, True, True, easy),
            (3, False, True, easy),
            (4, True, False, hard),
            (5, True, False, hard),
            (6, False, False, hard),
            (7, False, True, hard),
        ],
    )

    assert slices(*runs) == [
        Slice("level", "hard", 4, old_right=2, new_right=1, negative_flips=2, positive_flips=1),
        Slice("lang", "en", 7, old_right=4, new_right=4, negative_flips=2, positive_flips=2),
        Slice("level", "easy", 3, old_right=2, new_right=3, negative_flips=0, positive_flips=1),
    ]


def test_a_slice_has_its_rate_and_exact_interval() -> None:
    part = Slice("level", "hard", 20, 12, 10, negative_flips=0, positive_flips=3)

    assert part.nfr == 0.0
    # 1 - 0.025 ** (1 / 20)
    assert part.nfr_interval == pytest.approx((0.0, 0.168433), abs=1e-6)
    assert Slice("level", "easy", 8, 5, 5, 2, 2).nfr == 0.25


def test_no_tags_no_slices(tmp_path: Path) -> None:
    assert slices(*two_runs(tmp_path, [(1, True, False, {}), (2, True, True, {})])) == []


def test_instances_without_score_are_in_no_slice(tmp_path: Path) -> None:
    tags = {"level": "easy"}
    nan = float("nan")
    old = [make_record(number, True, "x", tags=tags) for number in (1, 2, 3)]
    new = [
        make_record(1, False, "x", tags=tags),
        make_record(2, None, "x", tags=tags),
        make_record(3, False, "x", nan, tags=tags),
    ]

    (part,) = slices(make_run(tmp_path / "old", old, "old"), make_run(tmp_path / "new", new, "new"))

    assert (part.count, part.negative_flips) == (1, 1)
