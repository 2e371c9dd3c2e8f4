from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.explain.graphs.nets import images, lenet, mlp, vectors
from tests.explain.graphs.test_build import busiest, graph
from uphold.core.errors import EmptyError, UsageError
from uphold.explain.graphs.attribution import attribution_map
from uphold.explain.graphs.chain import Chain, trace
from uphold.explain.graphs.faithful import cut_logits, faithfulness, kept_logits, random_graph
from uphold.explain.graphs.graph import ClassGraph, GraphLayer


def whole(chain: Chain) -> ClassGraph:
    layers = [
        GraphLayer(one.name, one.kind, one.inputs, one.outputs, tuple(range(one.outputs)), tuple(range(one.inputs)))
        for one in reversed(chain.layers)
    ]
    return ClassGraph(0, tuple(layers), (), "", "", 1.0, 0.0, 0.0)


def test_the_whole_graph_is_the_model_and_no_graph_is_its_biases() -> None:
    net, x = lenet(), images()
    chain = trace(net, x)
    full = whole(chain)
    torch.testing.assert_close(kept_logits(chain, full, x, batch=7), chain.run(x))
    torch.testing.assert_close(cut_logits(chain, replace(full, layers=()), x), chain.run(x))
    bias = net[9].bias.expand(len(x), -1)
    torch.testing.assert_close(kept_logits(chain, replace(full, layers=()), x), bias)
    torch.testing.assert_close(cut_logits(chain, full, x), bias)


def test_kept_networks_equal_edited_weights() -> None:
    net, x = lenet(), images(60)
    chain, found = trace(net, x), graph(net, x)
    other = lenet()
    for layer in found.layers:
        module = other.get_submodule(layer.name)
        mask = torch.zeros(layer.outputs, layer.inputs, dtype=torch.bool)
        for pair in layer.pairs:
            mask[pair] = True
        if isinstance(module, nn.Conv2d):
            few, tall = layer.inputs // module.groups, layer.outputs // module.groups
            mask = torch.stack([mask[e, e // tall * few : (e // tall + 1) * few] for e in range(layer.outputs)])
            module.weight.data *= mask[..., None, None]
        else:
            module.weight.data *= mask.repeat_interleave(module.in_features // layer.inputs, 1)
    with torch.no_grad():
        torch.testing.assert_close(kept_logits(chain, found, x), other(x))
    others = kept_logits(chain, found, x, others=True)
    torch.testing.assert_close(others[:, found.label], other(x)[:, found.label])
    assert not torch.allclose(others, other(x))


def test_random_graphs_have_the_same_sizes() -> None:
    net, x = lenet(), images(60)
    found, chain = graph(net, x), trace(net, x)
    drawn = random_graph(chain, found, 3)
    assert [len(layer.causes) for layer in drawn.layers] == [len(layer.causes) for layer in found.layers]
    assert [layer.effects for layer in drawn.layers[1:]] == [layer.causes for layer in drawn.layers[:-1]]
    assert drawn == random_graph(chain, found, 3)


def test_faithfulness_measures_every_arm() -> None:
    net, x = mlp(), vectors(200)
    labels = net(x).argmax(1)
    found = graph(net, x)
    measured = faithfulness(net, found, x, labels, controls=3)
    names = ["kept", "cut", "classifier cut"]
    assert list(measured.arms) == ["original", *(n for name in names for n in (name, f"random {name}"))]
    assert measured.arms["original"].accuracy == 1
    assert measured.arms["original"].false_positive == 0
    assert measured.arms["original"].separation > 0.9
    assert measured.arms["classifier cut"].logit < measured.arms["original"].logit
    assert "separation" in str(measured)


def test_a_saturated_layer_is_flagged() -> None:
    net, x = mlp(), vectors(200)
    found = graph(net, x)
    top = replace(found.layers[0], causes=tuple(range(4)))
    full = replace(found, layers=(top, *found.layers[1:]))
    assert "4" in full.saturated
    assert "cutting the graph shows nothing" in str(faithfulness(net, full, x, net(x).argmax(1), controls=1))
    assert not found.layers[-1].saturated


def test_what_cannot_be_measured_is_refused() -> None:
    net, x = mlp(), vectors()
    found = graph(net, x)
    with pytest.raises(EmptyError, match="of other classes"):
        faithfulness(net, found, x, torch.full((40,), found.label))
    with pytest.raises(UsageError, match="random graphs"):
        faithfulness(net, found, x, net(x).argmax(1), controls=0)
    with pytest.raises(UsageError, match="that it was found on"):
        faithfulness(mlp(8), found, x, net(x).argmax(1))


def test_maps_add_up_to_what_the_convolution_gives() -> None:
    net, x = lenet(), images()
    found = graph(net, images(60))
    chain = trace(net, x)
    first = replace(found.layers[-1], effects=(0, 1, 2, 3)) if len(found.layers) == 4 else whole(chain).layers[-1]
    full = replace(found, layers=(first,))
    given = chain.clean(x).outputs[0] - net[0].bias[:, None, None]
    torch.testing.assert_close(attribution_map(net, full, "0", x), given.sum(1).detach() / 2)
    positive = attribution_map(net, full, "0", x, softmax=True)
    assert (positive > 0).all()
    torch.testing.assert_close(positive.sum((1, 2)), torch.full((len(x),), 4.0, dtype=torch.double))
    with pytest.raises(UsageError, match="no two-dimensional convolution"):
        attribution_map(net, found, "9", x)
    assert busiest(net, x) in range(3)
