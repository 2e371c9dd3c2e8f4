from itertools import chain, combinations

import pytest
import torch

from tests.explain.circuits.made import layout_of, prompts
from uphold.core.errors import DataError, EmptyError, UsageError
from uphold.explain.circuits.ablation import (
    Bench,
    ablation,
    bench,
    completeness,
    faithfulness,
    minimality,
    random_accuracies,
    random_circuit,
)
from uphold.explain.circuits.discovery import Round, ablation_effects, ablation_screen, grow, path_groups, strongest
from uphold.explain.circuits.effects import Effects, jaccard, stability
from uphold.explain.circuits.means import mean_activations
from uphold.explain.circuits.measures import of_all
from uphold.explain.circuits.prompts import OTHER, Node, nodes_of
from uphold.models.sites.hooks import Edit
from uphold.models.sites.run import read, run

A, B, C, D = (Node(0, head, "last") for head in range(4))


def test_means_are_those_of_all_prompts_without_padding() -> None:
    layout = layout_of("llama")
    some = prompts(layout, 0)
    means = mean_activations(layout, some, batch=2)
    held, _ = read(layout, some.inputs, layout.sites("head"))
    for site, values in held.items():
        torch.testing.assert_close(means[site][:6], values[:, :6].mean(0), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(means[site][6:], values[[0, 2, 3, 4], 6:].mean(0), atol=1e-6, rtol=1e-5)
    with pytest.raises(EmptyError, match="no reference prompt is longer than 6 tokens of 10"):
        mean_activations(layout, some.rows(slice(1, 2)))


@pytest.mark.parametrize("roles", [("last", "early"), ("last", "early", OTHER)])
def test_the_circuit_of_all_nodes_is_the_model(roles: tuple[str, ...]) -> None:
    layout = layout_of("llama")
    some = prompts(layout, 0)
    tried = bench(layout, some, mean_activations(layout, some), nodes_of(layout, roles), batch=2)
    clean = of_all("logit-difference", some)(run(layout, some.inputs, at=some.at))
    torch.testing.assert_close(tried.measure([tried.whole], "logit-difference")[0], clean)
    assert faithfulness(tried, tried.whole) == 1


def test_nodes_outside_the_circuit_hold_their_means() -> None:
    layout = layout_of("gpt2")
    some = prompts(layout, 0)
    means = mean_activations(layout, prompts(layout, 1))
    universe = nodes_of(layout, ["last", "early", OTHER])
    tried = bench(layout, some, means, universe, batch=3)
    circuit = frozenset(universe[::3])
    edits = [Edit(node.site, means[node.site], some.mask(node.role)) for node in universe if node not in circuit]
    wanted = of_all("logit-difference", some)(run(layout, some.inputs, edits, at=some.at))
    found = tried.measure([circuit, frozenset()], "logit-difference")
    torch.testing.assert_close(found[0], wanted, atol=1e-5, rtol=1e-4)
    everything = [Edit(site, means[site]) for site in layout.sites("head")]
    wanted = of_all("logit-difference", some)(run(layout, some.inputs, everything, at=some.at))
    torch.testing.assert_close(found[1], wanted, atol=1e-5, rtol=1e-4)


def test_a_head_is_kept_where_any_role_of_the_position_keeps_it() -> None:
    layout = layout_of("gpt2")
    some = prompts(layout, 0)
    some.roles["early"][:] = some.roles["last"]
    means = mean_activations(layout, some)
    universe = [Node(0, 0, "last"), Node(0, 0, "early")]
    (edit,) = ablation(universe[:1], universe, means, some)
    assert edit.where is not None
    assert not edit.where.any()


def made_up(rule: dict[frozenset[Node], float]) -> Bench:
    """A bench on which accuracies were measured already, of ten prompts."""
    known = {circuit: torch.arange(10) < round(10 * accuracy) for circuit, accuracy in rule.items()}
    return Bench(None, (), {}, (A, B, C, D), known)  # type: ignore[arg-type]


def subsets() -> list[frozenset[Node]]:
    every = (A, B, C, D)
    return [frozenset(some) for some in chain(*(combinations(every, count) for count in range(5)))]


def test_a_node_with_a_stand_in_counts_once_the_stand_in_is_gone() -> None:
    # A or B does the one half, C the other; D does nothing.
    tried = made_up({one: 0.2 + 0.4 * bool(one & {A, B}) + 0.4 * (C in one) for one in subsets()})
    found = minimality(tried, [A, B, C, D])
    assert found[A] == pytest.approx(1.0 / 0.6 - 1)
    assert found[B] == pytest.approx(found[A])
    assert found[C] == pytest.approx(0.6 / 0.2 - 1)  # A and B both make it look spare
    assert found[D] == 0


def test_a_circuit_without_its_stand_in_is_incomplete() -> None:
    tried = made_up({one: 0.2 + 0.8 * bool(one & {A, B}) for one in subsets()})
    lone = completeness(tried, [A], draws=4)
    assert lone.groups == {"last": (0.2, 1.0)}
    assert completeness(tried, [A, B], draws=4).mean_gap == 0
    assert all(pair in [(0.2, 1.0), (1.0, 1.0)] for pair in lone.random)
    with pytest.raises(UsageError, match="at least one random subset"):
        completeness(tried, [A], draws=0)


def test_random_circuits_have_as_many_nodes_per_role() -> None:
    universe = nodes_of(layout_of("gpt2"), ["last", "early"])
    circuit = [*universe[:6:2], universe[1]]
    drawn = [random_circuit(circuit, universe, torch.Generator().manual_seed(seed)) for seed in range(5)]
    assert len(set(drawn)) > 1
    for one in drawn:
        assert sorted(node.role for node in one) == ["early", "last", "last", "last"]
    tried = made_up(dict.fromkeys(subsets(), 0.5))
    assert random_accuracies(tried, [A, B], count=3) == [0.5] * 3


def test_a_model_that_solves_nothing_has_no_faithfulness() -> None:
    with pytest.raises(DataError, match="solves none of the prompts"):
        faithfulness(made_up(dict.fromkeys(subsets(), 0.0)), [A])


def test_circuits_grow_until_they_are_faithful() -> None:
    worth = {A: 0.5, B: 0.3, C: 0.2, D: 0.0}
    tried = made_up({one: sum(worth[node] for node in one) for one in subsets()})
    effects = ablation_effects(tried)
    torch.testing.assert_close(effects.change, torch.tensor([-0.5, -0.3, -0.2, 0.0]), atol=1e-6, rtol=0)
    assert grow(tried, effects, 0.8) == {A, B}
    assert grow(tried, effects, 1.0) == {A, B, C}
    with pytest.raises(EmptyError, match=r"reach an accuracy of 1.000, 1.500 was asked for"):
        grow(tried, effects, 1.5)
    with pytest.raises(EmptyError, match="no node lowers the measure"):
        grow(tried, ablation_effects(tried, [D]), 0.5)


def test_the_screen_finds_what_ablation_confirms() -> None:
    layout = layout_of("gpt2")
    some = prompts(layout, 0)
    own = mean_activations(layout, some)
    held, _ = read(layout, some.inputs, layout.sites("head"))
    one = some.rows(slice(0, 1))
    near = {site: values[0] + 1e-2 * (own[site] - values[0]) for site, values in held.items()}
    universe = nodes_of(layout, ["last", "early"])
    exact = ablation_effects(bench(layout, one, near, universe), measure="logit-difference")
    estimated = ablation_screen(layout, one, near, universe)
    pair = torch.stack([exact.change, torch.tensor([estimated[node] for node in universe])])
    assert torch.corrcoef(pair)[0, 1] > 0.99
    first = exact.ranked(size=True)[0][0]
    assert first in strongest(estimated, 3)


def test_rounds_of_path_patching_go_backwards_and_count_a_head_once() -> None:
    layout = layout_of("llama")
    clean, corrupt = prompts(layout, 0), prompts(layout, 1)
    rounds = [Round("fetch", "last", top=4, keep=16), Round("send", "last", "fetch", "query", top=3)]
    found = path_groups(layout, clean, corrupt, rounds)
    assert list(found) == ["fetch", "send"]
    assert not set(found["fetch"]) & set(found["send"])
    assert 0 < len(found["send"]) <= 3
    with pytest.raises(UsageError, match="which no earlier round finds"):
        path_groups(layout, clean, corrupt, rounds[1:])


def test_effects_are_ranked_and_resampled() -> None:
    clean = torch.tensor([0.5, 0.25, 0.5, 0.5])
    changed = clean + torch.tensor([[-0.4] * 4, [0.1] * 4, [-0.2] * 4])
    effects = Effects((A, B, C), "probability", clean, changed.clamp(min=0))
    assert [node for node, _ in effects.ranked()] == [A, C, B]
    assert effects.relative[1] == pytest.approx((0.2 * 3 + 0.4) / 4)
    assert stability(effects, 2, draws=5) == 1
    assert (jaccard([A, B], [B, C]), jaccard([], [])) == (1 / 3, 1)
    with pytest.raises(UsageError, match="a share of a measure that is 0"):
        Effects((A,), "correct", torch.zeros(2), torch.ones(1, 2)).relative  # noqa: B018
    with pytest.raises(EmptyError, match="1 are too few"):
        stability(effects, 2, draws=1)
