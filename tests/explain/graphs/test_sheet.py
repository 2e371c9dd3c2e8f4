"""What the paper and its pitfalls ask for beyond the parts by themselves (arXiv:2305.08950)."""

from __future__ import annotations

import copy
from collections import OrderedDict
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.explain.graphs.nets import images, lenet, mlp, seeded, vectors
from tests.explain.graphs.test_build import LOOSE, busiest, graph
from tests.explain.graphs.test_faithful import whole
from uphold.explain.graphs import build
from uphold.explain.graphs.build import class_graph, sample, weights_hash
from uphold.explain.graphs.chain import trace
from uphold.explain.graphs.config import GraphConfig
from uphold.explain.graphs.cutting import Instead, cut_units
from uphold.explain.graphs.diff import diff
from uphold.explain.graphs.faithful import cut_logits, faithfulness, kept_logits, random_graph
from uphold.explain.graphs.graph import jaccard
from uphold.explain.graphs.stability import stable_graph
from uphold.explain.graphs.testing import paired_p

ANY = GraphConfig(min_effect=0.0)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


@pytest.mark.parametrize("count", [15, 60, 250])
def test_behind_relu_the_causes_are_the_positive_weights_of_units_that_are_active(count: int) -> None:
    # Units 0 to 3 are active on most images, 4 on none, 5 to 7 always; the weights of 1, 3 and 6 are negative.
    net: Any = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)).double()
    with torch.no_grad():
        net[0].weight.copy_(drawn(8, 3))
        net[0].bias.copy_(torch.tensor([1.0, 1, 1, 1, -50, 20, 20, 20]))
        net[2].weight.copy_(torch.tensor([[1.0, -1, 0.5, -2, 3, 0.01, -0.02, 0.3], [0.0] * 8]))
        net[2].bias.copy_(torch.tensor([10.0, 0]))
    x = drawn(count, 3, seed=1)
    active = (net[0](x) > 0).double().mean(0)
    assert active[4] == 0
    assert 0.4 < active[:4].min() < active[:4].max() < 1
    found = class_graph(net, x, 0, config=ANY).layers[0]
    assert found.causes == (0, 2, 5, 7)
    assert found.change[4] == 0
    small = class_graph(net, x, 0, config=replace(ANY, min_effect=0.03)).layers[0]
    assert set(small.causes) < set(found.causes)  # significance is not importance
    assert 5 not in small.causes


def named(*names: str) -> nn.Sequential:
    """The same network under other names."""
    return nn.Sequential(OrderedDict(zip(names, lenet(), strict=True)))


def test_names_of_layers_do_not_count() -> None:
    x = images(40)
    plain = named(*(f"m{number}" for number in range(10)))
    lying = named("fc", "bn", "relu", "pool", "classifier", "tanh", "conv", "conv2", "act", "features")
    found = [graph(net, x) for net in (plain, lying)]
    assert [layer.name for layer in found[1].layers] == ["features", "conv2", "classifier", "fc"]
    for one, other in zip(found[0].layers, found[1].layers, strict=True):
        assert replace(other, name=one.name) == one
    chains = [trace(net, x) for net in (plain, lying)]
    torch.testing.assert_close(*(kept_logits(chain, one, x) for chain, one in zip(chains, found, strict=True)))


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self, shared: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 5), nn.Linear(5, 5)
        if shared:
            self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.second(self.first(x).relu())
        return logits


def test_a_weight_that_two_layers_share_is_cut_in_one_of_them() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tied, apart = Tied(True).double(), Tied(False).double()
    apart.load_state_dict(tied.state_dict())
    x = vectors(80)
    assert tied.first.weight is tied.second.weight
    assert apart.first.weight is not apart.second.weight
    ours, theirs = graph(tied, x), graph(apart, x)
    assert ours.layers == theirs.layers
    chains = [trace(net, x) for net in (tied, apart)]
    for logits in (kept_logits, cut_logits):
        torch.testing.assert_close(*(logits(chain, ours, x) for chain in chains))
    before = weights_hash(tied)
    diff(tied, apart, x, busiest(tied, x), config=LOOSE)
    assert weights_hash(tied) == before


class Stop(Exception):
    """In the middle."""


def _fail(*_: Any, **__: Any) -> Any:
    raise Stop


@pytest.mark.parametrize("where", ["cut_units", "cut_edges", "estimates", "select"])
def test_the_model_is_as_it_was_wherever_it_stops(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = lenet(), images(40)
    net.train()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    label = int(net.eval()(x).argmax(1).mode().values)
    net.train()
    monkeypatch.setattr(build, where, _fail)
    with pytest.raises(Stop):
        class_graph(net, x, label, config=replace(LOOSE, screen=3 if where == "estimates" else None))
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert all(module.training for module in net.modules())
    assert all(weight.requires_grad and weight.grad is None for weight in net.parameters())
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in net.modules())
    assert torch.is_grad_enabled()


def test_batch_norm_keeps_its_statistics_when_a_pass_is_stopped() -> None:
    net: Any = lenet()
    x = images(40)
    label = busiest(net, x)
    net.train()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    hook = net[7].register_forward_pre_hook(_fail)
    with pytest.raises(Stop):
        class_graph(net, x, label)
    hook.remove()
    stable_graph(net, x, label, config=replace(LOOSE, edges=False), draws=2)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert net.training


def test_units_that_say_nothing_are_selected_as_often_as_the_level_says() -> None:
    # Activations of mean zero: to cut a unit changes the logit of single images and not their mean.
    rates, causes = [], []
    for seed in range(6):
        net: Any = nn.Sequential(nn.Linear(300, 2)).double()
        with torch.no_grad():
            net[0].weight.copy_(drawn(2, 300, seed=seed))
        found = sample(net, drawn(40, 300, seed=100 + seed), 0, wrong=True)
        cut = cut_units(found.chain, found.clean, 0, [0], range(300), Instead(0.0))[..., 0]
        rates.append(np.mean(paired_p((cut - found.clean.logits[:, 0]).numpy()) <= 0.05))
        graphed = build.graph_of(found, replace(ANY, test_input=True, edges=False))
        causes.append(len(graphed.layers[0].causes))
    assert np.mean(rates) == pytest.approx(0.05, abs=0.015)
    assert sum(causes) <= 3


def test_a_soft_cut_above_every_weight_leaves_no_cause_behind_relu() -> None:
    net: Any = mlp()
    x = vectors(200)
    hard = graph(net, x, replace(ANY, edges=False))
    overlap = []
    for beta in (0.0, 0.05, 0.3, 2.0):
        soft = graph(net, x, replace(ANY, replace="soft", beta=beta, edges=False))
        overlap.append(jaccard(hard, soft)["4"])
    assert float(net[4].weight.detach().max()) < 2
    assert overlap[0] == 1
    assert overlap == sorted(overlap, reverse=True)
    assert overlap[-1] == 0


def flagged() -> tuple[nn.Sequential, torch.Tensor, torch.Tensor]:
    """Unit 0 says the class, unit 1 is on for every image and speaks for it too, unit 2 speaks for the other class."""
    net: Any = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, 0], [0, 0], [0, 1.0]]))
        net[0].bias.copy_(torch.tensor([0.0, 1, 0]))
        net[2].weight.copy_(torch.tensor([[2.0, 1.0, 0], [0, 0, 4.0]]))
        net[2].bias.zero_()
    size = torch.rand(60, generator=torch.Generator().manual_seed(0), dtype=torch.double) + 0.5
    labels = torch.arange(60) % 2
    x = torch.where(labels[:, None] == torch.arange(2), size[:, None], 0.0)
    return net, x, labels


def test_a_kept_graph_that_sees_its_class_everywhere_is_shown_to() -> None:
    net, x, labels = flagged()
    found = class_graph(net, x[labels == 0], 0)
    assert found.layers[0].causes == (0, 1)
    measured = faithfulness(net, found, x, labels, controls=4)
    kept = measured.arms["kept"]
    # Sufficient, and specific to nothing: the other class has lost its evidence.
    assert (measured.arms["original"].accuracy, measured.arms["original"].false_positive) == (1, 0)
    assert (kept.accuracy, kept.false_positive) == (1, 1)
    assert kept.separation == 1  # its logit still tells the classes apart
    assert kept.logit == pytest.approx(float(net(x).detach()[labels == 0, 0].mean()))
    others = faithfulness(net, found, x, labels, controls=1, others=True).arms["kept"]
    assert others.false_positive == 1  # unit 2 is no cause of class 0 and has no weights below
    cut = measured.arms["classifier cut"]
    assert (cut.accuracy, cut.logit) == (1, 0)  # both logits are 0: the first one counts
    alone = replace(found, layers=(replace(found.layers[0], causes=(1,)), *found.layers[1:]))
    assert faithfulness(net, alone, x, labels, controls=1).arms["kept"].separation == 0.5


def test_arms_are_means_of_what_single_networks_do() -> None:
    net, x = mlp(), vectors(80)
    labels = net(x).argmax(1)
    found = graph(net, vectors(60, seed=3), replace(LOOSE, screen=2))
    chain = trace(net, x)
    measured = faithfulness(net, found, x, labels, controls=3, seed=5, batch=7)
    mine = labels == found.label
    for name, logits_of in (("kept", kept_logits), ("cut", cut_logits)):
        graphs = {name: [found], f"random {name}": [random_graph(chain, found, seed) for seed in (5, 6, 7)]}
        for arm, drawn_graphs in graphs.items():
            logits = torch.stack([logits_of(chain, one, x) for one in drawn_graphs])
            said = (logits.argmax(2) == found.label).double()
            assert measured.arms[arm].accuracy == pytest.approx(float(said[:, mine].mean()))
            assert measured.arms[arm].false_positive == pytest.approx(float(said[:, ~mine].mean()))
            assert measured.arms[arm].logit == pytest.approx(float(logits[:, mine, found.label].mean()))


def test_necessity_shows_against_random_graphs_until_a_layer_is_saturated() -> None:
    # Two of eight units carry the class.
    net: Any = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)).double()
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(8))
        net[0].bias.zero_()
        net[2].weight.copy_(torch.zeros(2, 8))
        net[2].weight[0, [2, 5]] = 2.0
        net[2].bias.copy_(torch.tensor([0.0, 1.0]))
    x = torch.rand(80, 8, generator=torch.Generator().manual_seed(0), dtype=torch.double) + 0.2
    labels = torch.arange(80) % 2
    x[labels == 1, 2], x[labels == 1, 5] = 0, 0
    found = class_graph(net, x[labels == 0], 0, config=LOOSE)
    assert found.layers[0].causes == (2, 5)
    assert found.saturated == ()
    arms = faithfulness(net, found, x, labels, controls=20).arms
    assert arms["classifier cut"].accuracy == 0
    assert arms["random classifier cut"].accuracy > 0.8
    assert arms["kept"].accuracy == 1
    assert arms["random kept"].accuracy < 0.6
    full = replace(found, layers=(replace(found.layers[0], causes=tuple(range(8))), *found.layers[1:]))
    arms = faithfulness(net, full, x, labels, controls=5).arms
    assert full.saturated == ("2",)
    assert arms["random classifier cut"].accuracy == arms["classifier cut"].accuracy == 0


def test_each_version_of_a_comparison_is_seen_on_the_images_that_the_old_one_gets_right() -> None:
    net: Any = mlp()
    x = vectors(200)
    label = busiest(net, x)
    new: Any = copy.deepcopy(net)
    with torch.no_grad():
        new[4].bias[label] -= 0.1
    right = [(one(x).argmax(1) == label).tolist() for one in (net, new)]
    assert right[0] != right[1]
    found = diff(net, new, x, label, ids=[str(number) for number in range(200)], config=replace(LOOSE, samples=30))
    wanted = [str(number) for number in range(200) if right[0][number]][:30]
    assert list(found.old.images) == list(found.new.images) == wanted
    assert found.old.images_hash == found.new.images_hash
    assert found.old.weights_hash != found.new.weights_hash
    assert found.new.scale == found.old.scale
    assert found.counts(changed=False)["lost"] == found.counts(changed=False)["gained"] == 0  # a bias is no edge


def test_graphs_without_a_cause_are_graphs() -> None:
    net: Any = mlp()
    x = vectors(60)
    label = busiest(net, x)
    none = GraphConfig(min_effect=1e6)
    found = class_graph(net, x, label, config=none)
    assert [layer.causes for layer in found.layers] == [()]
    assert diff(net, copy.deepcopy(net), x, label, config=none).edges == ()
    chain = trace(net, x)
    torch.testing.assert_close(kept_logits(chain, found, x), net[4].bias.expand(60, -1).detach())
    assert jaccard(found, found) == {"4": 1}


def test_a_mean_cut_is_the_same_however_the_images_are_batched() -> None:
    net, x = lenet(), images(40)
    found = [graph(net, x, replace(LOOSE, replace="mean", batch=size)) for size in (40, 4000)]
    for one, other in zip(found[0].layers, found[1].layers, strict=True):
        assert one.causes == other.causes
        assert one.change == pytest.approx(other.change)


def test_depthwise_convolutions_have_one_edge_per_unit() -> None:
    net = seeded(
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
        )
    )
    x = images(40)
    chain = trace(net, x)
    assert [layer.block for layer in chain.layers] == [1, 1, 16]
    clean = chain.clean(x)
    found = cut_units(chain, clean, 1, [1], range(4), Instead(0.0))
    assert all(torch.equal(found[cause], clean.logits) for cause in (0, 2, 3))
    edited: Any = copy.deepcopy(net)
    with torch.no_grad():
        edited[2].weight[1] = 0
        torch.testing.assert_close(found[1], edited(x))
    torch.testing.assert_close(kept_logits(chain, whole(chain), x), clean.logits)
