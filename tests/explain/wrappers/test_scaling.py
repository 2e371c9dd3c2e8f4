import copy

import pytest
import torch
from torch import nn

from tests.explain.wrappers.counters import asked, net, trained
from uphold.core.errors import ModelError
from uphold.explain.wrappers.config import WrapperConfig
from uphold.explain.wrappers.planted import reinitialised
from uphold.explain.wrappers.scaling import adapter_off, scale
from uphold.explain.wrappers.skill import Skill, behaviour
from uphold.explain.wrappers.units import Units


class Low(nn.Module):
    """A linear map with a low-rank update, named as PEFT names it."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.lora_A, self.lora_B = (
            nn.Linear(4, 3, bias=False),
            nn.Linear(4, 2, bias=False),
            nn.Linear(2, 3, bias=False),
        )
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in self.parameters():
                weight.copy_(torch.randn(weight.shape, generator=generator))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.lora_B(self.lora_A(x))  # type: ignore[no-any-return]


def merged(model: Low, alpha: float = 1.0) -> nn.Module:
    plain = nn.Linear(4, 3, bias=False)
    with torch.no_grad():
        plain.weight.copy_(model.base.weight + alpha * model.lora_B.weight @ model.lora_A.weight)
    return plain


def data() -> Skill:
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(1))
    return Skill("s", x, x[:, :3].argmax(1))


def test_alpha_0_and_1_are_the_two_models() -> None:
    old, new = trained(), reinitialised(trained(), "blocks.1", 3)
    skill = asked("a")
    config = WrapperConfig(alphas=(0.0, 0.5, 1.0))
    found = scale(old, new, skill, others=[asked("b")], target=0.95, config=config)
    for one, model in zip((found.curve[0], found.curve[2]), (old, new), strict=True):
        plain = behaviour(model, skill)
        assert (one.old.accuracy, one.old.loss, one.old.predicted) == (plain.accuracy, plain.loss, plain.predicted)
    assert found.returns is not None
    assert found.returns < 1


def test_an_unchanged_model_has_the_skill_at_every_alpha() -> None:
    config = WrapperConfig(alphas=(0.0, 0.3, 1.0, 1.5))
    found = scale(trained(), copy.deepcopy(trained()), asked("a"), target=0.95, config=config)
    assert found.returns == 1.0
    assert len({one.old.accuracy for one in found.curve}) == 1


def test_scaling_an_adapter_is_scaling_the_merged_difference() -> None:
    model, skill = Low(), data()
    by_adapter = scale(None, model, skill, target=0.9)
    by_weights = scale(merged(model, 0.0), merged(model), skill, target=0.9)
    assert by_adapter.adapter
    assert not by_weights.adapter
    for one, other in zip(by_adapter.curve, by_weights.curve, strict=True):
        assert one.old.loss == pytest.approx(other.old.loss, rel=1e-4)


def test_an_adapter_goes_off_in_a_copy() -> None:
    model, skill = Low(), data()
    before = model.lora_B.weight.clone()
    assert behaviour(adapter_off(model), skill).loss == pytest.approx(behaviour(model.base, skill).loss)
    assert torch.equal(model.lora_B.weight, before)


def test_the_rank_one_parts_of_an_adapter_are_units() -> None:
    model, skill = Low(), data()
    units = Units(model, "adapter", skill)
    assert units.total == 2
    # B_r dL/dB_r = A_r dL/dA_r: both are the slope in the size of the part.
    loss = skill.loss(skill.answers(model), skill.labels)
    gradient = torch.autograd.grad(loss, model.lora_A.weight)[0]
    by_rows = (model.lora_A.weight * gradient).sum(1)
    assert units.scores(skill).tolist() == pytest.approx(by_rows.tolist(), abs=1e-5)
    units.zero([0, 1])
    assert behaviour(model, skill).loss == pytest.approx(behaviour(model.base, skill).loss)


def test_models_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ModelError, match="same tensors"):
        scale(nn.Linear(3, 3), Low(), data(), target=0.9)
    with pytest.raises(ModelError, match="lora_B"):
        scale(None, net(), asked("a", 10), target=0.9)
