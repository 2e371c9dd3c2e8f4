"""The tools on decoders of transformers, plain and with an adapter of PEFT."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tests.models.sites.small import decoder
from uphold.explain.wrappers.config import WrapperConfig
from uphold.explain.wrappers.probes import default_sites, profile
from uphold.explain.wrappers.relearning import relearn
from uphold.explain.wrappers.revival import revive
from uphold.explain.wrappers.scaling import adapter_off, scale
from uphold.explain.wrappers.skill import Skill, behaviour
from uphold.explain.wrappers.units import Units


def skill(n: int = 24, seed: int = 0) -> Skill:
    ids = torch.randint(3, 50, (n, 6), generator=torch.Generator().manual_seed(seed))
    at = torch.full((n,), 4)
    with torch.no_grad():
        labels = decoder("llama")(input_ids=ids).logits[:, 4].argmax(1)
    return Skill("s", {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, labels, at)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_decoder(family: str) -> None:
    model, data = decoder(family), skill()
    config = WrapperConfig(prune=(0, 3), draws=2, shuffles=1, learning_rate=1e-3, steps=(0, 1), seeds=(0,), batch=4)
    before = {name: one.clone() for name, one in model.state_dict().items()}
    names = {part.name for part in Units(model, "neurons", data).parts}
    assert not any("embed" in name or "wte" in name or "lm_head" in name for name in names)
    assert len(revive(model, data, data, config=config).units) == 3
    sites = default_sites(model)
    assert len(profile(model, data, skill(12, 1), sites, config=config).probes) == len(sites)
    arms = relearn(model, data, data, target=0.9, config=config).arms
    assert len(arms[0].accuracy[0]) == 2
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())


def test_an_adapter_of_peft() -> None:
    data = skill()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        model = get_peft_model(copy.deepcopy(decoder("llama")), lora)
    units = Units(model, "adapter", data)
    assert units.total == 2 * len(units.parts)
    assert behaviour(adapter_off(model), data).accuracy == 1.0
    found = scale(None, model, data, target=0.95, config=WrapperConfig(alphas=(0.0, 1.0)))
    assert found.curve[0].old.accuracy == 1.0
    assert found.curve[1].old.loss == pytest.approx(behaviour(model, data).loss)
    frozen = {name: one.clone() for name, one in model.named_parameters() if not one.requires_grad}
    relearn(model, data, data, target=0.9, config=WrapperConfig(steps=(0, 1), seeds=(0,), batch=4))
    assert all(torch.equal(dict(model.named_parameters())[name], one) for name, one in frozen.items())
