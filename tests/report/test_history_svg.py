from __future__ import annotations

import itertools
import re
from xml.etree import ElementTree

import pytest

from uphold.report.history_svg import HEIGHT, Line, bands, lines

SVG = "{http://www.w3.org/2000/svg}"


def rects(svg: str) -> list[dict[str, str]]:
    return [node.attrib for node in ElementTree.fromstring(svg).iter("rect")]


def test_bands_are_as_high_as_they_have_instances() -> None:
    svg, labels = bands({"gained": 30, "lost": 10}, {"gained": [("01", 30)], "lost": [("10", 10)]}, 2)
    found = rects(svg)
    assert [(rect["class"], rect["x"]) for rect in found] == [
        ("wrong", "2"), ("right", "102"), ("right", "2"), ("wrong", "102"),
    ]  # fmt: skip
    heights = [float(rect["height"]) for rect in found]
    assert heights[0] - 6 == pytest.approx(3 * (heights[2] - 6), abs=0.05)
    assert float(found[3]["y"]) + heights[3] == pytest.approx(HEIGHT, abs=0.05)
    assert [label.kind for label in labels] == ["gained", "lost"]


def test_equal_marks_are_one_stretch() -> None:
    svg, _ = bands({"recovered": 5}, {"recovered": [("11011", 5)]}, 5)
    assert [(rect["class"], float(rect["width"])) for rect in rects(svg)] == [
        ("right", 196), ("wrong", 96), ("right", 196),
    ]  # fmt: skip


def test_instances_that_never_change_leave_room_for_others() -> None:
    kinds = {"kept": 9990, "lost": 10}
    svg, _ = bands(kinds, {"kept": [("11", 9990)], "lost": [("10", 10)]}, 2)
    assert float(rects(svg)[0]["height"]) == pytest.approx(70, abs=0.05)
    only, _ = bands({"kept": 9990, "lost": 0}, {"kept": [("11", 9990)]}, 2)
    assert float(rects(only)[0]["height"]) == pytest.approx(HEIGHT, abs=0.05)


def test_instances_of_unknown_patterns_become_one_band() -> None:
    svg, _ = bands({"lost": 10}, {"lost": [("10", 4)]}, 2)
    assert rects(svg)[-1]["class"] == "mixed"
    assert float(rects(svg)[-1]["height"]) == pytest.approx(0.6 * HEIGHT, abs=0.05)


def test_labels_never_cover_each_other() -> None:
    kinds = {"kept": 1, "gained": 1, "recovered": 1, "lost": 10_000, "never": 1}
    _, labels = bands(kinds, {}, 3)
    tops = [label.top for label in labels]
    assert all(later - earlier >= 37 for earlier, later in itertools.pairwise(tops))
    assert tops[0] >= 0
    assert tops[-1] <= HEIGHT - 37


def test_lines_are_well_formed_and_named() -> None:
    drawn = [
        Line("line-c", "above", [0.7, 0.8, 0.9]),
        Line("line-a", "below", [None, 0.6, 0.5], [(0.6, 0.8), (0.5, 0.7), (0.4, 0.6)]),
    ]
    svg = lines("accuracy < all", drawn, share=True, from_zero=False, between=True)
    root = ElementTree.fromstring(svg)
    assert root.attrib["aria-label"] == "Line chart over versions 1 to 3: accuracy < all"
    assert len(root.findall("circle")) == 5
    assert [node.text for node in root.findall("text")][-3:] == ["1", "2", "3"]
    ticks = [node.text or "" for node in root.findall("text")][:-3]
    assert 2 <= len(ticks) <= 8
    assert all(re.fullmatch(r"\d+%", tick) for tick in ticks)


@pytest.mark.parametrize("values", [[0.0, 0.0], [1.0, 1.0], [0.5, 0.5000001], [0.00001, 0.00002]])
def test_lines_of_hardly_different_values_have_an_axis(values: list[float]) -> None:
    root = ElementTree.fromstring(lines("x", [Line("a", "a", values)], share=True, from_zero=False))
    assert 2 <= len(root.findall("text")) - 2 <= 8
