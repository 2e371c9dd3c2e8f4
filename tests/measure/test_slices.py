from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from tests.conftest import make_record, make_run
from uphold.core.runs import Run
from uphold.measure.slices import Slice, derived_range, equal_bins, slices

Row = tuple[int, bool, bool, dict[str, str]]


def two_runs(folder: Path, rows: list[Row], **fields: list[Any]) -> tuple[Run, Run]:
    """Runs with right and wrong answers; `fields` hold one value per record, for both runs."""
    columns = {"input": ["question"] * len(rows)} | fields
    changes = [{name: values[place] for name, values in columns.items()} for place in range(len(rows))]
    old = [
        make_record(number, was, "x", tags=tags, **more)
        for (number, was, _, tags), more in zip(rows, changes, strict=True)
    ]
    new = [
        make_record(number, now, "x", tags=tags, **more)
        for (number, _, now, tags), more in zip(rows, changes, strict=True)
    ]
    return make_run(folder / "old", old, "old"), make_run(folder / "new", new, "new")


def plain(count: int, flips: int) -> list[Row]:
    return [(number, True, number >= flips, {}) for number in range(count)]


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

    # P(both of two flips are among the four hard ones of seven) = 6 / 21; the other slices are no surprise at all.
    assert slices(*runs) == [
        Slice("level", "hard", 4, 2, 1, 2, 1, 0, p=pytest.approx(6 / 21), q=pytest.approx(18 / 21)),
        Slice("lang", "en", 7, 4, 4, 2, 2, 0, p=1.0, q=1.0),
        Slice("level", "easy", 3, 2, 3, 0, 1, 0, p=1.0, q=1.0),
    ]


def test_p_is_fishers_and_q_is_benjamini_and_hochbergs(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    rows = [
        (number, True, bool(generator.random() > (0.3 if number % 5 == 0 else 0.05)), {"group": f"g{number % 5}"})
        for number in range(400)
    ]

    found = slices(*two_runs(tmp_path, rows))

    flips = sum(part.negative_flips for part in found)
    for part in found:
        inside, outside = part.negative_flips, flips - part.negative_flips
        cells = [[inside, part.count - inside], [outside, 400 - part.count - outside]]
        assert part.p == pytest.approx(scipy_stats.fisher_exact(cells, alternative="greater").pvalue, rel=1e-9)
    assert [part.q for part in found] == pytest.approx(scipy_stats.false_discovery_control([part.p for part in found]))
    assert found[0].value == "g0"
    assert found[0].q < 1e-3


def test_a_slice_has_its_rate_and_exact_interval() -> None:
    part = Slice("level", "hard", 20, 12, 10, 0, 3, 1, 1.0, 1.0)

    assert part.nfr == 0.0
    # 1 - 0.025 ** (1 / 20)
    assert part.nfr_interval == pytest.approx((0.0, 0.168433), abs=1e-6)
    assert Slice("level", "easy", 8, 5, 5, 2, 2, 0, 1.0, 1.0).nfr == 0.25


def test_inconsistent_are_wrong_answers_that_changed(tmp_path: Path) -> None:
    tags = {"level": "hard"}
    old = [make_record(n, n < 2, answer, tags=tags) for n, answer in enumerate(["a", "b", "c", "d"])]
    new = [make_record(n, n < 1, answer, tags=tags) for n, answer in enumerate(["a", "z", "c", "z"])]

    (part,) = slices(make_run(tmp_path / "old", old, "old"), make_run(tmp_path / "new", new, "new"))

    assert (part.negative_flips, part.inconsistent) == (1, 2)


def test_nothing_to_tell_instances_apart_no_slices(tmp_path: Path) -> None:
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


def test_no_instance_scored_no_slices(tmp_path: Path) -> None:
    records = [make_record(1, None, "x", tags={"level": "easy"})]

    assert slices(make_run(tmp_path / "old", records, "old"), make_run(tmp_path / "new", records, "new")) == []


def test_an_instance_without_a_tag_is_in_the_rest(tmp_path: Path) -> None:
    rows = [(n, True, n >= 2, {"level": "hard"} if n < 3 else {}) for n in range(6)]

    (part,) = slices(*two_runs(tmp_path, rows))

    assert (part.count, part.negative_flips) == (3, 2)
    # C(3,2) / C(6,2)
    assert part.p == pytest.approx(3 / 15)


def test_input_length_comes_in_quartiles(tmp_path: Path) -> None:
    texts = ["x" * (10 + number) for number in range(40)]

    found = slices(*two_runs(tmp_path, plain(40, 10), input=texts))

    assert [(part.tag, part.value, part.count, part.negative_flips) for part in found] == [
        ("input length", "10-19 characters", 10, 10),
        ("input length", "20-29 characters", 10, 0),
        ("input length", "30-39 characters", 10, 0),
        ("input length", "40-49 characters", 10, 0),
    ]


def test_lengths_are_characters_and_ties_stay_together(tmp_path: Path) -> None:
    texts = ["é" * 5] * 30 + ["y" * 9] * 2

    found = slices(*two_runs(tmp_path, plain(32, 3), input=texts))

    assert [(part.value, part.count) for part in found] == [("5 characters", 30), ("9 characters", 2)]


def test_the_number_of_options_makes_slices(tmp_path: Path) -> None:
    options = [("a", "b")] * 4 + [("a", "b", "c")] * 4

    found = slices(*two_runs(tmp_path, plain(8, 2), options=options))

    assert [(part.tag, part.value, part.negative_flips) for part in found] == [("options", "2", 2), ("options", "3", 0)]


def test_the_old_models_margin_makes_slices(tmp_path: Path) -> None:
    logprobs = [(-9.0, -1.0), (-2.0, -1.0), (-1.0, -1.0), (-1.0, -2.5), (-1.0, -3.0), (), (float("nan"), -1.0)]
    old = [
        make_record(n, True, "x", target="a", options=("a", "b"), option_logprobs=pair)
        for n, pair in enumerate(logprobs)
    ]
    new = [
        make_record(n, n > 0, "x", target="a", options=("a", "b"), option_logprobs=(-1.0, -50.0))
        for n in range(len(logprobs))
    ]

    found = slices(make_run(tmp_path / "old", old, "old"), make_run(tmp_path / "new", new, "new"))

    assert {(part.value, part.count) for part in found} == {
        ("below -2 nats", 1),
        ("-2 to 0 nats", 1),
        ("0 to 2 nats", 2),
        ("2 nats or more", 1),
    }
    assert {part.tag for part in found} == {"old margin"}


def test_a_tag_takes_the_place_of_a_derived_slice_of_its_name(tmp_path: Path) -> None:
    rows = [(n, True, n > 0, {"options": "many"}) for n in range(4)]

    found = slices(*two_runs(tmp_path, rows, options=[("a",), ("a",), ("a", "b"), ("a", "b")]))

    assert [(part.tag, part.value) for part in found] == [("options", "many")]


def test_the_values_of_a_tag_beyond_the_most_frequent_share_a_slice(tmp_path: Path) -> None:
    customers = [f"c{n // 3}" for n in range(12)] + ["rare1", "rare2", "rare2"]
    rows = [(n, True, n not in (0, 13), {"customer": customer}) for n, customer in enumerate(customers)]

    found = slices(*two_runs(tmp_path, rows), most_values=3)

    assert {(part.value, part.count, part.negative_flips) for part in found} == {
        ("c0", 3, 1),
        ("c1", 3, 0),
        ("c2", 3, 0),
        ("3 other values", 6, 1),
    }


def test_a_tag_that_names_instances_makes_no_slices(tmp_path: Path) -> None:
    rows = [(n, True, n > 2, {"document": f"d{n}", "half": str(n // 10)}) for n in range(20)]

    assert {part.tag for part in slices(*two_runs(tmp_path, rows))} == {"half"}


def test_continuous_scores_are_sliced_by_falls_and_rises(tmp_path: Path) -> None:
    tags = [{"level": "easy"}, {"level": "easy"}, {"level": "hard"}, {"level": "hard"}]
    before, after = [0.5, 0.5, 0.5, 0.5], [0.5 + 1e-12, 0.9, 0.2, 0.1]
    old = [make_record(n, None, "x", score, tags=tags[n]) for n, score in enumerate(before)]
    new = [make_record(n, None, "x", score, tags=tags[n]) for n, score in enumerate(after)]

    found = slices(make_run(tmp_path / "old", old, "old"), make_run(tmp_path / "new", new, "new"))

    assert found == [
        Slice("level", "hard", 2, None, None, 2, 0, None, p=pytest.approx(1 / 6), q=pytest.approx(1 / 3)),
        Slice("level", "easy", 2, None, None, 0, 1, None, p=1.0, q=1.0),
    ]


def test_any_folder_name_can_be_read(tmp_path: Path) -> None:
    folder = tmp_path / "it's a folder"
    folder.mkdir()

    assert len(slices(*two_runs(folder, [(1, True, False, {"level": "easy"})]))) == 1


@given(st.lists(st.integers(0, 30), min_size=1, max_size=200), st.integers(1, 6))
def test_bins_hold_every_value_once_and_ties_together(values: list[int], bins: int) -> None:
    distinct, counts = np.unique(np.array(values), return_counts=True)

    found = equal_bins(distinct, counts, bins)

    assert len(found) <= bins
    covered = [value for low, high in found for value in distinct if low <= value <= high]
    assert covered == distinct.tolist()
    if len(distinct) > 1 and bins > 1:
        assert len(found) > 1


@pytest.mark.parametrize(
    ("value", "ends"),
    [
        ("below -2 nats", (-math.inf, -2)),
        ("-2 to 0 nats", (-2, 0)),
        ("2 nats or more", (2, math.inf)),
        ("120-340 characters", (120, 341)),
        ("69 characters", (69, 70)),
        ("4", (4, 5)),
        ("2-3", (2, 4)),
        ("some words", None),
    ],
)
def test_the_range_that_a_derived_slice_names(value: str, ends: tuple[float, float] | None) -> None:
    assert derived_range(value) == ends
