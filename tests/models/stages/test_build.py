from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import nn

from tests.models.stages.nets import Shell, blueprint, drawn, mlp
from tests.models.tiny import tiny
from uphold.core.errors import UsageError
from uphold.models.stages.build import Blueprint, decoder_blueprint, redrawn
from uphold.models.stages.stages import Stages, compose
from uphold.models.stages.training import seeded

IDS = torch.arange(4, 22).view(2, 9)


def test_a_blueprint_makes_the_meta_model_the_target_and_each_hybrid() -> None:
    plan = blueprint((3, 2, 4))

    assert plan.meta().starts == (0, 2, 3)
    assert plan.whole().starts == (0, 4, 6)
    assert plan.stage(1).starts == (0, 2, 4)
    assert len(plan.stage(2).model) == 3 + 6
    assert Blueprint(mlp, (3, 3), (2, 1)).meta().starts == (0, 3)
    for wrong in (((), ()), ((0, 1), ()), ((1, 1), (1,)), ((1, 1), (1, 0))):
        with pytest.raises(UsageError, match=r"expected one number of at least 1 for each stage"):
            Blueprint(mlp, *wrong)


@pytest.mark.parametrize("kind", ["llama", "gemma3", "gpt2"])
def test_a_decoder_of_any_depth(kind: str) -> None:
    changes: dict[str, Any] = {"n_layer": 4} if kind == "gpt2" else {"num_hidden_layers": 4}
    config = tiny(kind, **changes, **({"sliding_window_pattern": 2} if kind == "gemma3" else {})).config
    plan = decoder_blueprint(config, (1, 3))

    assert plan.whole().depths == (1, 3)
    meta = plan.meta()
    assert meta.depths == (1, 1)
    if kind == "gemma3":
        assert meta.model.config.layer_types == ["sliding_attention", "full_attention"]
        assert plan.stage(1).model.config.layer_types == config.layer_types
        with pytest.raises(UsageError, match=r"a stage of \[2, 1\] is deeper than the target's \[1, 3\]"):
            plan.build((2, 1))
    assert config.num_hidden_layers == 4
    with torch.no_grad():
        assert compose([meta, plan.stage(1)]).model(IDS).logits.shape == (2, 9, config.vocab_size)
    with pytest.raises(UsageError, match=r"the configuration has 4 layers and the stages \[1, 1\]"):
        decoder_blueprint(config, (1, 1))


def test_a_redrawn_model_has_the_same_shapes_and_other_weights() -> None:
    for stages in (drawn((2, 1)), Stages.at(tiny("llama"), ["model.layers.0", "model.layers.1"])):
        one, other = (seeded(functools.partial(redrawn, stages), 3) for _ in range(2))
        assert one.digest == other.digest
        assert (one.starts, one.blocks, one.late) == (stages.starts, stages.blocks, stages.late)
        assert one.hash(1) != stages.hash(1)
        shapes = [{name: value.shape for name, value in cut.tensors(1).items()} for cut in (one, stages)]
        assert shapes[0] == shapes[1]


def test_what_cannot_be_redrawn_needs_a_builder() -> None:
    stages = Stages.by_counts(Shell(2), [1, 1], sample=torch.randn(2, 4))
    with pytest.raises(UsageError, match=r"'Shell' does not say how its weights are drawn .*: give a builder"):
        redrawn(stages)
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model.config, model.save_pretrained = object(), lambda: None
    with pytest.raises(UsageError, match=r"object is no decoder that transformers knows: give a builder"):
        redrawn(Stages.by_counts(model, [1, 1]))
