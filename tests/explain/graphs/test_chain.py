from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.explain.graphs.nets import images, lenet, vectors
from uphold.core.errors import ModelError, UsageError
from uphold.explain.graphs.chain import trace


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 5), nn.Linear(5, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return x + self.second(x.relu())


class Parallel(Residual):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.first(x) + self.second(x)


class Twice(Residual):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.first(self.first(x))


class Branching(Residual):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.first(x) if x.sum() > 0 else self.second(x)


class ChannelLast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(2, 4, 3), nn.Linear(4 * 36, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.conv(x).permute(0, 2, 3, 1).flatten(1))


def test_layers_units_and_blocks_are_found_by_shape() -> None:
    chain = trace(lenet(), images())
    found = [(layer.name, layer.kind, layer.inputs, layer.outputs, layer.block) for layer in chain.layers]
    assert found == [("0", "conv", 2, 4, 1), ("4", "conv", 4, 6, 1), ("7", "linear", 6, 7, 4), ("9", "linear", 7, 3, 1)]


def test_the_traced_model_is_the_model() -> None:
    net = lenet()
    chain = trace(net, images())
    with torch.no_grad():
        expected = net(images())
    torch.testing.assert_close(chain.run(images()), expected)
    clean = chain.clean(images())
    for number in range(4):
        torch.testing.assert_close(chain.above(number, clean.outputs[number].clone()), expected)


def test_evaluation_mode_is_used_and_left_as_it_was() -> None:
    net = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3)).double()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    chain = trace(net, vectors())
    assert torch.equal(chain.run(vectors()), chain.run(vectors()))
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (Residual(), "does not pass through second"),
        (Parallel(), "does not pass through"),
        (Twice(), "first runs more than once"),
        (Branching(), "cannot be traced"),
        (nn.Sequential(nn.Linear(5, 3), nn.Softmax(1)), "mixes or reorders"),
        (nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.Linear(6, 3)), "mixes or reorders"),
        (nn.Sequential(nn.ReLU()), "no linear or convolutional layer"),
        (nn.Sequential(nn.Linear(5, 6), nn.Bilinear(6, 6, 3)), "cannot be traced|Bilinear|argument"),
    ],
)
def test_what_is_no_path_is_refused(net: nn.Module, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        trace(net.double(), vectors())


def test_a_channel_last_flatten_is_refused() -> None:
    with pytest.raises(ModelError, match="reorders"):
        trace(ChannelLast().double(), images())


def test_a_transposed_convolution_is_refused() -> None:
    with pytest.raises(ModelError, match="ConvTranspose2d"):
        trace(nn.Sequential(nn.ConvTranspose2d(2, 3, 3), nn.Flatten(), nn.Linear(300, 3)).double(), images())


def test_an_unknown_layer_is_named() -> None:
    with pytest.raises(UsageError, match="no layer 'x'"):
        trace(lenet(), images()).index("x")
