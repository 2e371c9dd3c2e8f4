import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

from tests.explain.restoring.test_find import explanation

from uphold.explain.restoring.explanation import Edge
from uphold.report.explanation import graph, heat_map, write_pictures

SVG = "{http://www.w3.org/2000/svg}"


def test_every_site_is_a_cell_and_the_chosen_ones_carry_their_rank() -> None:
    root = ElementTree.fromstring(heat_map(explanation()))
    titles = [title.text for title in root.iter(f"{SVG}title")]
    assert titles == ["mlp.0: -10.0%", "mlp.1: 80.0%"]
    assert sum(one.get("class") == "chosen" for one in root.iter(f"{SVG}rect")) == 1


def test_the_graph_has_a_node_for_each_drawn_site_and_a_line_for_each_path() -> None:
    one = explanation()
    other = replace(one.sites[0], sites=("mlp.0",))
    root = ElementTree.fromstring(graph(replace(one, sites=(*one.sites, other))))
    assert sum(node.get("class") == "node" for node in root.iter(f"{SVG}rect")) == 2
    assert [path.get("class") for path in root.iter(f"{SVG}path")] == ["edge", "arrow"]
    faint = replace(one, sites=(*one.sites, other), edges=(Edge("mlp.0", "mlp.1", 0.01),))
    assert not list(ElementTree.fromstring(graph(faint)).iter(f"{SVG}path"))


def test_pictures_fetch_nothing_and_escape_names(tmp_path: Path) -> None:
    one = explanation()
    both = (*one.sites, replace(one.sites[0], sites=("mlp.0",)))
    strange = replace(one, estimates={"mlp.0": 0.1, "module.1.<b>": 0.2}, sites=both)
    paths = write_pictures(strange, tmp_path)
    assert [path.name for path in paths] == ["explanation-heat-map.svg", "explanation-graph.svg"]
    for path in paths:
        text = path.read_text()
        ElementTree.fromstring(text)
        assert "<b>" not in text
        assert not re.search(r"(href|src|url\()", text)
    assert len(write_pictures(replace(strange, edges=()), tmp_path)) == 1
    assert not paths[1].exists()
