from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from uphold.report import explorer
from uphold.report.data import ReportData, gather
from uphold.report.text import visible

Save = Callable[..., Path]


def unpack(data: ReportData) -> list[dict[str, Any]]:
    return [json.loads(zlib.decompress(base64.b64decode(chunk))) for chunk in explorer.chunks(data)]


def test_instances_come_by_columns_in_the_order_of_the_rows(save_repair: Save) -> None:
    data = gather(save_repair())
    head, (chunk,) = explorer.head(data), unpack(data)
    assert chunk["id"] == [row.id for row in data.instances.rows]
    assert [head["kinds"][k]["name"] for k in chunk["kind"]] == [row.kind for row in data.instances.rows]
    assert [head["effects"][k]["name"] for k in chunk["effect"]] == [row.effect for row in data.instances.rows]
    assert [chunk["texts"][k] for k in chunk["input"]] == [row.input for row in data.instances.rows]
    for column, answers in zip(
        zip(*(row.answers for row in data.instances.rows), strict=True), chunk["answers"], strict=True
    ):
        assert [chunk["texts"][k] for k in answers["text"]] == [answer.text for answer in column]
        assert [bool(right) for right in answers["right"]] == [answer.correct for answer in column]
        assert answers["margin"] == pytest.approx([answer.margin for answer in column], abs=1e-4)
        assert answers["score"] == [None] * 40
    labels = [head["tags"][k]["label"] for k in chunk["tags"][0]]
    assert labels[:2] == ["all = yes", "half = low"]
    counts = {tag["label"]: tag["count"] for tag in head["tags"] if not tag["derived"]}
    assert counts == {"all = yes": 40, "half = low": 20, "half = high": 20}


def test_equal_texts_are_written_once(save_comparison: Save) -> None:
    (chunk,) = unpack(gather(save_comparison()))
    assert len(chunk["texts"]) == len(set(chunk["texts"])) == 40 + 3


def test_invisible_characters_are_written_out(save_comparison: Save, hostile: str) -> None:
    (chunk,) = unpack(gather(save_comparison(text=hostile)))
    assert visible(f"question 12{hostile}") in chunk["texts"]
    assert not [text for text in chunk["texts"] if "\u202e" in text or "\u200b" in text]


def test_chunks_hold_every_row_once(save_comparison: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explorer, "ROWS", 15)
    data = gather(save_comparison())
    chunks = unpack(data)
    assert [len(chunk["id"]) for chunk in chunks] == [15, 15, 10]
    assert [one for chunk in chunks for one in chunk["id"]] == [row.id for row in data.instances.rows]
    assert [len(chunk["points"][0][0]) for chunk in chunks] == [15, 15, 10]


def test_points_stand_beside_their_rows(save_comparison: Save) -> None:
    data = gather(save_comparison())
    (chunk,) = unpack(data)
    ((x, y),) = chunk["points"]
    assert x == pytest.approx([row.answers[0].margin for row in data.instances.rows], abs=1e-4)
    assert y == pytest.approx([row.answers[1].margin for row in data.instances.rows], abs=1e-4)


def test_unscored_instances_have_no_point(save_scores: Save) -> None:
    data = gather(save_scores([0.5, 0.5, None], [0.4, 0.9, 0.1]))
    (chunk,) = unpack(data)
    assert chunk["points"] == [[[0.5, 0.5, None], [0.4, 0.9, None]]]
    assert chunk["answers"][0]["right"] == [-1, -1, -1]
    assert chunk["answers"][0]["score"] == [0.5, 0.5, None]


def test_of_many_options_the_gold_and_the_likeliest_are_shown(save_comparison: Save) -> None:
    data = gather(save_comparison())
    row = data.instances.rows[0]
    options = tuple(f"option {k}" for k in range(30))
    answers = tuple(replace(answer, logprobs=tuple(-float(k) for k in range(30))) for answer in row.answers)
    many = replace(row, options=options, gold="option 29", answers=answers)
    (chunk,) = unpack(replace(data, instances=replace(data.instances, rows=(many,), before=None)))
    shown = [chunk["texts"][k] for k in chunk["options"][0]]
    assert shown == [*(f"option {k}" for k in range(11)), "option 29"]
    assert chunk["hidden"] == [18]
    assert chunk["answers"][0]["logprobs"][0] == [*(-float(k) for k in range(11)), -29.0]


def test_tags_that_look_alike_keep_labels_of_their_own(save_comparison: Save) -> None:
    data = gather(save_comparison())
    row = data.instances.rows[0]
    rows = tuple(replace(row, tags={"a": tail}) for tail in ("x" * 150 + "y" * 300, "x" * 150 + "z" * 150 + "y" * 150))
    labels = explorer.tag_labels([row.tags for row in rows])
    assert len(set(labels.values())) == 2


def test_tags_are_sorted_as_people_count() -> None:
    values = ["10", "9", "²", "-1", "x10", "x9", "1" * 5000, "", "٣", "9 a"]
    labels = [value for _, value in explorer.tag_labels([{"a": value} for value in values])]
    assert labels.index("9") < labels.index("9 a") < labels.index("10")
    assert labels.index("x9") < labels.index("x10")
    assert len(labels) == len(values)


def test_packing_is_reproducible() -> None:
    assert explorer.pack({"a": [1, "ü"]}) == explorer.pack({"a": [1, "ü"]})
