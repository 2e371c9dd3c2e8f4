from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

from tests.models.tiny import tiny
from tests.models.toy_lm import Toy
from uphold.core.errors import ModelError, UsageError
from uphold.models.neurons.neurons import read_anatomy

NEOX = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 47}


def neox() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(transformers.GPTNeoXConfig(**NEOX)).eval()


@pytest.mark.parametrize(
    ("kind", "names", "width", "norm"),
    [
        ("llama", "model.layers.{}.mlp.down_proj", 64, "model.norm"),
        ("gemma3", "model.layers.{}.mlp.down_proj", 64, "model.norm"),
        ("qwen2", "model.layers.{}.mlp.down_proj", 64, "model.norm"),
        ("gpt2", "transformer.h.{}.mlp.c_proj", 128, "transformer.ln_f"),
        ("bloom", "transformer.h.{}.mlp.dense_4h_to_h", 128, "transformer.ln_f"),
        ("neox", "gpt_neox.layers.{}.mlp.dense_4h_to_h", 64, "gpt_neox.final_layer_norm"),
    ],
)
def test_down_projections_are_found_by_rule(kind: str, names: str, width: int, norm: str) -> None:
    model = neox() if kind == "neox" else tiny(kind, "eager")
    anatomy = read_anatomy(model)
    assert [down.name for down in anatomy.downs] == [names.format(layer) for layer in range(2)]
    assert [(down.layer, down.width, down.hidden) for down in anatomy.downs] == [(0, width, 32), (1, width, 32)]
    assert anatomy.norm is model.get_submodule(norm)
    assert anatomy.head.shape == (47, 32)
    assert dict(model.named_parameters()).keys() >= {down.parameter for down in anatomy.downs}


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_neuron_is_what_its_unit_writes(kind: str) -> None:
    down = read_anatomy(tiny(kind)).downs[0]
    assert down.transposed == (kind == "gpt2")
    unit = torch.zeros(1, 1, down.width)
    unit[0, 0, 5] = 1
    with torch.no_grad():
        written = down.module(unit)[0, 0] - down.module(torch.zeros_like(unit))[0, 0]
    assert torch.allclose(written, down.neuron(5), atol=1e-6)


def test_a_plain_torch_model_names_its_parts() -> None:
    toy = Toy()
    anatomy = read_anatomy(toy, head="head", vocabulary=9)
    assert [(down.name, down.block) for down in anatomy.downs] == [("blocks.0.fc2", ("blocks", 0))]
    assert (anatomy.vocabulary, anatomy.norm) == (9, None)
    assert anatomy.embedding is not None
    assert torch.equal(anatomy.embedding, toy.embedding.weight)
    assert read_anatomy(toy, head="head", modules="*.fc2").downs[0].name == "blocks.0.fc2"
    with pytest.raises(ModelError, match="head="):
        read_anatomy(toy)
    with pytest.raises(UsageError, match="no module 'tail'"):
        read_anatomy(toy, head="tail")
    with pytest.raises(UsageError, match="no module 'ln'"):
        read_anatomy(toy, head="head", norm="ln")
    with pytest.raises(
        UsageError, match=r"no linear module matches '\*\.down'; there are blocks.\*.up, blocks.\*.fc2, head"
    ):
        read_anatomy(toy, head="head", modules="*.down")
    with pytest.raises(ModelError, match=r"blocks.0.up has a weight of \(5, 6\)"):
        read_anatomy(toy, head="head", modules="*.up")


def test_layers_are_selected_from_the_end() -> None:
    blocks = nn.ModuleList(nn.ModuleDict({"fc2": nn.Linear(8, 4)}) for _ in range(5))
    model = nn.ModuleDict({"blocks": blocks, "head": nn.Linear(4, 7)})
    anatomy = read_anatomy(model, head="head")
    chosen = {
        layers: [down.layer for down in anatomy.selected(layers)] for layers in ("all", "half", "quarter", "last3")
    }
    assert chosen == {"all": [0, 1, 2, 3, 4], "half": [2, 3, 4], "quarter": [3, 4], "last3": [2, 3, 4]}


def test_what_cannot_be_edited_is_refused() -> None:
    with pytest.raises(ModelError, match="merge it into the weights"):
        read_anatomy(get_peft_model(neox(), LoraConfig(r=2, target_modules=["dense_4h_to_h"])))
    with pytest.raises(ModelError, match="mixtures of experts have none"):
        read_anatomy(tiny("mixtral"))
    experts = nn.ModuleList(nn.ModuleDict({"fc2": nn.Linear(8, 4)}) for _ in range(2))
    model = nn.ModuleDict({"blocks": nn.ModuleList([nn.ModuleDict({"experts": experts})]), "head": nn.Linear(4, 7)})
    with pytest.raises(ModelError, match="mixture of experts is not supported"):
        read_anatomy(model, head="head")
