from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.explain.graphs.nets import images, lenet, seeded, vectors
from uphold.explain.graphs.build import sample
from uphold.explain.graphs.chain import Chain, trace
from uphold.explain.graphs.config import GraphConfig
from uphold.explain.graphs.cutting import Instead, cut_edges, cut_units, estimates, instead


def edited(chain: Chain, number: int, pairs: list[tuple[int, int]], value: float, x: torch.Tensor) -> torch.Tensor:
    """The plain way: write into the weights, run, put them back."""
    layer = chain.layers[number]
    weight = layer.module.weight.data
    before = weight.clone()
    for effect, cause in pairs:
        if layer.kind == "linear":
            weight[effect, cause * layer.block : (cause + 1) * layer.block] = value
            continue
        tall, wide = layer.outputs // layer.module.groups, layer.inputs // layer.module.groups
        if effect // tall == cause // wide:
            weight[effect, cause % wide] = value
    with torch.no_grad():
        found: torch.Tensor = chain.model(x)
    weight.copy_(before)
    return found


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("value", [0.0, 0.3])
@pytest.mark.parametrize("batch", [1, 1000])
def test_cuts_equal_edited_weights(number: int, value: float, batch: int) -> None:
    chain, x = trace(lenet(), images()), images()
    clean, layer = chain.clean(x), chain.layers[number]
    effects, causes = list(range(0, layer.outputs, 2)), list(range(layer.inputs))
    found = cut_units(chain, clean, number, effects, causes, Instead(value), batch=batch)
    pairs = [(effect, cause) for effect in effects for cause in causes]
    single = cut_edges(chain, clean, number, pairs, Instead(value), batch=batch)
    for cause in causes:
        expected = edited(chain, number, [(effect, cause) for effect in effects], value, x)
        torch.testing.assert_close(found[cause], expected, rtol=1e-9, atol=1e-12)
    for k, pair in enumerate(pairs):
        torch.testing.assert_close(single[k], edited(chain, number, [pair], value, x), rtol=1e-9, atol=1e-12)


@given(
    stride=st.integers(1, 3),
    padding=st.one_of(st.integers(0, 2), st.just("same")),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2, 4]),
    mode=st.sampled_from(["zeros", "reflect", "circular"]),
)
@settings(max_examples=15, deadline=None)
def test_any_convolution(stride: int, padding: int | str, dilation: int, groups: int, mode: str) -> None:
    if padding == "same":
        stride = 1
    net = seeded(
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3),
            nn.ReLU(),
            nn.Conv2d(
                4, 8, 3, stride=stride, padding=padding, dilation=dilation, groups=groups, padding_mode=mode, bias=False
            ),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 3),
        )
    )
    chain, x = trace(net, images(3)), images(3)
    found = cut_units(chain, chain.clean(x), 1, [0, 3, 7], [0, 1, 2, 3], Instead(0.1))
    for cause in range(4):
        torch.testing.assert_close(found[cause], edited(chain, 1, [(e, cause) for e in (0, 3, 7)], 0.1, x))


def test_one_linear_layer_by_hand() -> None:
    net = nn.Sequential(nn.Linear(3, 2, bias=False)).double()
    net[0].weight.data = torch.tensor([[1.0, -2.0, 0.5], [0.0, 0.0, 0.0]], dtype=torch.double)
    x = torch.tensor([[1.0, 3.0, 4.0], [2.0, 0.0, 6.0]], dtype=torch.double)
    chain = trace(net, x)
    found = cut_units(chain, chain.clean(x), 0, [0], [0, 1, 2], Instead(0.0))[..., 0]
    clean = torch.tensor([-3.0, 5.0])
    assert (found - clean).tolist() == [[-1.0, -2.0], [6.0, 0.0], [-2.0, -3.0]]


def test_a_weight_in_its_own_place_changes_nothing() -> None:
    chain, x = trace(lenet(), images()), images()
    clean = chain.clean(x)
    own = chain.layers[3].module.weight[1, 4].item()
    assert torch.equal(cut_edges(chain, clean, 3, [(1, 4)], Instead(own))[0], clean.logits)


def test_the_mean_takes_away_what_differs_between_images() -> None:
    net, x = nn.Sequential(nn.Linear(5, 3)).double(), vectors()
    chain = trace(net, x)
    found = cut_units(chain, chain.clean(x), 0, [0, 1, 2], [2], Instead(None))[0]
    other = x.clone()
    other[:, 2] = x[:, 2].mean()
    torch.testing.assert_close(found, chain.run(other))


def test_soft_is_hard_up_to_a_hundredth_of_the_activations() -> None:
    net, x = nn.Sequential(nn.Linear(5, 3)).double(), vectors()
    chain = trace(net, x)
    clean, how = chain.clean(x), instead(GraphConfig(replace="soft", seed=3), 0)
    assert how.weight is not None
    assert 0 <= how.weight < 0.01
    assert how == instead(GraphConfig(replace="soft", seed=3), 0)
    assert how != instead(GraphConfig(replace="soft", seed=4), 0)
    soft, hard = (cut_units(chain, clean, 0, [0], range(5), one)[..., 0] for one in (how, Instead(0.0)))
    assert ((soft - hard).abs() <= 0.01 * x.T.abs() + 1e-12).all()


def test_estimates_are_exact_where_nothing_bends() -> None:
    net = seeded(lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 3)))
    x = images(60)
    found = sample(net, x, 0, config=GraphConfig())
    how, effects = Instead(0.2), [0, 2]
    guess = estimates(found.chain, found.clean, 0, effects, how, 0, GraphConfig())
    exact = cut_units(found.chain, found.clean, 0, effects, [0, 1], how)[..., 0] - found.clean.logits[:, 0]
    torch.testing.assert_close(guess, exact)
