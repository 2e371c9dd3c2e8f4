from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import make_record
from uphold.core.errors import DataError
from uphold.core.records import FIELDS, Record, from_row, instance_id, schema, to_table

quick = settings(max_examples=50, deadline=None, database=None)
# Surrogates are no text: neither JSON nor Parquet can hold them.
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@st.composite
def some_records(draw: st.DrawFn) -> list[Record]:
    ids = draw(st.lists(text, unique=True, max_size=6))
    return [
        Record(
            id=name,
            input=draw(text),
            target=draw(text),
            output=draw(text),
            answer=draw(text),
            correct=draw(st.none() | st.booleans()),
            score=draw(st.none() | st.floats(0, 1)),
            options=tuple(draw(st.lists(text, max_size=3))),
            option_logprobs=tuple(draw(st.lists(st.floats(-1e6, 0), max_size=3))),
            tokens=draw(st.integers(0, 10**9)),
            tags=draw(st.dictionaries(text, text, max_size=3)),
        )
        for name in ids
    ]


@quick
@given(some_records())
def test_records_survive_a_table(records: list[Record]) -> None:
    rows = to_table(records).to_pylist()

    assert [from_row(row) for row in rows] == sorted(records, key=lambda record: record.id)


@quick
@given(some_records(), st.randoms(use_true_random=False))
def test_the_order_of_records_does_not_count(records: list[Record], random_source: Any) -> None:
    mixed = list(records)
    random_source.shuffle(mixed)

    assert to_table(mixed).equals(to_table(records))


def test_the_schema_names_every_field() -> None:
    assert tuple(schema().names) == FIELDS


def test_a_missing_score_stays_missing() -> None:
    (record,) = (from_row(row) for row in to_table([make_record(1, None, "a")]).to_pylist())
    (broken,) = (from_row(row) for row in to_table([make_record(1, None, "a", math.nan)]).to_pylist())

    assert (record.correct, record.score) == (None, None)
    assert broken.score is not None
    assert math.isnan(broken.score)


def test_two_records_with_one_id_are_an_error() -> None:
    with pytest.raises(DataError, match=r"two records have the id '0000000000000001' \(input 'question 1'\)"):
        to_table([make_record(1, True, "a"), make_record(2, True, "b"), make_record(1, False, "c")])


@pytest.mark.parametrize("score", [-0.01, 1.01, 57.3, math.inf])
def test_a_score_outside_its_range_is_an_error(score: float) -> None:
    with pytest.raises(DataError, match=r"scores lie in \[0, 1\]"):
        to_table([make_record(1, None, "a", score)])


@pytest.mark.parametrize(
    "changes",
    [{"tags": {"length": 3}}, {"output": 5}, {"tokens": "many"}, {"options": (1, 2)}, {"score": "1"}, {"tags": None}],
)
def test_a_value_of_another_type_is_an_error(changes: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="wrong type") as caught:
        to_table([make_record(1, True, "a", **changes)])
    assert "\n" not in str(caught.value)


def test_an_instance_is_called_by_its_content() -> None:
    name = instance_id("2+2=", "4", ["3", "4"])

    assert len(name) == 16
    assert name == instance_id("2+2=", "4", ("3", "4"))
    others = {
        instance_id("2+3=", "4", ["3", "4"]),
        instance_id("2+2=", "3", ["3", "4"]),
        instance_id("2+2=", "4", ["4", "3"]),
        instance_id("2+2=", "4"),
        instance_id("2+2=4", "", ["3", "4"]),
    }
    assert name not in others
    assert len(others) == 5


def test_the_id_of_an_instance_never_changes() -> None:
    # Runs stored by an earlier version pair with today's by this number.
    assert instance_id("2+2=", "4", ["3", "4"]) == "eedb720d274aca3f"
