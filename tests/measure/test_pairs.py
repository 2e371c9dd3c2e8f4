from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import make_record, make_run
from uphold.core.errors import DataError, EmptyError, NotComparableError
from uphold.core.records import Record
from uphold.core.runs import Run
from uphold.measure.pairs import Arrays, Pairs, join, pairs_of


def two_records() -> list[Record]:
    return [make_record(1, True, "a"), make_record(2, False, "b")]


def test_runs_are_paired_by_id_not_by_position(tmp_path: Path) -> None:
    old = make_run(tmp_path / "old", [make_record(n, n == 1, f"old {n}") for n in (1, 2, 3)], "old")
    new = make_run(tmp_path / "new", [make_record(n, n == 3, f"old {n}") for n in (3, 2, 1)], "new")

    pairs = join(old, new)

    assert pairs.old_correct is not None
    assert pairs.new_correct is not None
    assert pairs.old_correct.tolist() == [True, False, False]
    assert pairs.new_correct.tolist() == [False, False, True]
    assert pairs.same_answer.tolist() == [True, True, True]
    assert len(pairs) == 3
    assert pairs.unscored == 0


def test_answers_are_compared_not_outputs(tmp_path: Path) -> None:
    old = make_run(tmp_path / "old", [make_record(1, True, "7", output="It is 7.")], "old")
    new = make_run(tmp_path / "new", [make_record(1, True, "7", output="7")], "new")

    assert join(old, new).same_answer.tolist() == [True]


@pytest.mark.parametrize("missing", [None, float("nan")], ids=["none", "nan"])
@pytest.mark.parametrize("side", ["old", "new"])
def test_an_instance_without_score_is_left_out_and_counted(tmp_path: Path, missing: float | None, side: str) -> None:
    scored = [make_record(1, True, "a"), make_record(2, False, "b"), make_record(3, True, "c")]
    holes = [scored[0], make_record(2, None, "b", missing), scored[2]]
    runs = {"old": scored, "new": scored} | {side: holes}
    old, new = (make_run(tmp_path / name, records, name) for name, records in runs.items())

    pairs = join(old, new)

    assert len(pairs) == 2
    assert pairs.unscored == 1
    assert pairs.old_correct is not None
    assert pairs.old_correct.tolist() == [True, True]


def test_an_unscored_instance_is_left_out_even_where_it_is_called_wrong(tmp_path: Path) -> None:
    nan = float("nan")
    old = make_run(tmp_path / "old", two_records(), "old")
    new = make_run(tmp_path / "new", [make_record(1, False, "x", nan), make_record(2, False, "b")], "new")

    pairs = join(old, new)

    assert (len(pairs), pairs.unscored) == (1, 1)


def test_nothing_scored_in_both_is_an_error(tmp_path: Path) -> None:
    old = make_run(tmp_path / "old", [make_record(1, True, "a"), make_record(2, None, "b")], "old")
    new = make_run(tmp_path / "new", [make_record(1, None, "a"), make_record(2, True, "b")], "new")

    with pytest.raises(EmptyError, match="no instance is scored in both 'old' and 'new'"):
        join(old, new)


def test_scores_without_judgement_have_no_correctness(tmp_path: Path) -> None:
    old = make_run(tmp_path / "old", [make_record(1, None, "a", 0.25)], "old")
    new = make_run(tmp_path / "new", [make_record(1, None, "b", 0.75)], "new")

    pairs = join(old, new)

    assert pairs.old_correct is None
    assert pairs.new_correct is None
    assert (pairs.old_score.tolist(), pairs.new_score.tolist()) == ([0.25], [0.75])


def test_an_instance_that_only_one_answered_is_an_error(tmp_path: Path) -> None:
    old = make_run(tmp_path / "old", two_records(), "old")
    new = make_run(tmp_path / "new", [make_record(2, True, "b"), make_record(3, True, "c")], "new")

    message = "1 of 'old' are not in 'new', and 1 of 'new' not in 'old'"
    with pytest.raises(NotComparableError, match=message) as caught:
        join(old, new)
    assert caught.value.exit_code == 4
    assert "--allow-mismatch" in str(caught.value)


def test_such_instances_are_left_out_and_counted_where_that_is_allowed(tmp_path: Path) -> None:
    old = make_run(tmp_path / "old", two_records(), "old")
    new = make_run(tmp_path / "new", [make_record(n, True, "b") for n in (2, 3, 4)], "new")

    pairs = join(old, new, allow_mismatch=True)

    assert (len(pairs), pairs.unscored, pairs.old_only, pairs.new_only) == (1, 0, 1, 2)
    assert pairs.cells is not None
    # Number 2: old wrong, new right, both answered "b".
    assert pairs.cells.tolist() == [0, 0, 0, 1, 0, 0, 0, 0]
    assert pairs.old_score.tolist() == [0.0]


def test_runs_without_a_common_instance_are_never_compared(tmp_path: Path) -> None:
    old = make_run(tmp_path / "old", two_records(), "old")
    new = make_run(tmp_path / "new", [make_record(3, True, "b")], "new")

    with pytest.raises(NotComparableError, match="no instance in common"):
        join(old, new, allow_mismatch=True)


# ---- counted in DuckDB as in memory ----

outcome = st.tuples(
    st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.booleans(), st.integers(0, 3)
)


def written(folder: Path, rows: list[tuple[float, float, bool, int]], judged: bool) -> tuple[Run, Run]:
    """Two runs of these scores and answers; right is a score of at least a half. Clusters are a tag."""
    runs = []
    for side, name in enumerate(("old", "new")):
        records = [
            make_record(
                number,
                row[side] >= 0.5 if judged else None,
                "same" if row[2] else name,
                row[side],
                tags={"passage": f"p{row[3]}"},
            )
            for number, row in enumerate(rows)
        ]
        runs.append(make_run(folder / name, records, name))
    return runs[0], runs[1]


def in_memory(rows: list[tuple[float, float, bool, int]], judged: bool) -> Pairs:
    old, new, same, cluster = (np.array(column) for column in zip(*rows, strict=True))
    right = (old >= 0.5, new >= 0.5) if judged else (None, None)
    return pairs_of(Arrays(old, new, same, *right), clusters=np.unique(cluster, return_inverse=True)[1])


def assert_equal_pairs(one: Pairs, other: Pairs) -> None:
    assert (len(one), one.judged, one.graded, one.clusters) == (len(other), other.judged, other.graded, other.clusters)
    assert one.moments.keys() == other.moments.keys()
    for name, moment in one.moments.items():
        expected = other.moments[name]
        assert moment.n == expected.n
        assert (moment.mean, moment.variance) == pytest.approx((expected.mean, expected.variance), abs=1e-12)
    for name in ("cells", "cluster_cells", "cluster_sums"):
        mine, theirs = getattr(one, name), getattr(other, name)
        assert (mine is None) == (theirs is None)
        if mine is not None:
            np.testing.assert_allclose(mine, theirs, atol=1e-12)
    for name in ("old_score", "new_score", "same_answer", "old_correct", "new_correct"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@settings(max_examples=20, deadline=None, database=None)
@given(st.lists(outcome, min_size=2, max_size=12), st.booleans())
def test_counts_on_disk_are_those_in_memory(rows: list[tuple[float, float, bool, int]], judged: bool) -> None:
    # Two clusters at least, one instance in each.
    rows = [(*row[:3], place if place < 2 else row[3]) for place, row in enumerate(rows)]
    with tempfile.TemporaryDirectory() as folder:
        pairs = join(*written(Path(folder), rows, judged), cluster="passage")

        assert_equal_pairs(pairs, in_memory(rows, judged))


@settings(max_examples=10, deadline=None, database=None)
@given(st.lists(outcome, min_size=2, max_size=12), st.integers(0, 11))
def test_an_instance_more_changes_the_way_of_joining_but_no_count(
    rows: list[tuple[float, float, bool, int]], place: int
) -> None:
    rows = [(*row[:3], number if number < 2 else row[3]) for number, row in enumerate(rows)]
    with tempfile.TemporaryDirectory() as folder:
        old, new = written(Path(folder), rows, judged=True)
        # Sorted in among the others, so that no row of the new run stands beside its own.
        alone = Record(**{**asdict(make_record(0, True, "x")), "id": f"{place:016x}!"})
        wider = make_run(Path(folder) / "wider", [*old.records(), alone], "old")

        pairs = join(wider, new, allow_mismatch=True, cluster="passage")

        assert pairs.old_only == 1
        assert_equal_pairs(pairs, in_memory(rows, judged=True))


def test_the_instances_are_read_when_they_are_asked_for_and_once(tmp_path: Path) -> None:
    old, new = written(tmp_path, [(0.5, 1.0, True, 0), (0.25, 0.0, False, 1)], judged=False)
    pairs = join(old, new)

    assert "arrays" not in vars(pairs)
    scores = pairs.old_score
    assert scores.tolist() == [0.5, 0.25]
    assert pairs.old_score is scores


def test_a_difference_from_rounding_is_no_change_of_score(tmp_path: Path) -> None:
    old, new = written(tmp_path, [(0.1 + 0.2, 0.3, True, 0), (0.3, 0.1 + 0.2, True, 0)], judged=False)
    moments = join(old, new).moments

    assert (moments["loss"].n, moments["gain"].n) == (0, 0)


# ---- clusters ----


def test_a_missing_tag_is_named_and_counted(tmp_path: Path) -> None:
    records = [
        make_record(n, True, "a", tags={"passage": "p", "level": "1"} if n else {"level": "2"}) for n in range(3)
    ]
    old, new = (make_run(tmp_path / name, records, name) for name in ("old", "new"))

    with pytest.raises(DataError, match=r"1 of 3 instances lack the tag 'passage'.* level, passage"):
        join(old, new, cluster="passage")


def test_one_cluster_is_too_few(tmp_path: Path) -> None:
    old, new = written(tmp_path, [(0.5, 1.0, True, 0), (0.25, 0.0, False, 0)], judged=True)

    with pytest.raises(DataError, match="all 2 instances have the same value of the tag 'passage'"):
        join(old, new, cluster="passage")


def test_a_tag_missing_on_an_unscored_instance_does_not_matter(tmp_path: Path) -> None:
    tagged = [make_record(n, True, "a", tags={"passage": str(n)}) for n in range(2)]
    old, new = (make_run(tmp_path / name, [*tagged, make_record(9, None, "a")], name) for name in ("old", "new"))

    assert join(old, new, cluster="passage").clusters == 2
