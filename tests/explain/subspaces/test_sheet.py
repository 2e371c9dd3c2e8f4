"""What the paper, the reply and their pitfalls ask for beyond the parts by themselves (arXiv:2311.17030)."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

from tests.explain.subspaces.nets import FEW, HIDDEN, Linear, pairs_for
from tests.models.sites.small import decoder
from uphold.core.errors import UsageError
from uphold.explain.subspace import subspace
from uphold.explain.subspaces import diagnose as module
from uphold.explain.subspaces.conditions import CLEAN, FULL, NULL, PATCH, along, conditions, measure
from uphold.explain.subspaces.diagnose import find_map
from uphold.explain.subspaces.directions import Held, das, patched_logits, random_subspace
from uphold.explain.subspaces.gap import illusion_gap
from uphold.explain.subspaces.pairs import Pairs, activations
from uphold.explain.subspaces.result import Fit
from uphold.explain.subspaces.spaces import next_map, row_space, split
from uphold.models.sites.hooks import Edit
from uphold.models.sites.layout import Layout, read_layout
from uphold.models.sites.run import read, run
from uphold.models.sites.site import Site

SITES = [Site("hidden", 1), Site("residual", 0), Site("residual", -1), Site("head", 2, 1), Site("mlp", 3)]
COUNT, LENGTH = 6, 9


@cache
def strong(family: str) -> Layout:
    """Weights four times as large as usual, so that every patch shows."""
    model: Any = copy.deepcopy(decoder(family))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight *= 4
    return read_layout(model)


def ragged(layout: Layout) -> Pairs:
    """Rows of different lengths, padded on the right; what is patched, taken and counted differs by row."""
    generator = torch.Generator().manual_seed(3)
    base, source = torch.randint(3, 50, (2, COUNT, LENGTH), generator=generator)
    ends = torch.tensor([[9, 5, 7, 9, 6, 8], [7, 9, 4, 6, 9, 5]])
    masks = [(torch.arange(LENGTH) < end[:, None]).long() for end in ends]
    inputs = [
        {"input_ids": ids * mask, "attention_mask": mask} for ids, mask in zip((base, source), masks, strict=True)
    ]
    at = torch.tensor([8, 1, 6, 8, 5, 5])  # of one row before all that is patched
    order = run(layout, inputs[0], at=at).argsort(-1, descending=True)
    return Pairs(
        inputs[0],
        inputs[1],
        order[:, 0],
        order[:, 1],
        at=at,
        positions=torch.tensor([3, 4, 3, 8, 3, 5]),
        source_positions=torch.tensor([6, 1, 3, 0, 8, 4]),
    )


def by_hand(layout: Layout, pairs: Pairs, site: Site, basis: torch.Tensor) -> torch.Tensor:
    """Row by row, without padding: the lead of the base's answer after a patch along the basis."""
    leads = []
    assert not isinstance(pairs.base, torch.Tensor)
    assert not isinstance(pairs.source, torch.Tensor)
    assert pairs.at is not None
    assert pairs.positions is not None
    assert pairs.source_positions is not None
    for row in range(len(pairs)):
        ids = [one["input_ids"][row, one["attention_mask"][row] == 1][None] for one in (pairs.base, pairs.source)]
        values = [read(layout, {"input_ids": one}, [site])[0][site][0] for one in ids]
        place = int(pairs.positions[row])
        delta = values[1][int(pairs.source_positions[row])] - values[0][place]
        patched = values[0].clone()
        patched[place] += (delta.double() @ basis @ basis.T).float()
        logits = run(layout, {"input_ids": ids[0]}, [Edit(site, patched)])[0, pairs.at[row]].double()
        leads.append(logits[pairs.answers[row]] - logits[pairs.expected[row]])
    return torch.stack(leads)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("site", SITES, ids=str)
def test_patches_are_of_one_position_of_each_row_whatever_the_padding(family: str, site: Site) -> None:
    layout = strong(family)
    pairs = ragged(layout)
    held = Held(activations(layout, pairs, site, rows=4), activations(layout, pairs, site, source=True, rows=4))
    width = held.base.shape[1]
    basis = random_subspace(width, width // 2, 0)
    wanted = {CLEAN: along(basis * 0, basis), FULL: lambda base, source: source, PATCH: along(basis, basis)}
    found = measure(layout, pairs, site, held, wanted, rows=4)
    whole = torch.eye(width, dtype=torch.float64)
    for name, space in ((CLEAN, whole * 0), (FULL, whole), (PATCH, basis)):
        torch.testing.assert_close(found[name].differences, by_hand(layout, pairs, site, space), atol=1e-4, rtol=1e-4)
    rows = torch.arange(COUNT)
    logits = patched_logits(layout, pairs, site, held.source).double()
    lead = logits[rows, pairs.answers] - logits[rows, pairs.expected]
    torch.testing.assert_close(lead, found[FULL].differences, atol=1e-4, rtol=1e-4)
    assert (found[FULL].differences - found[CLEAN].differences).abs().max() > 1e-2


def test_the_gap_is_taken_at_the_position_of_each_row() -> None:
    layout = strong("gpt2")
    pairs, site = ragged(layout), Site("hidden", 2)
    held = Held(activations(layout, pairs, site), activations(layout, pairs, site, source=True))
    (gap,) = illusion_gap(layout, pairs, [site], rows=4)
    step = 1e-3
    whole = torch.eye(held.base.shape[1])
    near = {"near": along(step * whole, whole), CLEAN: along(0 * whole, whole)}
    found = measure(layout, pairs, site, held, near)
    fall = float((found[CLEAN].differences - found["near"].differences).mean()) / step
    assert gap.full == pytest.approx(fall, rel=0.05, abs=2e-3)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_null_patch_changes_no_logit_at_all(family: str) -> None:
    layout = strong(family)
    pairs, site = ragged(layout), Site("hidden", 1)
    held = Held(activations(layout, pairs, site), activations(layout, pairs, site, source=True))
    weight, _ = next_map(layout, site)
    parts = split(random_subspace(len(weight), 3, 1), row_space(weight))
    named = conditions(parts, 1, 0)
    clean = run(layout, pairs.base, at=pairs.counting)
    base, source = held.base.double(), held.source.double()
    for name, least in ((NULL, 0.0), (PATCH, 1e-2)):
        moved = patched_logits(layout, pairs, site, named[name](base, base + 20 * (source - base)).float())
        assert least <= float((moved - clean).abs().max()) < (2.1e-5 if name == NULL else 1e3)


def test_controls_of_das_are_what_they_say() -> None:
    net = Linear(hidden=12, outputs=5)
    train, test = pairs_for(net, 60, seed=1), pairs_for(net, 60)
    config = replace(FEW, epochs=40, lr=0.02, k=4, arbitrary_labels=True)

    def fits(fresh: nn.Module) -> dict[str, Fit]:
        result = subspace(net, HIDDEN, test, train=train, fresh=fresh, config=config)
        assert result.effect(PATCH).iia == result.fits[0].held_out
        return {one.name: one for one in result.fits}

    same = fits(copy.deepcopy(net))
    expected, dealt, random = (same[name] for name in same)
    assert expected.held_out > 0.7
    # Answers dealt out at random can be learned in part, and say nothing of other pairs.
    assert dealt.trained < expected.trained - 0.15
    assert dealt.held_out < expected.held_out - 0.3
    # The model itself as the fresh one: the same search, the same numbers.
    assert (random.trained, random.held_out) == (expected.trained, expected.held_out)
    dead = Linear(hidden=12, outputs=5)
    with torch.no_grad():
        dead.down.weight.zero_()
        dead.read.bias.copy_(torch.tensor([9.0, 0, 0, 0, 0]))
    constant = fits(dead)["the expected answers, random weights"]
    assert constant.held_out == float((test.expected == 0).double().mean())


def test_arbitrary_labels_are_the_expected_ones_in_another_order() -> None:
    pairs = pairs_for(Linear(), 60)
    dealt = [module._dealt(pairs, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(dealt[0].sort().values, pairs.expected.sort().values)
    assert torch.equal(dealt[0], dealt[1])
    assert not torch.equal(dealt[0], dealt[2])
    assert not torch.equal(dealt[0], pairs.expected)


def test_a_search_that_is_stopped_leaves_the_model_as_it_was() -> None:
    layout = read_layout(copy.deepcopy(decoder("gpt2")))
    pairs = ragged(layout)
    layout.model.train()
    first = layout.model.get_input_embeddings().weight
    first.requires_grad_(False)
    held = Held(activations(layout, pairs, Site("mlp", 1)), activations(layout, pairs, Site("mlp", 1), source=True))
    copies = [values.clone() for values in held]

    def stop(what: str, done: int, total: int, note: str = "") -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        das(layout, pairs, Site("mlp", 1), replace(FEW, batch=3), held=held, progress=stop)
    assert all(torch.equal(*pair) for pair in zip(copies, held, strict=True))
    assert layout.model.training
    weights = dict(layout.model.named_parameters())
    assert [name for name, weight in weights.items() if not weight.requires_grad] == ["transformer.wte.weight"]
    assert all(weight.grad is None for weight in weights.values())
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in layout.model.modules())


def test_subspaces_and_rank_are_those_of_the_gated_and_of_the_centred_map() -> None:
    # Writing weights that are centred, as for models with folded norms: one direction is alive by rounding only.
    net: Any = nn.Sequential(nn.Linear(4, 40, bias=False), nn.Linear(40, 12, bias=False), nn.Linear(12, 3))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in net.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
        net[1].weight -= net[1].weight.mean(0, keepdim=True)
    layout, site = read_layout(net), Site("module-input", path="1")
    space = find_map(layout, site)
    assert (space.width, space.rank) == (40, 11)
    pairs = pairs_for(copy.deepcopy(net).double(), 30)
    single = Pairs(pairs.base.float(), pairs.source.float(), pairs.answers, pairs.expected)  # type: ignore[union-attr]
    result = subspace(net, site, single, basis=random_subspace(40, 3, 0), config=FEW)
    assert result.map.rank == 11
    assert "rank 11 of 40" in result.table()
    # Both numbers and both readings are always printed together.
    assert "IIA" in result.table()
    assert "the reply's reading" in result.table()
    assert down_of("llama").shape == (64, 32)


def down_of(family: str) -> torch.Tensor:
    weight, name = next_map(strong(family), Site("hidden", 0))
    assert name.endswith("down_proj")
    return weight


def test_a_pair_that_is_trained_on_may_not_be_measured_even_with_others_beside_it() -> None:
    net = Linear()
    pairs = pairs_for(net, 40)
    train, test = pairs.chosen(slice(0, 21)), pairs.chosen(slice(20, 40))
    with pytest.raises(UsageError, match="1 of 20 pairs to measure are trained on as well"):
        subspace(net, HIDDEN, test, train=train, config=FEW)
