from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import make_record, make_run
from uphold.core.errors import EmptyError, NotComparableError
from uphold.core.records import Record
from uphold.core.runs import Run, write_run
from uphold.measure.pairs import check_comparable, join


def run_of(folder: Path, records: list[Record], **changes: Any) -> Run:
    """A run whose fingerprint has these entries instead of the usual ones."""
    base = make_run(folder / "base", records).fingerprint
    return write_run(folder / "changed", records, {**base, **changes})


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

    with pytest.raises(NotComparableError, match="2 instances were answered by only one of 'old' and 'new'") as caught:
        join(old, new)
    assert caught.value.exit_code == 4


def test_a_run_is_not_compared_with_itself(tmp_path: Path) -> None:
    old = make_run(tmp_path / "old", two_records(), "model")
    copy = old.copy_to(tmp_path / "copy")

    with pytest.raises(NotComparableError, match="one and the same run") as caught:
        check_comparable(old, copy)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    ("field", "theirs"),
    [
        ("instances", "other"),
        ("scorer", "exact.v1"),
        ("kind", "generate"),
        ("split", "validation"),
        ("delimiter", ""),
        ("decoding", {"max_new_tokens": 8}),
    ],
)
def test_runs_that_were_asked_differently_are_not_comparable(tmp_path: Path, field: str, theirs: Any) -> None:
    old = make_run(tmp_path / "old", two_records(), "old")
    new = make_run(tmp_path / "new", two_records(), "new", **{field: theirs})

    with pytest.raises(NotComparableError, match=rf"they differ in {field} \(") as caught:
        check_comparable(old, new)
    assert "\n" not in str(caught.value)


def test_every_differing_field_is_named(tmp_path: Path) -> None:
    old = make_run(tmp_path / "old", two_records(), "old")
    new = make_run(tmp_path / "new", two_records(), "new", scorer="exact.v1", split="train")

    with pytest.raises(
        NotComparableError, match=r"scorer \(choice.v1 against exact.v1\), split \(test against train\)"
    ):
        check_comparable(old, new)


def test_the_name_of_a_task_does_not_count(tmp_path: Path) -> None:
    old = make_run(tmp_path / "old", two_records(), "old")
    new = make_run(tmp_path / "new", two_records(), "new")
    renamed = write_run(
        tmp_path / "renamed", two_records(), {**new.fingerprint, "task": {**new.fingerprint["task"], "name": "other"}}
    )

    assert check_comparable(old, renamed) == []


def test_other_numerics_are_remarked_on(tmp_path: Path) -> None:
    model = {"name": "old", "weights": "w1", "dtype": "float32"}
    old = run_of(tmp_path / "a", two_records(), model=model, versions={"torch": "2.12.0"})
    new = run_of(
        tmp_path / "b",
        two_records(),
        model=model | {"weights": "w2", "dtype": "bfloat16"},
        batching={"size": 8},
        versions={"torch": "2.13.0"},
    )

    assert check_comparable(old, new) == [
        "the runs differ in model.dtype: float32 (old) against bfloat16 (new)",
        "the runs differ in batching.size: 32 (old) against 8 (new)",
        "the runs differ in versions.torch: 2.12.0 (old) against 2.13.0 (new)",
    ]
