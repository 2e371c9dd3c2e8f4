from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest

from uphold.report import svg
from uphold.report.instances import CODES
from uphold.report.points import Points


def points(old: list[float], new: list[float], kinds: list[str], margins: bool = True) -> Points:
    codes = np.array([CODES.index(kind) for kind in kinds], dtype=np.int64)
    return Points(np.array(old, dtype=float), np.array(new, dtype=float), codes, np.arange(len(kinds)), margins, 0)


def many(flips: int, others: int) -> Points:
    kinds = ["negative"] * flips + ["both_wrong"] * others
    return points([0.0] * len(kinds), [0.0] * len(kinds), kinds)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.0, 1.0, [0.0, 0.25, 0.5, 0.75, 1.0]), (0.0, 0.0, [0.0]), (-5.0, 5.0, [-5.0, -2.5, 0.0, 2.5, 5.0])],
)
def test_ticks_are_round_numbers(low: float, high: float, expected: list[float]) -> None:
    assert svg.nice_ticks(low, high) == expected


def test_tick_labels() -> None:
    assert (svg.tick_label(0.025, True), svg.tick_label(-0.5, False)) == ("2.5%", "−0.5")


def test_scale_leaves_out_what_is_undefined() -> None:
    scale = svg.scale_over([None, 0.2, float("nan"), 0.4], from_zero=True)
    assert scale.low == 0.0
    assert scale.at(0.0) == "0.00%"
    assert scale.at(99.0) == "100.00%"
    assert svg.scale_over([None], from_zero=False) == svg.Scale(0.0, 1.0)


def test_a_row_without_interval_has_a_dot_only() -> None:
    row = ElementTree.fromstring(svg.dot_row(svg.Scale(0, 1), 0.5, None, None, None))
    assert [node.get("cx") for node in row.findall("circle")] == ["50.00%"]
    assert not [node for node in row if node.get("class") == "whisker"]
    assert "circle" not in svg.dot_row(svg.Scale(0, 1), None, None, None, None)


def test_a_forest_row_has_one_interval_per_mark() -> None:
    scale = svg.Scale(0, 0.5)
    row = svg.forest_row(scale, [("v-new", 0.1, 0.05, 0.2), ("v-repaired", 0.05, 0.01, 0.9)], 0.15, 0.01)
    drawing = ElementTree.fromstring(row)
    marks = drawing.findall("g")
    assert [mark.find("svg").get("x") for mark in marks] == ["20.00%", "10.00%"]  # type: ignore[union-attr]
    assert [mark.find("line").get("x2") for mark in marks] == ["40.00%", "100.00%"]  # type: ignore[union-attr]
    assert ["cut" in ElementTree.tostring(mark, "unicode") for mark in marks] == [False, True]
    lines = {line.get("class"): line.get("x1") for line in drawing.findall("line")}
    assert (lines["overall"], lines["floor"]) == ("30.00%", "2.00%")


def test_a_forest_row_without_floor() -> None:
    assert "floor" not in svg.forest_row(svg.Scale(0, 1), [("v-new", 0.1, 0.0, 0.2)], None, None)


def test_thinning_keeps_every_flip() -> None:
    drawn = svg.thin(many(flips=300, others=5000), limit=2000)
    assert len(drawn) == 2000
    assert set(range(300)) <= set(drawn.tolist())
    assert len(svg.thin(many(flips=3000, others=5000), limit=2000)) == 3500
    assert len(svg.thin(many(flips=300, others=0), limit=2000, flip_limit=100)) == 100


def test_scatter_clamps_what_lies_beyond_the_frame() -> None:
    kinds = ["both_right", "negative", "positive", "both_wrong"] * 250
    base = [1.0, 0.5, -0.5, -1.0] * 250
    panel = points([*base[:-1], -900.0], base, kinds)
    frame = svg.frame_over([panel])
    assert -5 < frame.low < -1
    assert svg.beyond(panel, frame) == 1
    drawing = ElementTree.fromstring(svg.scatter(panel, frame, "old <margin>", "new"))
    assert {node.get("class") for node in drawing.iter("path")} >= {"negative", "positive", "both_right", "both_wrong"}
    assert "old <margin>" in (drawing.get("aria-label") or "")


def test_scatter_without_points_is_still_a_drawing() -> None:
    panel = points([], [], [])
    drawing = ElementTree.fromstring(svg.scatter(panel, svg.frame_over([panel]), "old", "new"))
    assert [node.get("class") for node in drawing.iter("path")] == ["diagonal"]


def test_curves_mark_the_kept_epoch_once() -> None:
    line = svg.Curve("v-repaired", "MUSCLE", [(0, 0.1), (1, 0.05), (2, 0.06)], chosen=1)
    single = svg.Curve("v-control1", "control", [(0, 0.1)], chosen=None)
    drawing = ElementTree.fromstring(svg.curves("validation <nfr>", [line, single], share=True))
    assert len([node for node in drawing.findall("circle") if "kept" in (node.get("class") or "")]) == 1
    assert len(drawing.findall("path")) == 2
    ElementTree.fromstring(svg.curves("one dot", [single], share=False))


def test_every_kind_has_a_marker() -> None:
    for kind in CODES:
        assert list(ElementTree.fromstring(svg.marker(kind)).iter()), kind
