from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.explain.subspaces.nets import HIDDEN, Linear, Toy, layout_of, pairs_for, text_pairs, toy_pairs
from tests.models.sites.small import layout_of as decoder_layout
from uphold.core.errors import ModelError
from uphold.explain.subspaces.conditions import (
    CLEAN,
    FULL,
    NULL,
    NULL_READ,
    PATCH,
    ROW,
    ROW_READ,
    UNSCALED,
    Measured,
    along,
    conditions,
    measure,
    placebo,
)
from uphold.explain.subspaces.directions import Held, orthonormal, patched_logits, random_subspace
from uphold.explain.subspaces.pairs import Pairs, activations
from uphold.explain.subspaces.spaces import next_map, row_space, split
from uphold.models.sites.hooks import Edit
from uphold.models.sites.layout import Layout
from uphold.models.sites.run import read, run
from uphold.models.sites.site import Site
from uphold.models.sites.sweep import mask_at


def held_of(layout: Layout, pairs: Pairs, site: Site) -> Held:
    return Held(activations(layout, pairs, site), activations(layout, pairs, site, source=True))


def measured(layout: Layout, pairs: Pairs, site: Site, basis: torch.Tensor) -> dict[str, Measured]:
    weight, name = next_map(layout, site)
    parts = split(basis, row_space(weight, name=name))
    return measure(layout, pairs, site, held_of(layout, pairs, site), conditions(parts, 1, 0), rows=16)


@pytest.mark.parametrize(
    ("direction", "share"), [([0, 0, 1.0], 1), ([1.0, 0, 0], 0), ([0, 1.0, 0], 0), ([1.0, 1.0, 0], 1)]
)
def test_the_toy_network_is_as_worked_out(direction: list[float], share: float) -> None:
    pairs, net = toy_pairs(), Toy()
    found = measured(layout_of(net), pairs, HIDDEN, orthonormal(torch.tensor(direction)))
    lead = torch.where(pairs.answers == 1, 1.0, -1.0).double() * 2
    y = [lead * inputs[:, 0].double() for inputs in (pairs.base, pairs.source)]  # type: ignore[index]
    torch.testing.assert_close(found[CLEAN].differences, y[0])
    torch.testing.assert_close(found[FULL].differences, y[1])
    torch.testing.assert_close(found[PATCH].differences, y[1] if share else y[0], atol=1e-6, rtol=1e-6)


def test_the_unscaled_row_patch_keeps_a_fifth_of_the_good_direction_of_the_toy_and_the_row_patch_all() -> None:
    found = measured(layout_of(Toy()), toy_pairs(), HIDDEN, orthonormal(torch.tensor([0, 0, 1.0])))
    clean, full = found[CLEAN].differences, found[FULL].differences
    torch.testing.assert_close(found[UNSCALED].differences, 0.8 * clean + 0.2 * full, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(found[ROW].differences, full, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(found[NULL].differences, clean, atol=1e-6, rtol=1e-6)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), k=st.integers(1, 12))
def test_where_all_is_linear_both_readings_add_up(seed: int, k: int) -> None:
    net = Linear(seed=seed % 3)
    found = measured(layout_of(net), pairs_for(net), HIDDEN, random_subspace(12, k, seed))
    clean = found[CLEAN].differences
    effects = {name: one.differences - clean for name, one in found.items()}
    torch.testing.assert_close(effects[ROW_READ] + effects[NULL_READ], effects[PATCH], atol=1e-9, rtol=1e-9)
    assert float(effects[NULL].abs().max()) < 1e-9


def test_all_dimensions_are_the_full_patch() -> None:
    net = Linear()
    found = measured(layout_of(net), pairs_for(net), HIDDEN, random_subspace(12, 12, 0))
    torch.testing.assert_close(found[PATCH].differences, found[FULL].differences)
    assert torch.equal(found[PATCH].hits, found[FULL].hits)
    assert bool(found[FULL].hits.all())


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3", "phi3"])
@pytest.mark.parametrize("site", [Site("hidden", 1), Site("head", 2, 1), Site("hidden", 3)])
def test_in_a_decoder_the_null_patch_changes_nothing(family: str, site: Site) -> None:
    layout, pairs = decoder_layout(family), text_pairs(family)
    held = held_of(layout, pairs, site)
    far = Held(held.base, held.base + 50 * (held.source - held.base))
    weight, _ = next_map(layout, site)
    parts = split(random_subspace(held.base.shape[1], 2, 0), row_space(weight))
    found = measure(layout, pairs, site, far, conditions(parts, 1, 0))
    # A head of 8 numbers is transmitted whole: there is no null part, and the patch is of no columns.
    assert parts.null_basis.shape[1] == (2 if site.kind == "hidden" else 0)
    torch.testing.assert_close(found[NULL].differences, found[CLEAN].differences, atol=3e-5, rtol=0)
    assert float((found[PATCH].differences - found[CLEAN].differences).abs().max()) > 1e-3
    if site.kind == "head":
        torch.testing.assert_close(found[ROW].differences, found[PATCH].differences, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("site", [Site("hidden", 1), Site("residual", -1), Site("residual", 3), Site("head", 2, 1)])
@pytest.mark.parametrize("position", [None, 2])
def test_a_source_that_is_the_base_leaves_the_logits_bit_identical(
    family: str, site: Site, position: int | None
) -> None:
    layout, pairs = decoder_layout(family), text_pairs(family)
    where = None if position is None else torch.full((6,), position)
    pairs = Pairs(pairs.base, pairs.base, pairs.answers, pairs.expected, positions=where)
    held = held_of(layout, pairs, site)
    assert torch.equal(held.base, held.source)
    u = random_subspace(held.base.shape[1], 3, 0)
    wanted = {CLEAN: along(u * 0, u), PATCH: along(u, u), "placebo": placebo(u, 1)}
    found = measure(layout, pairs, site, held, wanted)
    for name in (PATCH, "placebo"):
        assert torch.equal(found[name].differences, found[CLEAN].differences)
    values = along(u, u)(held.base.double(), held.source.double()).float()
    assert torch.equal(patched_logits(layout, pairs, site, values), run(layout, pairs.base, at=pairs.counting))


@pytest.mark.parametrize("site", [Site("hidden", 1), Site("residual", 1), Site("head", 2, 1), Site("mlp", 0)])
@pytest.mark.parametrize("position", [None, 2])
def test_decoders_that_go_on_from_the_middle_give_what_a_whole_pass_gives(site: Site, position: int | None) -> None:
    layout, pairs = decoder_layout("llama"), text_pairs("llama")
    where = None if position is None else torch.full((6,), position)
    pairs = Pairs(pairs.base, pairs.source, pairs.answers, pairs.expected, positions=where)
    found = measure(layout, pairs, site, held_of(layout, pairs, site), {FULL: lambda base, source: source}, rows=4)
    source, _ = read(layout, pairs.source, [site])
    edit = Edit(site, source[site], mask_at((6, 8), 7 if position is None else position))
    logits = run(layout, pairs.base, [edit], at=pairs.counting).double()
    rows = torch.arange(6)
    wanted = logits[rows, pairs.answers] - logits[rows, pairs.expected]
    torch.testing.assert_close(found[FULL].differences, wanted, atol=1e-5, rtol=1e-4)
    assert torch.equal(found[FULL].hits, logits.argmax(1) == pairs.expected)


def test_a_placebo_is_as_long_as_the_patch_and_elsewhere() -> None:
    u = random_subspace(12, 2, 0)
    base, source = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    one, other = along(u, u)(base, source) - base, placebo(u, 1)(base, source) - base
    torch.testing.assert_close(one.norm(dim=1), other.norm(dim=1))
    assert float((one - other).norm(dim=1).min()) > 0.1


def test_logits_must_be_one_row_per_pair_and_finite() -> None:
    pairs = toy_pairs()
    net = Toy()
    layout = layout_of(net)
    held = held_of(layout, pairs, HIDDEN)
    clean = {CLEAN: conditions(split(torch.eye(3)[:, :1], row_space(net.down.weight.T)), 1, 0)[CLEAN]}
    with pytest.raises(ModelError, match="not finite"):
        measure(layout, pairs, HIDDEN, replace_base(held), clean)
    decoder, text, site = decoder_layout("gpt2"), text_pairs("gpt2"), Site("module", path="transformer.h.1")
    whole = held_of(decoder, text, site)
    assert measure(decoder, text, site, whole, clean)[CLEAN].hits.shape == (6,)
    assert replace(text, at=torch.full((6,), 7)).counting is not None


def replace_base(held: Held) -> Held:
    return Held(held.base * float("inf"), held.source)
