import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from tests.explain.wrappers.counters import asked, trained
from uphold.core.errors import UsageError
from uphold.core.stats import Interval
from uphold.explain.wrappers.config import WrapperConfig
from uphold.explain.wrappers.planted import plant_wrapper
from uphold.explain.wrappers.probes import default_sites, profile
from uphold.explain.wrappers.revival import Pruned, Revival, revive
from uphold.explain.wrappers.skill import Behaviour, Skill, behaviour
from uphold.explain.wrappers.units import Units
from uphold.explain.wrappers.verdict import read_revival
from uphold.models.sites.site import Site


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: one.clone() for name, one in model.state_dict().items()}


def same(model: nn.Module, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one, before[name]) for name, one in model.state_dict().items())


def linear() -> tuple[nn.Sequential, Skill]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 4, generator=generator, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).double()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator, dtype=torch.float64))
    return model, Skill("s", x, (x[:, 0] > 0).long(), loss=_squared)


def _squared(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return (logits[:, 0] - labels).square().mean() + logits[:, 1].square().mean()


def test_minus_the_score_is_the_slope_of_the_loss_when_a_unit_shrinks() -> None:
    for kind in ("weights", "neurons"):
        model, skill = linear()
        units = Units(model, kind, skill, ends=True)
        scores, step = units.scores(skill), 1e-6
        for number in range(units.total):
            part, index = units.place(number)
            losses = []
            for sign in (-1, 1):
                twin = copy.deepcopy(model)
                tensor = dict(twin.named_parameters())[part.name]
                with torch.no_grad():
                    (tensor.view(-1)[index] if part.dim < 0 else tensor.select(part.dim, index)).mul_(1 - sign * step)
                    losses.append(float(_squared(skill.answers(twin), skill.labels)))
            assert (losses[1] - losses[0]) / (2 * step) == pytest.approx(-float(scores[number]), abs=1e-6)


def test_pruning_nothing_leaves_the_model_bit_identical() -> None:
    model, skill = linear()
    before = state(model)
    units = Units(model, "neurons", skill)
    units.zero([])
    assert same(model, before)
    clean = behaviour(model, skill)
    found = revive(model, skill, skill, config=WrapperConfig(prune=(0, 1), draws=2))
    assert same(model, before)
    assert (found.curve[0].old.accuracy, found.curve[0].old.loss) == (clean.accuracy, clean.loss)
    assert found.curve[0].random == (clean.accuracy, clean.accuracy)
    assert found.curve[0].norm == found.curve[0].random_norm == 0


def test_pruning_a_neuron_zeroes_its_row_and_keeps_its_bias_unless_asked() -> None:
    for bias in (False, True):
        model, skill = linear()
        before = state(model)
        Units(model, "neurons", skill).zero([1], bias=bias)
        assert not model[0].weight[1].any()
        assert bool(model[0].bias[1] == 0) is bias
        assert torch.equal(model[0].weight[[0, 2]], before["0.weight"][[0, 2]])
        assert torch.equal(model[1].weight, before["1.weight"])


@pytest.mark.parametrize(("kind", "bias"), [("neurons", False), ("neurons", True), ("weights", False)])
def test_pruned_units_come_back_bit_for_bit_also_after_an_exception(kind: Any, bias: bool) -> None:
    model, skill = linear()
    before = state(model)
    units = Units(model, kind, skill, ends=True)

    def broken() -> None:
        with units.without([0, 2, units.total - 1], bias=bias):
            assert not same(model, before)
            assert bool(model[0].bias[0] == 0) is bias
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken()
    assert same(model, before)


def test_scores_are_those_of_evaluation_mode() -> None:
    model, skill = linear()
    noisy = nn.Sequential(model[0], nn.Dropout(0.5), model[1]).train()
    plain, dropped = (Units(one, "neurons", skill).scores(skill) for one in (model, noisy))
    assert torch.equal(plain, dropped)
    assert noisy[1].training


def test_embeddings_and_the_head_are_left_out_unless_asked_for() -> None:
    skill = asked("a", 20)
    names = {part.name for part in Units(trained(), "neurons", skill).parts}
    assert "blocks.0.up.weight" in names
    assert not names & {"embed.weight", "position.weight", "head.weight"}
    every = {part.name for part in Units(trained(), "neurons", skill, ends=True).parts}
    assert every - names == {"embed.weight", "position.weight", "head.weight"}


def test_the_largest_signed_score_goes_first() -> None:
    model, skill = linear()
    # Turned round, so that the size of the scores alone would begin with another unit.
    skill = dataclasses.replace(skill, loss=lambda logits, labels: -_squared(logits, labels))
    scores = Units(model, "neurons", skill, ends=True).scores(skill)
    assert scores.abs().argmax() != scores.argmax()
    found = revive(model, skill, skill, config=WrapperConfig(prune=(0, 2), draws=1, include_ends=True))
    assert [one.score for one in found.units] == pytest.approx(scores.sort(descending=True).values[:2].tolist())


def test_a_planted_wrapper_is_found_first_and_its_removal_restores_every_answer() -> None:
    net = trained()
    wrapped = plant_wrapper(net, asked("a", seed=5), asked("b", seed=6))
    before = state(wrapped)
    old, new = asked("a"), asked("b")
    clean, covered = behaviour(net, old), behaviour(wrapped, old)
    assert clean.accuracy > 0.98
    assert covered.accuracy < 0.4
    assert behaviour(wrapped, new).accuracy == behaviour(net, new).accuracy
    for rescore in (False, True):
        config = WrapperConfig(prune=(0, 1), draws=3, rescore=rescore)
        found = revive(wrapped, asked("a", seed=7), old, others=[new], config=config)
        assert (found.units[0].parameter, found.units[0].index) == ("blocks.1.up.weight", 48)
        assert found.curve[1].old.predicted == clean.predicted
        assert found.curve[1].old.accuracy == clean.accuracy
        assert max(found.curve[1].random) < 0.6
        assert found.best.k == 1
    assert same(wrapped, before)


def test_probes_before_a_planted_unit_are_unchanged() -> None:
    net = trained()
    wrapped = plant_wrapper(net, asked("a", seed=5), asked("b", seed=6))
    sites = [*default_sites(net)[:2], Site("module", path="blocks.1.out")]
    config = WrapperConfig(shuffles=1)
    one, other = (profile(model, asked("a", seed=7), asked("a"), sites, config=config) for model in (net, wrapped))
    assert one.probes == other.probes


def test_an_exception_leaves_the_model_as_it_was() -> None:
    wrapped = plant_wrapper(trained(), asked("a", seed=5), asked("b", seed=6))
    before, flags = state(wrapped), [one.requires_grad_(False) for one in wrapped.parameters()]

    def broken(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        revive(wrapped, asked("a", seed=7), asked("a"), config=WrapperConfig(prune=(0, 1), draws=1), progress=broken)
    assert same(wrapped, before)
    assert not any(one.requires_grad or one.grad is not None for one in flags)


def test_frozen_weights_have_scores_and_stay_frozen() -> None:
    model, skill = linear()
    free = Units(model, "neurons", skill).scores(skill)
    model.requires_grad_(False)
    assert torch.equal(Units(model, "neurons", skill).scores(skill), free)
    assert not any(one.requires_grad for one in model.parameters())


def test_random_units_are_others_of_about_the_same_norm() -> None:
    wrapped = plant_wrapper(trained(), asked("a", seed=5), asked("b", seed=6))
    config = WrapperConfig(prune=(0, 5), draws=2, units="weights")
    found = revive(wrapped, asked("a", seed=7), asked("a"), config=config)
    assert found.curve[1].random_norm == pytest.approx(found.curve[1].norm, rel=0.25)
    assert found.candidates > 5000


def test_too_many_units_and_none_at_all_are_refused() -> None:
    model, skill = linear()
    with pytest.raises(UsageError, match="at most 1"):
        revive(model, skill, skill, config=WrapperConfig(prune=(0, 2)))
    with pytest.raises(UsageError, match="lora_B"):
        Units(model, "adapter", skill)


def measured(accuracy: float) -> Behaviour:
    return Behaviour("m", "s", 100, accuracy, Interval(0, 1), accuracy, 0.0, ((0, 100),))


def curve(*points: tuple[int, float, float, float]) -> Revival:
    """Of (K, accuracy where measured, where chosen, with random units pruned)."""
    steps = (Pruned(k, measured(own), (), (random,), chosen, 0.0, 0.0) for k, own, chosen, random in points)
    return Revival("neurons", False, False, (), 100, tuple(steps))


def test_k_is_chosen_where_scores_were_taken_and_not_where_it_is_reported() -> None:
    assert curve((0, 0.1, 0.1, 0.1), (1, 0.9, 0.5, 0.1), (2, 0.4, 0.6, 0.1)).best.k == 2
    assert curve((0, 0.1, 0.1, 0.1), (1, 0.9, 0.6, 0.1), (2, 0.9, 0.6, 0.1)).best.k == 1


@pytest.mark.parametrize(
    ("own", "random", "says"),
    [(0.6, 0.1, "kept"), (0.4, 0.1, "cannot tell"), (0.6, 0.6, "cannot tell"), (0.1, 0.1, "cannot tell")],
)
def test_revival_tells_where_half_comes_back_and_random_units_do_not_do_it(
    own: float, random: float, says: str
) -> None:
    found = curve((0, 0.1, 0.1, 0.1), (1, own, own, random))
    assert read_revival(found, lost=0.8).says == says
    assert read_revival(curve((0, 0.9, 0.9, 0.9)), lost=0.0).says == "cannot tell"
