from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uphold.report.glossary import EFFECTS, KINDS
from uphold.report.sankey import effect_flows, kind_flows, sankey


def heights(path: str) -> list[float]:
    """The heights of a ribbon's ends: |y of the lower edge - y of the upper edge| where it begins."""
    tops = [float(y) for y in re.findall(r"M[\d.]+ ([\d.]+)", path)]
    ends = [float(y) for y in re.findall(r"([\d.]+)Z", path)]
    return [end - top for top, end in zip(tops, ends, strict=True)]


def test_ribbons_are_links_as_high_as_their_number() -> None:
    flows = kind_flows({"both_right": 60, "negative": 10, "positive": 30}, KINDS)
    drawing = ElementTree.fromstring(sankey(flows, ("old", "new"), "kind"))
    links = {link.get("href"): link for link in drawing.findall("a")}
    assert set(links) == {"#kind=both_right", "#kind=negative", "#kind=positive"}
    size = {name: heights(link.find("path").get("d"))[0] for name, link in links.items()}  # type: ignore[union-attr, arg-type]
    assert size["#kind=positive"] == pytest.approx(3 * size["#kind=negative"], rel=0.02)
    assert links["#kind=negative"].get("aria-label") == "negative flip: 10 of 100: show them"
    assert "".join(drawing.itertext()).count("right") >= 2


def test_a_repair_has_three_columns_and_two_ribbons_each() -> None:
    flows = effect_flows({"fixed": 2, "still broken": 1, "stays right": 7})
    drawing = ElementTree.fromstring(sankey(flows, ("old", "new", "repaired"), "effect"))
    assert [link.get("href") for link in drawing.findall("a")] == [
        "#kind=all&effect=stays+right",
        "#kind=all&effect=fixed",
        "#kind=all&effect=still+broken",
    ]
    assert all(len(heights(link.find("path").get("d"))) == 2 for link in drawing.findall("a"))  # type: ignore[union-attr, arg-type]


def test_nothing_to_draw() -> None:
    assert sankey(kind_flows({"unscored": 3}, KINDS), ("old", "new"), "kind") == ""


def test_every_effect_of_a_judged_instance_has_a_flow() -> None:
    assert {flow.name for flow in effect_flows({})} == set(EFFECTS) - {"unchanged", "not scored"}


@given(st.dictionaries(st.sampled_from([flow.name for flow in effect_flows({})]), st.integers(1, 10**7), min_size=1))
def test_columns_keep_every_instance_inside_the_drawing(effects: dict[str, int]) -> None:
    drawing = ElementTree.fromstring(sankey(effect_flows(effects), ("old", "new", "repaired"), "effect"))
    assert len(drawing.findall("a")) == len(effects)
    limit = float(drawing.get("viewBox").split()[3])  # type: ignore[union-attr]
    for node in drawing.findall("rect"):
        assert float(node.get("y")) + float(node.get("height")) <= limit  # type: ignore[arg-type]
