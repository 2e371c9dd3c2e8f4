from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.explain.graphs.nets import images, lenet, mlp, vectors
from uphold.core.errors import CorruptError, EmptyError, UsageError
from uphold.core.storage import write_json
from uphold.explain.graphs import cutting
from uphold.explain.graphs.build import class_graph, weights_hash
from uphold.explain.graphs.config import GraphConfig
from uphold.explain.graphs.graph import ClassGraph, jaccard, read_graph
from uphold.explain.graphs.stability import stable_graph

LOOSE = GraphConfig(min_effect=0.001)


def busiest(net: nn.Module, x: torch.Tensor) -> int:
    with torch.no_grad():
        return int(net(x).argmax(1).mode().values)


def graph(net: nn.Module, x: torch.Tensor, config: GraphConfig = LOOSE) -> ClassGraph:
    return class_graph(net, x, busiest(net, x), config=config)


def test_weights_are_bit_identical_afterwards_and_after_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = lenet(), images()
    before = weights_hash(net)
    graph(net, x)
    assert weights_hash(net) == before

    def broken(*_: Any, **__: Any) -> torch.Tensor:
        raise RuntimeError("in the middle")

    monkeypatch.setattr(cutting, "changes", broken)
    with pytest.raises(RuntimeError, match="in the middle"):
        graph(net, x)
    assert weights_hash(net) == before
    assert not any(module._forward_hooks for module in net.modules())
    assert all(weight.requires_grad and weight.grad is None for weight in net.parameters())


def test_a_linear_layer_selects_positive_contributions() -> None:
    net = nn.Sequential(nn.Linear(4, 2, bias=False)).double()
    net[0].weight.data = torch.tensor([[2.0, -1.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]], dtype=torch.double)
    x = torch.rand(30, 4, generator=torch.Generator().manual_seed(0), dtype=torch.double) + 0.5
    x[:, 3] = 0
    x = x[2 * x[:, 0] > x[:, 1]]
    found = class_graph(net, x, 0, config=GraphConfig(test_input=True)).layers[0]
    assert found.causes == (0,)
    torch.testing.assert_close(torch.tensor(found.change, dtype=torch.double), -(net[0].weight[0] * x.mean(0)).detach())
    assert found.change[2:] == (0, 0)


def test_selected_relu_units_do_not_depend_on_the_number_of_images() -> None:
    net, x = mlp(), vectors(400)
    label = busiest(net, x)
    sets = [class_graph(net, x, label, config=replace(LOOSE, samples=n)).layers[0].causes for n in (20, 60, 150)]
    weights = net[4].weight[label]
    assert all(all(weights[cause] > 0 for cause in causes) for causes in sets)
    assert sets[1] == sets[2]


def test_a_dead_unit_has_no_effect_and_a_double_halves_it() -> None:
    net, x = mlp(), vectors()
    plain = graph(net, x)
    wide = mlp(8)
    wide.load_state_dict({**net.state_dict(), **_widened(net)})
    found = graph(wide, x)
    ours, theirs = plain.layers[1], found.layers[1]
    assert theirs.change[6] == pytest.approx(theirs.change[0], rel=1e-9)
    assert theirs.change[7] == 0
    assert 7 not in theirs.causes
    assert theirs.q[7] == 1
    both = next(edge for edge in found.layers[1].edges if edge.cause == 0) if 0 in theirs.causes else None
    if both is not None:
        whole = next(edge for edge in ours.edges if (edge.effect, edge.cause) == (both.effect, 0))
        assert abs(both.change) < abs(whole.change)


def _widened(net: nn.Sequential) -> dict[str, torch.Tensor]:
    """Unit 0 twice, each with half of its outgoing weights, and a unit without any."""
    state = net.state_dict()
    into, bias, out = state["0.weight"], state["0.bias"], state["2.weight"]
    halved = out.clone()
    halved[:, 0] /= 2
    return {
        "0.weight": torch.cat([into, into[:1], into[:1]]),
        "0.bias": torch.cat([bias, bias[:1], bias[:1]]),
        "2.weight": torch.cat([halved, halved[:, :1], torch.zeros_like(halved[:, :1])], 1),
    }


def test_doubled_units_of_the_last_hidden_layer_halve_and_keep_the_sum() -> None:
    net, x = mlp(), vectors()
    label = busiest(net, x)
    plain = graph(net, x).layers[0]
    wide = nn.Sequential(net[0], net[1], nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    state = net.state_dict()
    out = state["4.weight"].clone()
    out[:, 2] /= 2
    wide[2].weight.data = torch.cat([state["2.weight"], state["2.weight"][2:3]])
    wide[2].bias.data = torch.cat([state["2.bias"], state["2.bias"][2:3]])
    wide[4].weight.data, wide[4].bias.data = torch.cat([out, out[:, 2:3]], 1), state["4.bias"]
    found = class_graph(wide, x, label, config=LOOSE).layers[0]
    assert found.change[2] == pytest.approx(plain.change[2] / 2)
    assert found.change[2] + found.change[4] == pytest.approx(plain.change[2])


def test_permuted_units_permute_the_graph_and_equal_models_have_equal_graphs() -> None:
    net, x = mlp(), vectors()
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    other = copy.deepcopy(net)
    other[0].weight.data, other[0].bias.data = net[0].weight.data[order], net[0].bias.data[order]
    other[2].weight.data = net[2].weight.data[:, order]
    ours, theirs = graph(net, x), graph(other, x)
    assert {int(order[cause]) for cause in theirs.layers[1].causes} == set(ours.layers[1].causes)
    assert ours.layers[0] == replace(theirs.layers[0], change=ours.layers[0].change, q=ours.layers[0].q,
                                     shift=ours.layers[0].shift, edges=ours.layers[0].edges)  # fmt: skip
    assert graph(copy.deepcopy(net), x) == ours


def test_other_rows_of_the_classifier_do_not_count_there() -> None:
    net, x = mlp(), vectors(60)
    label = busiest(net, x)
    other = copy.deepcopy(net)
    other[4].weight.data[(label + 1) % 3] *= 0.9
    both = (net(x).argmax(1) == label) & (other(x).argmax(1) == label)
    first, second = (
        class_graph(one, x[both], label, config=replace(LOOSE, min_effect=0.0)).layers[0] for one in (net, other)
    )
    assert first.causes == second.causes
    assert first.change == second.change


def test_only_right_images_count_and_they_are_named() -> None:
    net, x = mlp(), vectors()
    label = busiest(net, x)
    right = (net(x).argmax(1) == label).nonzero()[:, 0].tolist()
    found = class_graph(net, x, label, ids=[f"i{k}" for k in range(40)], config=GraphConfig(samples=5))
    assert found.images == tuple(f"i{k}" for k in right[:5])
    assert found.images_hash == class_graph(net, x[right[:5]], label).images_hash
    assert len(class_graph(net, x, label).images[0]) == 16


def test_screening_tests_fewer_units_and_says_how_well_it_ranks() -> None:
    net, x = lenet(), images(60)
    full, some = graph(net, x), graph(net, x, replace(LOOSE, screen=3))
    assert [layer.screened for layer in some.layers] == [3, 3, 3, None]
    assert set(some.layers[0].causes) <= set(full.layers[0].causes)
    assert some.layers[0].screening == pytest.approx(1.0)
    assert full.layers[0].screening is None


@pytest.mark.parametrize(
    "config",
    [
        GraphConfig(compat="authors"),
        GraphConfig(replace="soft", beta=0.1),
        GraphConfig(replace="mean"),
        GraphConfig(outcome="centred-logit", edges=False),
    ],
)
def test_every_option_gives_a_graph_that_survives_its_file(config: GraphConfig, tmp_path: Path) -> None:
    found = graph(lenet(), images(40), config)
    found.write(tmp_path / "graph.json")
    assert read_graph(tmp_path / "graph.json") == found
    assert str(found).startswith(f"class {found.label}, {len(found.images)} images")


def test_files_that_hold_no_graph_are_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"schema": "other"})
    write_json(tmp_path / "b.json", {"schema": "uphold.class-graph.v1", "layers": []})
    for name in "ab":
        with pytest.raises(CorruptError, match="make it again"):
            read_graph(tmp_path / f"{name}.json")


def test_stability_is_a_share_for_each_cause_and_edge() -> None:
    net, x = mlp(), vectors(60)
    found = stable_graph(net, x, busiest(net, x), config=LOOSE, draws=8)
    again = stable_graph(net, x, busiest(net, x), config=LOOSE, draws=8)
    assert found == again
    assert all(0 <= one <= 1 for layer in found.layers for one in layer.stability)
    assert all(edge.stability is not None for layer in found.layers for edge in layer.edges)
    assert max(found.layers[0].stability) == 1
    plain = graph(net, x)
    assert [layer.causes for layer in found.layers] == [layer.causes for layer in plain.layers]
    assert jaccard(found, plain) == {"4": 1, "2": 1}


def test_what_cannot_be_is_refused_in_one_line() -> None:
    net, x = mlp(), vectors()
    label = busiest(net, x)
    wrong = x[net(x).argmax(1) != label]
    with pytest.raises(EmptyError, match="gets none of the"):
        class_graph(net, wrong, label)
    with pytest.raises(EmptyError, match="no image of class"):
        class_graph(net, x[:0], label)
    with pytest.raises(UsageError, match="no class 9"):
        class_graph(net, x, 9)
    with pytest.raises(UsageError, match="1 names for 40 images"):
        class_graph(net, x, label, ids=["a"])
    with pytest.raises(UsageError, match="1 or more draws"):
        stable_graph(net, x, label, draws=0)
    for bad in (
        {"replace": "none"},
        {"outcome": "p"},
        {"compat": "x"},
        {"alpha": 0},
        {"min_effect": -1},
        {"screen": 0},
    ):
        with pytest.raises(UsageError):
            GraphConfig(**bad)
