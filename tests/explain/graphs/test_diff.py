from __future__ import annotations

import copy
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.explain.graphs.nets import mlp, vectors
from tests.explain.graphs.test_build import LOOSE, busiest
from uphold.core.errors import NotComparableError, UsageError
from uphold.explain.causal_graph import causal_graph
from uphold.explain.graphs.build import class_graph
from uphold.explain.graphs.diff import changed_rows, diff, revert
from uphold.explain.graphs.draw import dot, svg
from uphold.explain.graphs.graph import ClassGraph
from uphold.models.patches.apply import apply


def broken(net: nn.Sequential, label: int, left: float = 0.0) -> nn.Sequential:
    """An update that takes the strongest cause of the class away."""
    other = copy.deepcopy(net)
    other[4].weight.data[label, _strongest(net, label)] *= left
    return other


def _strongest(net: nn.Sequential, label: int) -> int:
    layer = class_graph(net, vectors(60), label, config=LOOSE).layers[0]
    return min(range(4), key=layer.change.__getitem__)


def test_a_model_does_not_differ_from_itself() -> None:
    net, x = mlp(), vectors(60)
    found = diff(net, copy.deepcopy(net), x, busiest(net, x), config=LOOSE)
    assert found.old == found.new
    assert found.counts() == {"gained": 0, "lost": 0, "re-weighted": 0, "same": 0}
    assert {edge.kind for edge in found.edges} == {"same"}
    with pytest.raises(UsageError, match="no edge changed"):
        revert(net, net, changed_rows([found]))


def test_a_lost_edge_is_found_and_its_row_brings_the_model_back() -> None:
    net, x = mlp(), vectors(60)
    label = busiest(net, x)
    new = broken(net, label)
    found = diff(net, new, x, label, config=LOOSE)
    lost = [edge for edge in found.edges if edge.layer == "4" and edge.kind == "lost"]
    assert [(edge.effect, edge.cause) for edge in lost] == [(label, _strongest(net, label))]
    assert lost[0].changed
    assert lost[0].new == 0
    assert found.new.images == found.old.images
    assert found.new.images_hash == found.old.images_hash
    rows = [row for row in changed_rows([found]) if row.layer == "4"]
    assert [row.unit for row in rows] == [label]
    with apply(new, revert(net, new, rows)):
        torch.testing.assert_close(new(x), net(x))
    assert new[4].weight[label, lost[0].cause] == 0


def test_swapped_models_swap_gained_and_lost() -> None:
    net, x = mlp(), vectors(60)
    label = busiest(net, x)
    new = broken(net, label, -0.1)
    x = vectors(2000)
    both = x[(net(x).argmax(1) == label) & (new(x).argmax(1) == label)]
    there, back = diff(net, new, both, label), diff(new, net, both, label)
    kinds = {(edge.layer, edge.effect, edge.cause): edge.kind for edge in back.edges}
    swap = {"gained": "lost", "lost": "gained"}
    top = [edge for edge in there.edges if edge.layer == "4"]
    assert [kinds[edge.layer, edge.effect, edge.cause] for edge in top if edge.kind in swap] == [
        swap[edge.kind] for edge in top if edge.kind in swap
    ]


def test_other_layers_are_not_comparable() -> None:
    with pytest.raises(NotComparableError, match="same layers"):
        diff(mlp(), mlp(8), vectors(60), busiest(mlp(), vectors(60)))


def test_the_method_writes_graph_and_pictures(tmp_path: Path) -> None:
    net, x = mlp(), vectors(60)
    label = busiest(net, x)
    seen: list[str] = []
    one = causal_graph(net, x, label, draws=3, out=tmp_path / "one", config=LOOSE,
                       progress=lambda what, *_: seen.append(what))  # fmt: skip
    assert isinstance(one, ClassGraph)
    assert "bootstrap" in seen
    causal_graph(net, x, label, new=broken(net, label), out=tmp_path / "two", config=LOOSE)
    for folder in ("one", "two"):
        json.loads((tmp_path / folder / "graph.json").read_text())
        ET.parse(tmp_path / folder / "graph.svg")
        assert (tmp_path / folder / "graph.dot").read_text().startswith("digraph")
    with pytest.raises(UsageError, match="leave out"):
        causal_graph(net, x, label, new=net, draws=3)


def test_pictures_say_what_they_leave_out_and_serve_dark_pages() -> None:
    net, x = mlp(), vectors(60)
    label = busiest(net, x)
    found = class_graph(net, x, label, config=LOOSE)
    drawn, total = svg(found, edges=2), sum(len(layer.edges) for layer in found.layers)
    assert f"6 of {total} edges" in drawn
    assert "prefers-color-scheme:dark" in drawn
    assert dot(found, edges=2).count("->") == 6
    changed = svg(diff(net, broken(net, label), x, label, config=LOOSE))
    assert 'class="lost"' in changed
