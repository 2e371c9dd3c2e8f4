from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uphold.core.errors import UsageError
from uphold.tasks.base import Instance
from uphold.tasks.splits import by_content, split_sizes_of

quick = settings(max_examples=100, deadline=None, database=None)
SIZES = st.none() | st.integers(0, 20)


@pytest.mark.parametrize(
    ("total", "given_sizes", "sizes"),
    [
        (100, {}, (30, 10, 60)),
        (10, {}, (3, 1, 6)),
        (1, {}, (1, 0, 0)),
        (0, {}, (0, 0, 0)),
        (100, {"test": 50}, (50, 7, 43)),
        (100, {"train": 0, "validation": 0}, (100, 0, 0)),
        (100, {"test": 0, "train": 0}, (0, 100, 0)),
        (9, {"test": 2, "validation": 3, "train": 4}, (2, 3, 4)),
    ],
)
def test_sizes(total: int, given_sizes: dict[str, int], sizes: tuple[int, int, int]) -> None:
    found = split_sizes_of(total, given_sizes, "x")  # type: ignore[arg-type]

    assert (found["test"], found["validation"], found["train"]) == sizes


@quick
@given(st.integers(60, 200), SIZES, SIZES, SIZES)
def test_given_sizes_are_kept(total: int, test: int | None, validation: int | None, train: int | None) -> None:
    asked = {"test": test, "validation": validation, "train": train}
    found = split_sizes_of(total, asked, "x")  # type: ignore[arg-type]

    assert all(found[split] == size for split, size in asked.items() if size is not None)  # type: ignore[index]
    assert min(found.values()) >= 0
    assert sum(found.values()) == total or None not in asked.values()


def test_more_than_there_is() -> None:
    with pytest.raises(UsageError, match="task 'x': 11 instances are asked for and there are 10: ask for fewer"):
        split_sizes_of(10, {"test": 5, "train": 6}, "x")
    with pytest.raises(UsageError, match="task 'x': test must be a whole number of at least 0, not -1"):
        split_sizes_of(10, {"test": -1}, "x")


def test_the_order_is_decided_by_content_and_seed() -> None:
    instances = [Instance(f"question {number}", "x") for number in range(50)]
    ordered = by_content(instances, 0)

    assert by_content(instances[::-1], 0) == ordered
    assert by_content(instances[10:], 0) == [one for one in ordered if one in instances[10:]]
    assert by_content(instances, 1) != ordered
