from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.models.toy_lm import Toy
from uphold.models.neurons.attribution import Neuron, candidates
from uphold.models.neurons.basis import SemanticBasis, delta_direction, unit_range
from uphold.models.neurons.config import LADDER, NeuronConfig
from uphold.models.neurons.context import Context
from uphold.models.neurons.edits import Ledger
from uphold.models.neurons.neurons import Anatomy, read_anatomy
from uphold.models.neurons.search import Outcome, Problem, gap, repair_token

IDS = [3, 5]


def scene(seed: int = 0, rank: int = 1, neurons: int = 5) -> tuple[Anatomy, Problem, dict[str, torch.Tensor]]:
    """The toy with the token of some rank as the right one."""
    anatomy = read_anatomy(Toy(seed=seed, neurons=neurons), head="head")
    context = Context(anatomy, IDS, anatomy.downs)
    order = context.logits().argsort(descending=True).tolist()
    problem = Problem(context, order[rank], order[0], 0, 0)
    direction = unit_range(delta_direction(SemanticBasis(anatomy.head), problem.target, problem.wrong))
    assert direction is not None
    return anatomy, problem, {anatomy.downs[0].name: direction}


def pool_of(problem: Problem) -> list[Neuron]:
    return candidates(problem.context, problem.target, 10, "attribution", torch.Generator())


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("strength", [0.1, 0.3, 1.0])
def test_the_linear_toy_flips_exactly_when_the_algebra_says_so(seed: int, strength: float) -> None:
    anatomy, problem, directions = scene(seed)
    down, before = anatomy.downs[0], problem.context.logits()
    activation = anatomy.model.activations(torch.tensor([IDS]))[0, -1].detach()
    [index] = [int(activation.argmax())]
    alpha, share = float(activation[index]), strength / (1 + strength)
    w, p = down.neuron(index).clone(), directions[down.name].float()
    shift = alpha * share * (anatomy.head @ (p - w))
    one = Neuron(down, index, 1.0)
    ledger = Ledger()
    config = NeuronConfig(strength=strength, max_neurons=1, max_edits=1)
    outcome = repair_token(problem, [one], directions, config, ledger)
    flips = int((before + shift).argmax()) == problem.target
    assert outcome.repaired == flips
    if flips:
        assert torch.allclose(problem.context.logits(), before + shift, atol=1e-4)
        old_gap = float(before[problem.wrong] - before[problem.target])
        assert float(shift[problem.target] - shift[problem.wrong]) > old_gap
    else:
        assert torch.equal(down.neuron(index), w)


@pytest.mark.parametrize("seed", range(6))
def test_the_best_candidate_is_taken_and_does_what_was_simulated(seed: int) -> None:
    anatomy, problem, directions = scene(seed)
    pool, ledger = pool_of(problem), Ledger()
    config = NeuronConfig(strength=0.3, max_neurons=1, max_edits=1)
    down, found = anatomy.downs[0], {}
    for one in pool:
        kept = down.neuron(one.index).clone()
        down.neuron(one.index).copy_((kept + 0.3 * directions[down.name].float()) / 1.3)
        found[one.index] = float(gap(problem.context.logits(), problem.target))
        down.neuron(one.index).copy_(kept)
    outcome = repair_token(problem, pool, directions, config, ledger)
    if outcome.repaired:
        assert ledger.edits[0].index == min(found, key=found.__getitem__)
        assert outcome.gap_after == pytest.approx(min(found.values()), abs=1e-5)
        assert float(gap(problem.context.logits(), problem.target)) == outcome.gap_after
    else:
        assert min(found.values()) > 0


@pytest.mark.parametrize("rank", [1, 4, 10])
@pytest.mark.parametrize("mode", ["mix", "add"])
def test_the_ladder_stops_at_the_first_strength_that_does(mode: str, rank: int) -> None:
    config = NeuronConfig(mode=mode)  # type: ignore[arg-type]
    for seed in range(4):
        anatomy, problem, directions = scene(seed, rank)
        before = anatomy.downs[0].module.weight.detach().clone()
        outcome = repair_token(problem, pool_of(problem), directions, config, Ledger())
        alone: list[Outcome] = []
        for strength, limit in config.rungs:
            _, same, again = scene(seed, rank)
            only = replace(config, strength=strength, max_edits=limit, max_neurons=1)
            alone.append(repair_token(same, pool_of(same), again, only, Ledger()))
            if alone[-1].repaired:
                break
        assert outcome == alone[-1]
        changed = (anatomy.downs[0].module.weight != before).any(dim=0).sum()
        assert (int(changed) > 0) == outcome.repaired == (outcome.edits > 0)
        assert outcome.repaired == (int(problem.context.logits().argmax()) == problem.target)
        if outcome.repaired:
            assert outcome.gap_after == 0 < outcome.gap_before
        else:
            assert outcome.reason
            assert torch.equal(anatomy.downs[0].module.weight, before)


def test_a_line_search_takes_a_weaker_last_edit_with_a_lead() -> None:
    weaker = 0
    for seed in range(8):
        _, problem, directions = scene(seed, 1)
        ledger = Ledger()
        outcome = repair_token(problem, pool_of(problem), directions, NeuronConfig(mode="add", strength=10), ledger)
        if not outcome.repaired:
            continue
        logits = problem.context.logits()
        best = torch.cat([logits[: problem.target], logits[problem.target + 1 :]]).max()
        assert float(logits[problem.target] - best) > 0
        assert ledger.edits[-1].strength == outcome.strength <= 10
        weaker += outcome.strength < 10
    assert weaker >= 5


def test_probabilities_close_to_1_do_not_hide_progress() -> None:
    anatomy, problem, directions = scene(0, 1)
    with torch.no_grad():
        anatomy.head.mul_(20)
    problem = replace(problem, context=Context(anatomy, IDS, anatomy.downs))
    assert float(problem.context.logits().softmax(-1).max()) == 1
    assert repair_token(problem, pool_of(problem), directions, NeuronConfig(), Ledger()).repaired


def test_failing_leaves_the_weights_bit_for_bit() -> None:
    anatomy, problem, directions = scene(1, 10)
    before = anatomy.downs[0].module.weight.detach().clone()
    ledger = Ledger()
    outcome = repair_token(problem, pool_of(problem), directions, NeuronConfig(strength=0.01, max_edits=3), ledger)
    assert (outcome.repaired, outcome.edits, outcome.gap_after) == (False, 0, outcome.gap_before)
    assert "after 3 edits" in outcome.reason
    assert not ledger.edits
    assert torch.equal(anatomy.downs[0].module.weight, before)


def test_no_strength_means_no_edit() -> None:
    anatomy, problem, directions = scene()
    before = anatomy.downs[0].module.weight.detach().clone()
    outcome = repair_token(problem, pool_of(problem), directions, NeuronConfig(strength=0), Ledger())
    assert not outcome.repaired
    assert "changes no neuron in float32" in outcome.reason
    assert torch.equal(anatomy.downs[0].module.weight, before)


def test_a_change_that_bfloat16_cannot_hold_is_no_edit() -> None:
    toy = Toy().bfloat16()
    anatomy = read_anatomy(toy, head="head")
    context = Context(anatomy, IDS, anatomy.downs)
    order = context.logits().argsort(descending=True).tolist()
    problem = Problem(context, order[1], order[0], 0, 0)
    direction = unit_range(delta_direction(SemanticBasis(anatomy.head), order[1], order[0]))
    assert direction is not None
    directions = {anatomy.downs[0].name: direction}
    outcome = repair_token(problem, pool_of(problem), directions, NeuronConfig(strength=1e-5), Ledger())
    assert not outcome.repaired
    assert "1e-05 changes no neuron in bfloat16" in outcome.reason
    ledger = Ledger()
    stronger = repair_token(problem, pool_of(problem), directions, NeuronConfig(), ledger)
    assert stronger.repaired == (int(context.logits().argmax()) == order[1])
    assert all(not torch.equal(edit.before, edit.after) for edit in ledger.edits)
    assert anatomy.downs[0].module.weight.dtype == torch.bfloat16


def test_a_neuron_without_activation_is_never_chosen() -> None:
    for seed in range(5):
        anatomy, problem, directions = scene(seed, 2)
        activation = anatomy.model.activations(torch.tensor([IDS]))[0].detach().abs().sum(0)
        idle = [index for index in range(5) if float(activation[index]) == 0]
        pool = [Neuron(anatomy.downs[0], index, 1.0) for index in range(5)]
        ledger = Ledger()
        repair_token(problem, pool, directions, NeuronConfig(), ledger)
        assert not {edit.index for edit in ledger.edits} & set(idle)
        if idle:
            alone = [Neuron(anatomy.downs[0], index, 1.0) for index in idle]
            outcome = repair_token(problem, alone, directions, NeuronConfig(), ledger)
            assert outcome.repaired or "no candidate brings the right token nearer after 0 edits" in outcome.reason


def test_without_candidates_or_directions_nothing_is_done() -> None:
    _, problem, directions = scene()
    assert "no neuron is active" in repair_token(problem, [], directions, NeuronConfig(), Ledger()).reason
    assert not repair_token(problem, pool_of(problem), {}, NeuronConfig(), Ledger()).repaired


def test_the_ladder_has_the_sheets_strengths() -> None:
    assert LADDER["mix"] == (0.01, 0.03, 0.1, 0.3, 1.0)
    assert NeuronConfig().rungs == ((0.01, 3), (0.03, 3), (0.1, 3), (0.3, 3), (1.0, 10))
    assert NeuronConfig(strength=0.3).rungs == ((0.3, 10),)
