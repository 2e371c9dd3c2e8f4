from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.models.tiny import CONFIGS, tiny
from uphold.core.errors import UsageError
from uphold.models.checkpoint import open_checkpoint
from uphold.models.forward_order import Unit, block_order, first_units, forward_order, named_tensors


class Swapped(nn.Module):
    """Registered in another order than called, and with a module that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4, 3)
        self.second = nn.Conv2d(4, 4, 1)
        self.unused = nn.Linear(2, 2)
        self.norm = nn.BatchNorm2d(4)
        self.first = nn.Conv2d(1, 4, 3, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.second(self.norm(self.first(x)))
        return self.last(x.mean(dim=(2, 3)))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(width, width, 1)
        self.body = nn.Sequential(nn.Conv2d(width, width, 1), nn.BatchNorm2d(width), nn.Conv2d(width, width, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x) + self.down(x)


class Residual(nn.Module):
    """Stem, two blocks and a head, as a residual network has them, with a weight of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, 1))
        self.layer1 = nn.Sequential(Block(4), Block(4))
        self.conv1, self.bn1 = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.layer1(self.bn1(self.conv1(x * self.scale))).mean(dim=(2, 3)))


IMAGE = torch.zeros(1, 1, 5, 5)


def vgg(convolutions: int) -> nn.Module:
    """A network whose modules are called features.0, features.2, ... features.10, classifier."""
    layers: list[nn.Module] = []
    for number in range(convolutions):
        layers += [nn.Conv2d(1 if number == 0 else 2, 2, 3, padding=1), nn.ReLU(inplace=True)]
    net = nn.Module()
    net.features, net.classifier = nn.Sequential(*layers), nn.Linear(2, 3)
    net.forward = lambda x: net.classifier(net.features(x).mean(dim=(2, 3)))  # type: ignore[method-assign]
    return net


def test_features_10_comes_after_features_2() -> None:
    names = [unit.name for unit in forward_order(vgg(6), IMAGE)]
    assert names == [*(f"features.{2 * number}" for number in range(6)), "classifier"]
    assert sorted(names)[:3] == ["classifier", "features.0", "features.10"]
    assert [unit.tensors for unit in forward_order(vgg(6), IMAGE)][5] == ("features.10.weight", "features.10.bias")


def test_the_forward_pass_decides_and_not_the_registration() -> None:
    found = forward_order(Swapped(), IMAGE)
    assert [unit.name for unit in found] == ["first", "second", "last"]
    norm = [f"norm.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")]
    assert found[0].tensors == ("first.weight", *norm)
    assert found[1].tensors == ("second.weight", "second.bias")


@pytest.mark.parametrize("blocks", [(Block,), ("layer1.0", "layer1.1")])
def test_blocks_and_the_stem_count_as_one_each(blocks: tuple[Any, ...]) -> None:
    found = forward_order(Residual(), IMAGE, blocks=blocks)
    assert [unit.name for unit in found] == ["conv1", "layer1.0", "layer1.1", "fc"]
    assert found[0].tensors[:3] == ("scale", "conv1.weight", "conv1.bias")
    assert "bn1.running_var" in found[0].tensors
    assert {"layer1.0.down.weight", "layer1.0.body.1.running_mean"} <= set(found[1].tensors)
    assert all(name.startswith("layer1.1.") for name in found[2].tensors)


def test_the_outermost_block_decides() -> None:
    assert [one.name for one in forward_order(Residual(), IMAGE, blocks=("layer1", Block))] == ["conv1", "layer1", "fc"]


def test_attention_is_one_layer() -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.attention(x, x, x)[0])

    first, head = forward_order(Attends(), torch.zeros(1, 3, 4))
    assert "attention.out_proj.weight" in first.tensors
    assert head.name == "head"


def test_the_model_is_as_it_was() -> None:
    net = Residual()
    net.layer1.eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    modes = [module.training for module in net.modules()]

    forward_order(net, IMAGE)

    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(module._forward_pre_hooks for module in net.modules())


def test_hooks_go_also_when_the_forward_pass_fails() -> None:
    net = vgg(2)
    with pytest.raises(RuntimeError):
        forward_order(net, torch.zeros(1, 7, 5, 5))
    assert not any(module._forward_pre_hooks for module in net.modules())
    assert net.training


def test_a_module_without_layers_is_refused() -> None:
    with pytest.raises(UsageError, match="called no layer with weights"):
        forward_order(nn.ReLU(), IMAGE)


@pytest.mark.parametrize("kind", CONFIGS)
def test_names_on_disk_say_what_a_forward_pass_says(kind: str, tmp_path: Path) -> None:
    model = tiny(kind, "eager")
    ids = torch.zeros(1, 4, dtype=torch.long)
    run = forward_order(model, input_ids=ids, attention_mask=torch.ones_like(ids))
    model.save_pretrained(tmp_path)
    names = list(open_checkpoint(tmp_path).infos)

    read = block_order(names, 2)

    assert len(run) == len(read) == 4
    assert [unit.name for unit in read][1:3] == [unit.name for unit in run][1:3]
    assert read == block_order(names)
    assert sorted(name for unit in read for name in unit.tensors) == sorted(names)
    if kind != "mixtral":  # In memory, its experts are one tensor.
        assert [set(unit.tensors) for unit in read[:3]] == [set(unit.tensors) for unit in run[:3]]


def test_blocks_are_ordered_as_numbers() -> None:
    names = [f"model.layers.{number}.mlp.weight" for number in (10, 2, 0, 1, 9)] + ["lm_head.weight", "embed.weight"]
    units = block_order(sorted(names))
    assert [unit.name for unit in units] == [
        "embed",
        *(f"model.layers.{number}" for number in (0, 1, 2, 9, 10)),
        "lm_head",
    ]


def test_a_sequential_networks_file_has_an_order() -> None:
    units = block_order(["13.bias", "13.weight", "1.weight", "3.weight", "1.bias"])
    assert [unit.name for unit in units] == ["1", "3", "13"]
    assert units[0].tensors == ("1.weight", "1.bias")


def test_further_blocks_than_the_config_has_belong_to_the_head() -> None:
    names = ["model.embed_tokens.weight", *(f"model.layers.{one}.w" for one in range(3)), "model.norm.weight"]
    units = block_order(names, 2)
    assert [unit.name for unit in units] == ["model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm"]
    assert units[-1].tensors == ("model.norm.weight", "model.layers.2.w")


def test_the_last_block_of_an_adapter_is_not_taken_for_a_head() -> None:
    names = [f"base_model.model.model.layers.{one}.q_proj.lora_{part}.weight" for one in (1, 0) for part in "AB"]
    units = block_order(names)
    assert [unit.name for unit in first_units(units, 2)] == [f"base_model.model.model.layers.{one}" for one in (0, 1)]
    assert units[-1].tensors == ()
    trained = block_order([*names, "base_model.model.lm_head.weight"])
    assert [unit.tensors for unit in trained[2:]] == [("base_model.model.lm_head.weight",)]


@pytest.mark.parametrize(
    "names",
    [
        ["features.0.weight", "classifier.6.weight"],  # which of two series comes first?
        ["conv1.weight", "conv2.weight"],
        ["conv1.weight", "layers.0.weight", "layers.1.weight"],  # before or after the series?
    ],
)
def test_an_open_order_is_refused(names: list[str]) -> None:
    with pytest.raises(UsageError, match="name the layers instead"):
        block_order(names)


def test_the_head_is_never_counted() -> None:
    units = [Unit(name, (f"{name}.weight",)) for name in ("a", "b", "head")]
    assert first_units(units, 2) == units[:2]
    for wrong in (0, 3, -1):
        with pytest.raises(UsageError, match="this model has 2 before its head"):
            first_units(units, wrong)


def test_layers_by_name() -> None:
    names = ["features.0.weight", "features.0.bias", "features.10.weight", "features.1.weight", "scale"]
    assert named_tensors(names, ["features.10", "features.0"]) == [
        "features.10.weight",
        "features.0.weight",
        "features.0.bias",
    ]
    assert named_tensors(names, ["scale", "scale"]) == ["scale"]
    with pytest.raises(UsageError, match=r"the layer 'features.2'.*features.0, features.10"):
        named_tensors(names, ["features.2"])
    with pytest.raises(UsageError, match="no layers are named"):
        named_tensors(names, [])
