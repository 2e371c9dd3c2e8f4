"""What the paper and its pitfalls ask for beyond the parts by themselves (arXiv:2402.14811)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from tests.explain.circuits.made import layout_of, prompts, tuned
from uphold.explain.circuit import CircuitConfig, circuit
from uphold.explain.circuits import find as module
from uphold.explain.circuits.ablation import Bench, bench
from uphold.explain.circuits.cross import ceiling, cross_effects, cross_patching, cross_screen
from uphold.explain.circuits.discovery import ablation_effects, ablation_screen
from uphold.explain.circuits.knockout import knockout
from uphold.explain.circuits.masking import MaskConfig, Pairs, learn_mask, mask_loss, target_accuracy
from uphold.explain.circuits.means import mean_activations
from uphold.explain.circuits.measures import of_all
from uphold.explain.circuits.patching import activation_patching, moved
from uphold.explain.circuits.paths import Receivers, path_patching
from uphold.explain.circuits.prompts import OTHER, Node, Prompts, nodes_of
from uphold.explain.cmap import SIDES, CmapConfig, cmap
from uphold.models.sites.hooks import Edit
from uphold.models.sites.layout import Layout, read_layout
from uphold.models.sites.run import read, run
from uphold.models.sites.site import Site

PLANTED = (Node(1, 0, "last"), Node(1, 2, "last"))


class Inside(nn.Module):
    """A decoder under another name."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.engine = model
        self.config = model.config

    def forward(self, **named: Any) -> Any:
        return self.engine(**named)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_names_of_modules_do_not_count(family: str) -> None:
    layout, donor = layout_of(family), tuned(family)
    renamed = [read_layout(Inside(one.model)) for one in (layout, donor)]
    assert renamed[0].block_path == f"engine.{layout.block_path}"
    clean, corrupt = prompts(layout, 0), prompts(layout, 1)
    nodes = nodes_of(layout, ["last", "early"])
    groups = {"one": nodes[::3], "two": nodes[1::3]}
    for side in SIDES:
        ours, theirs = (
            cross_patching(one, other, clean, groups, side=side, measure="probability")
            for one, other in ((layout, donor), renamed)
        )
        for name in groups:
            torch.testing.assert_close(ours[name], theirs[name], atol=1e-6, rtol=1e-5)
    receivers = Receivers((Node(3, 1, "last"),), "query")
    for into in (None, receivers):
        paths = [path_patching(one, clean, corrupt, nodes[:8], into).changed for one in (layout, renamed[0])]
        torch.testing.assert_close(*paths, atol=1e-6, rtol=1e-5)
    means = [mean_activations(one, clean) for one in (layout, renamed[0])]
    for site in means[0]:
        torch.testing.assert_close(means[0][site], means[1][site], atol=1e-6, rtol=1e-5)


def longer(some: Prompts, more: int, token: int) -> Prompts:
    """The same with more padding, and something in it."""
    ids = some.inputs["input_ids"].clone()
    ids[some.inputs["attention_mask"] == 0] = token
    filler = torch.full((len(some), more), token)
    inputs = {
        "input_ids": torch.cat([ids, filler], 1),
        "attention_mask": torch.cat([some.inputs["attention_mask"], torch.zeros_like(filler)], 1),
    }
    return replace(some, inputs=inputs)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_neither_the_length_of_the_padding_nor_what_stands_in_it_counts(family: str) -> None:
    layout, donor = layout_of(family), tuned(family)
    given = prompts(layout, 0), prompts(layout, 1)
    nodes = nodes_of(layout, ["last", "early", OTHER])[::4]
    receivers = Receivers((Node(2, 1, "last"), Node(3, 3, "last")), "value")
    found = []
    for clean, corrupt in (given, tuple(longer(one, 3, 17) for one in given)):
        means = mean_activations(layout, given[1])
        if clean.length > given[0].length:
            means = {site: nn.functional.pad(values, (0, 0, 0, 3), value=5.0) for site, values in means.items()}
        tried = bench(layout, clean, means, nodes, batch=3)
        pairs = Pairs(clean, corrupt, corrupt.answers)
        group = [node for node in nodes if node.role != OTHER]
        found.append(
            [
                activation_patching(layout, clean, corrupt, nodes, batch=3).changed,
                path_patching(layout, clean, corrupt, nodes, measure="logit-difference").changed,
                path_patching(layout, clean, corrupt, nodes, receivers, measure="logit-difference").changed,
                cross_effects(layout, donor, clean, nodes, measure="logit-difference").changed,
                ceiling(layout, donor, clean, measure="logit-difference"),
                tried.measure([frozenset(), frozenset(nodes[::2])], "logit-difference"),
                torch.tensor([*ablation_screen(layout, clean, means, nodes).values()]),
                torch.tensor([*cross_screen(layout, donor, clean, nodes).values()]),
                knockout(layout, clean, "last", "early", measure="logit-difference", starts=[1])[1],
                mask_loss(layout, pairs, group, torch.full((len(group),), 0.5), 0.1),
            ]
        )
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)


def test_groups_are_neither_changed_nor_mixed() -> None:
    layout, donor = layout_of("llama"), tuned("llama")
    some = prompts(layout, 0)
    last, early = nodes_of(layout, ["last"])[4:8], nodes_of(layout, ["early"])[:6]
    groups: dict[str, list[Node]] = {"fetch": list(last), "send": list(early), "both": [*last, *early, last[0]]}
    before = copy.deepcopy(groups)
    config = CmapConfig(randoms=1)
    together = [cmap(layout.model, donor.model, some, groups=groups, config=config) for _ in range(2)]
    assert groups == before
    assert together[0] == together[1]
    for name in groups:
        alone = cross_patching(layout, donor, some, {name: groups[name]}, measure="probability")
        among = cross_patching(layout, donor, some, groups, measure="probability")
        assert torch.equal(alone[name], among[name])


def test_what_the_donor_holds_is_not_written_to() -> None:
    layout, donor = layout_of("llama"), tuned("llama")
    some = prompts(layout, 0)
    nodes = nodes_of(layout, ["last", "early"])
    held, _ = read(donor, some.inputs, [node.site for node in nodes])
    copies = {site: values.clone() for site, values in held.items()}
    run(layout, some.inputs, [moved(node, held, some, some) for node in nodes], at=some.at)
    edits = [Edit(node.site, held[node.site]) for node in nodes]
    run(layout, some.inputs, [*edits, *(Edit(edit.site, torch.zeros_like) for edit in edits)], at=some.at)
    assert all(torch.equal(held[site], values) for site, values in copies.items())


def planted() -> Layout:
    """A decoder in which two heads write what the answer depends on, and the others nothing.

    Token 5 is zero, and so are all positions: at the end of a prompt there is nothing but what these heads fetch.
    """
    model: Any = copy.deepcopy(layout_of("gpt2").model)
    with torch.no_grad():
        model.transformer.wte.weight[5] = 0
        model.transformer.wpe.weight.zero_()
        for layer, block in enumerate(model.transformer.h):
            for head in range(4):
                if (layer, head) not in [node[:2] for node in PLANTED]:
                    block.attn.c_proj.weight[8 * head : 8 * head + 8] = 0
            block.mlp.c_proj.weight.zero_()
    return read_layout(model)


def questions(layout: Layout, count: int, seed: int = 0) -> Prompts:
    """Different prompts that end alike, with an answer each that the model gives."""
    ids = torch.full((count, 8), 5)
    drawn = torch.randperm(40 * 40, generator=torch.Generator().manual_seed(seed))[:count]
    ids[:, 2], ids[:, 4] = 6 + drawn // 40, 6 + drawn % 40
    at = torch.full((count,), 7)
    order = run(layout, {"input_ids": ids}, at=at).argsort(-1, descending=True)
    roles = {"last": at, "early": torch.full((count,), 2)}
    return Prompts({"input_ids": ids}, at, order[:, 0], order[:, 1:4], roles)


def roled(layout: Layout) -> Pairs:
    """Pairs that end elsewhere in every row, and elsewhere again in the source."""
    found = []
    for seed, at in enumerate(([7, 3, 6, 7, 4], [3, 7, 7, 5, 6])):
        generator, end = torch.Generator().manual_seed(seed), torch.tensor(at)
        ids = torch.randint(6, 46, (5, 8), generator=generator)
        ids[torch.arange(5), end] = 5
        some = questions(layout, 5)
        found.append(replace(some, inputs={"input_ids": ids}, at=end, roles={**some.roles, "last": end}))
    return Pairs(found[0], found[1], found[0].answers)


def by_hand(layout: Layout, pairs: Pairs, group: Sequence[Node]) -> torch.Tensor:
    """One row at a time."""
    logits = []
    for row in range(len(pairs)):
        base, source = pairs.base.rows(slice(row, row + 1)), pairs.source.rows(slice(row, row + 1))
        held, _ = read(layout, source.inputs, [node.site for node in group])
        edits = []
        for node in group:
            value = held[node.site][0, int(source.roles[node.role][0])]
            edits.append(Edit(node.site, value, base.mask(node.role)))
        logits.append(run(layout, base.inputs, edits, at=base.at)[0])
    return torch.stack(logits)


def test_masks_go_by_the_roles_of_their_own_rows() -> None:
    layout = planted()
    pairs = roled(layout)
    logits = by_hand(layout, pairs, PLANTED)
    answers = logits.argmax(-1)
    assert len(set(answers.tolist())) > 3
    moved_pairs = Pairs(pairs.base, pairs.source, answers)
    assert target_accuracy(layout, moved_pairs, ()) < 0.5
    assert [target_accuracy(layout, moved_pairs, PLANTED, batch=size) for size in (2, 256)] == [1, 1]
    loss = mask_loss(layout, moved_pairs, PLANTED, torch.zeros(2), 0.0)
    torch.testing.assert_close(-loss, logits.gather(1, answers[:, None]).mean(), atol=1e-5, rtol=1e-5)
    # In validation and test too, where the rows are others than in training.
    order = torch.arange(40) % 5
    mask = learn_mask(layout, moved_pairs.rows(order), PLANTED, config=MaskConfig(batch=5, epochs=4, penalty=0))
    assert (mask.whole, mask.count) == (1, 10)
    assert mask.patched == PLANTED
    assert mask.accuracy == mask.validation == 1


def test_a_planted_circuit_is_found_and_random_ones_of_its_size_do_nothing() -> None:
    layout = planted()
    many = questions(layout, 120)
    assert len(set(many.answers.tolist())) > 5
    report = circuit(layout.model, many, config=CircuitConfig(target=0.95, randoms=20, subsets=6))
    assert set(report.nodes) <= set(PLANTED)
    assert report.old.model == 1
    assert report.old.faithfulness >= 0.9
    # What is left without any head is the answer that is given most.
    nothing = bench(layout, many, mean_activations(layout, many), nodes_of(layout, ["last", "early", OTHER]))
    assert report.old.random_mean < 0.4
    assert report.old.random_mean < report.old.circuit / 2.5
    assert abs(report.old.random_mean - nothing.accuracy([])) < 0.15
    assert report.completeness.mean_gap < 0.05
    confirmed = circuit(layout.model, many, config=CircuitConfig(target=0.95, confirm=4, randoms=2, subsets=2))
    assert confirmed.nodes == report.nodes


def test_an_unrelated_version_does_not_keep_the_circuit() -> None:
    layout = planted()
    other: Any = copy.deepcopy(layout.model)
    with torch.no_grad():  # the same answers, from other heads
        for block in other.transformer.h:
            for weight in (block.attn.c_proj.weight, block.attn.c_attn.weight.T):
                for start in range(0, len(weight), 32):
                    weight[start : start + 32] = weight[start : start + 32].roll(8, 0).clone()
            for start in range(0, 96, 32):
                bias = block.attn.c_attn.bias[start : start + 32]
                bias.copy_(bias.roll(8))
    many = questions(layout, 80)
    torch.testing.assert_close(
        run(layout, many.inputs, at=many.at), run(read_layout(other), many.inputs, at=many.at), atol=1e-4, rtol=1e-4
    )
    report = circuit(layout.model, many, new=other, config=CircuitConfig(target=0.95, randoms=2, subsets=2))
    assert report.new is not None
    assert report.new_nodes is not None
    assert report.new.model == 1
    assert report.new.faithfulness < 0.4
    assert report.overlap == 0
    assert {(node.layer, (node.head - 1) % 4, node.role) for node in report.new_nodes} == set(report.nodes)


def test_heads_are_chosen_on_other_prompts_than_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[set[tuple[int, ...]]] = []
    means: list[set[tuple[int, ...]]] = []

    def rows(some: Prompts) -> set[tuple[int, ...]]:
        return {tuple(row) for row in some.inputs["input_ids"].tolist()}

    def benched(layout: Layout, some: Prompts, *args: Any, **named: Any) -> Bench:
        seen.append(rows(some))
        return bench(layout, some, *args, **named)

    def averaged(layout: Layout, some: Prompts, **named: Any) -> dict[Site, torch.Tensor]:
        means.append(rows(some))
        return mean_activations(layout, some, **named)

    monkeypatch.setattr(module, "bench", benched)
    monkeypatch.setattr(module, "mean_activations", averaged)
    layout = planted()
    many, others = questions(layout, 60), questions(layout, 30, seed=9)
    config = CircuitConfig(target=0.9, randoms=2, subsets=2)
    plain = circuit(layout.model, many, new=layout.model, config=config)
    assert len(seen) == 4
    assert not seen[0] & seen[1]
    assert seen[0] | seen[1] == rows(many)
    assert seen[2:] == seen[:2]
    assert means == [seen[0], seen[0]]
    assert plain.new == plain.old
    assert plain.new_nodes == plain.nodes
    referred = circuit(layout.model, many, reference=others, config=config)
    assert means[2:] == [rows(others)]
    # Another reference, another ablation.
    assert not torch.equal(referred.effects.changed, plain.effects.changed)


def test_a_mean_over_prompts_that_share_the_question_keeps_it() -> None:
    # Only what differs within the reference is taken away: one prompt alone loses nothing.
    layout = planted()
    many = questions(layout, 20)
    one = many.rows(slice(0, 1))
    universe = nodes_of(layout, ["last", "early", OTHER])
    same = bench(layout, one, mean_activations(layout, one), universe)
    assert same.accuracy([]) == 1
    clean = of_all("logit-difference", one)(run(layout, one.inputs, at=one.at))
    torch.testing.assert_close(same.measure([frozenset()], "logit-difference")[0], clean, atol=1e-4, rtol=1e-4)
    assert bench(layout, many, mean_activations(layout, many), universe).accuracy([]) < 0.5


def test_a_head_at_two_roles_is_two_nodes() -> None:
    layout = planted()
    many = questions(layout, 60)
    (layer, head, _) = PLANTED[1]
    both = [Node(layer, head, "last"), Node(layer, head, "early")]
    tried = bench(layout, many, mean_activations(layout, many), nodes_of(layout, ["last", "early"]))
    effects = dict(ablation_effects(tried, both).ranked())
    assert effects[both[0]] < -0.3
    assert effects[both[1]] == 0  # nothing reads it there


def test_the_gain_is_carried_by_the_heads_that_an_update_improved() -> None:
    new = planted()
    old: Any = copy.deepcopy(new.model)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():  # what these heads read by is worse; what they write with is shared
        weight = old.transformer.h[1].attn.c_attn.weight
        weight[:, 64:] += 1.2 * torch.randn(32, 32, generator=generator)
    many = questions(new, 80)
    report = cmap(old, new.model, many, config=CmapConfig(randoms=4))
    assert (report.new, report.ceiling) == (1, 1)
    assert report.old < 0.6
    fetchers = report.groups["block 1 at last"]
    assert report.recovered("block 1 at last") == pytest.approx((fetchers.new_in_old - report.old) / (1 - report.old))
    assert report.recovered("block 1 at last") == 1
    assert max(report.recovered(name) for name in report.groups if name != "block 1 at last") == 0
    assert fetchers.old_in_new == report.old
    assert fetchers.random_in_old is not None
    assert report.old <= fetchers.random_in_old < 1
    halves = {str(node): (node,) for node in PLANTED}
    alone = cmap(old, new.model, many, groups={**halves, "both": PLANTED}, config=CmapConfig(randoms=0))
    assert alone.recovered("both") == 1
    assert all(alone.recovered(name) < 1 for name in halves)
