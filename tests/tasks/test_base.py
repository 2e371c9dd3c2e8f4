from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uphold.core.errors import EmptyError, UsageError
from uphold.tasks.base import (
    SPLITS,
    Decoding,
    FixedTask,
    Instance,
    Split,
    divide,
    required_instances,
    split_sizes,
    task_fingerprint,
    without_duplicates,
)
from uphold.tasks.scorers import exact

quick = settings(max_examples=50, deadline=None, database=None)
instances = st.lists(st.builds(Instance, st.sampled_from("abcdef"), st.sampled_from("xyz")), max_size=30)
sizes = st.fixed_dictionaries({split: st.integers(0, 12) for split in SPLITS})


def task_of(**changes: Any) -> FixedTask:
    splits: dict[Split, tuple[Instance, ...]] = {
        "train": (Instance("a", "1"), Instance("b", "2")),
        "test": (Instance("c", "3"),),
    }
    return FixedTask(
        **{"name": "t", "kind": "generate", "splits": splits, "scorer": "exact.v1", "score_function": exact} | changes
    )


@quick
@given(instances)
def test_duplicates_are_dropped_and_counted(drawn: list[Instance]) -> None:
    unique, dropped = without_duplicates(drawn)

    assert len(unique) + dropped == len(drawn)
    assert len({instance.id for instance in unique}) == len(unique)
    assert {instance.id for instance in unique} == {instance.id for instance in drawn}
    assert unique == sorted(unique, key=drawn.index)  # the first of each, in their order


@quick
@given(instances, sizes)
def test_splits_share_nothing(drawn: list[Instance], wanted: dict[Split, int]) -> None:
    unique, _ = without_duplicates(drawn)
    parts = divide(unique, wanted)
    ids = [instance.id for split in SPLITS for instance in parts[split]]

    assert len(set(ids)) == len(ids)
    assert sum(map(len, parts.values())) == min(len(unique), sum(wanted.values()))
    FixedTask("t", "generate", parts, "exact.v1", exact)  # accepts them


@quick
@given(instances, sizes, st.integers(0, 9))
def test_a_larger_train_split_leaves_the_others_alone(
    drawn: list[Instance], wanted: dict[Split, int], more: int
) -> None:
    unique, _ = without_duplicates(drawn)
    small, large = divide(unique, wanted), divide(unique, {**wanted, "train": wanted["train"] + more})

    assert large["test"] == small["test"]
    assert large["validation"] == small["validation"]
    assert large["train"][: len(small["train"])] == small["train"]


def test_a_task_whose_splits_share_an_instance_is_refused() -> None:
    shared = Instance("a", "1")

    with pytest.raises(UsageError, match="the instance 'a' is in train and in test: splits may not share instances"):
        task_of(splits={"train": (shared,), "test": (Instance("a", "1", tags={"other": "tag"}),)})


def test_the_same_prompt_with_another_answer_is_another_instance() -> None:
    assert Instance("a", "1").id != Instance("a", "2").id
    assert Instance("a", "1").id != Instance("a", "1", ("1", "2")).id
    assert Instance("a", "1", tags={"x": "y"}, extra={"z": 1}).id == Instance("a", "1").id


def test_a_split_that_is_not_given_is_empty() -> None:
    assert task_of().instances("validation") == ()
    assert split_sizes(task_of()) == {"train": 2, "validation": 0, "test": 1}


def test_an_unknown_split_gets_the_nearest_name() -> None:
    with pytest.raises(UsageError, match="unknown split 'tset': did you mean 'test'"):
        task_of().instances("tset")  # type: ignore[arg-type]


def test_needing_an_empty_split_is_an_error() -> None:
    assert len(required_instances(task_of(), "train")) == 2
    with pytest.raises(EmptyError, match="task 't' has no validation instances"):
        required_instances(task_of(), "validation")


def test_a_task_shows_its_sizes() -> None:
    assert repr(task_of()) == "FixedTask('t', generate, train 2, validation 0, test 1, scorer exact.v1)"


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "choice"},
        {"scorer": "exact_number.v1"},
        {"delimiter": ""},
        {"decoding": Decoding(max_new_tokens=8)},
        {"decoding": Decoding(stop=())},
        {"decoding": Decoding(temperature=0.5)},
        {"splits": {"test": (Instance("c", "4"),)}},
    ],
)
def test_what_changes_the_answers_changes_the_fingerprint(change: dict[str, Any]) -> None:
    assert task_fingerprint(task_of(**change), "test") != task_fingerprint(task_of(), "test")


def test_what_does_not_change_the_answers_does_not() -> None:
    instances = (Instance("c", "3"), Instance("d", "4"))
    there = task_of(splits={"test": instances})
    back = task_of(splits={"test": instances[::-1]}, notes=("something was left out",))

    assert task_fingerprint(there, "test") == task_fingerprint(back, "test")
    renamed = dataclasses.replace(there, name="other")
    assert task_fingerprint(renamed, "test") | {"name": "t"} == task_fingerprint(there, "test")


def test_decoding_does_not_count_where_nothing_is_generated() -> None:
    one, other = (task_of(kind="choice", decoding=Decoding(max_new_tokens=n)) for n in (1, 2))

    assert task_fingerprint(one, "test") == task_fingerprint(other, "test")


@pytest.mark.parametrize("change", [{"max_new_tokens": 0}, {"temperature": -0.1}, {"top_p": 0.0}, {"top_p": 1.1}])
def test_decoding_that_cannot_work_is_refused(change: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="decoding needs"):
        Decoding(**change)  # type: ignore[arg-type]
