from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import fields
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, BloomConfig

from tests.models.sites.small import AT, CONFIGS, KINDS, LENGTH, ROWS, decoder, difference, inputs
from uphold.models.sites import sweep as module
from uphold.models.sites.hooks import Edit
from uphold.models.sites.layout import Layout, read_layout
from uphold.models.sites.resume import Kept, keep, one_position, resume
from uphold.models.sites.run import read, run
from uphold.models.sites.site import Kind, Site
from uphold.models.sites.sweep import mask_at, sweep

SHAPE = (ROWS, LENGTH)
ALONE: tuple[Kind, ...] = ("head", "query", "attention", "mlp", "hidden")
"""What changes its own position only, so that a block runs that position by itself."""
Candidate = list[Edit]


@cache
def strong(family: str) -> Layout:
    """Weights four times as large as usual, so that every patch shows."""
    model: Any = copy.deepcopy(decoder(family))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight *= 4
    return read_layout(model)


@cache
def held(family: str) -> dict[Site, torch.Tensor]:
    return read(strong(family), inputs(1), [*strong(family).sites(*KINDS), Site("residual", -1)])[0]


def plain(layout: Layout, candidates: list[Candidate]) -> torch.Tensor:
    """Each candidate in a whole pass of its own."""
    every = torch.arange(ROWS)
    return torch.stack([difference(run(layout, inputs(0), edits, at=AT), every) for edits in candidates])


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Blocks and positions that were run by themselves."""
    calls: list[tuple[int, int]] = []

    def spied(*args: Any, layer: int, position: int, **named: Any) -> torch.Tensor:
        calls.append((layer, position))
        return one_position(*args, layer=layer, position=position, **named)

    monkeypatch.setattr(module, "one_position", spied)
    return calls


@pytest.mark.parametrize("family", CONFIGS)
def test_a_block_that_runs_one_position_alone_gives_what_a_whole_pass_gives(
    family: str, alone: list[tuple[int, int]]
) -> None:
    layout, source = strong(family), held(family)
    # 5 is the last position of the padded row, 9 that of the others, and 4 is before both.
    inside = [
        [Edit(site, source[site], mask_at(SHAPE, position))]
        for number, site in enumerate(site for site in layout.sites(*ALONE) if site.layer % 3 == 0)
        for position in [(0, 5), (4, 9), (5,), (9,)][number % 4]
    ]
    heads = layout.sites("head")[3:6]
    inside += [  # in one block and at one position together, the second time in some rows only
        [Edit(one, source[one], mask_at(SHAPE, 5)), Edit(Site("mlp", one.layer), torch.zeros_like, mask_at(SHAPE, 5))]
        for one in heads
    ]
    some = mask_at(SHAPE, 4) & torch.tensor([True, False, True, False, True])[:, None]
    inside.append([Edit(heads[0], source[heads[0]], some), Edit(heads[1], torch.tensor(0.5), some)])
    wider = [[Edit(site, source[site], mask_at(SHAPE, [1, 2, 3, 4, 5]))] for site in layout.sites("mlp")]
    wider += [[Edit(site, source[site], mask_at(SHAPE, 4))] for site in layout.sites("key", "value", "residual")[::3]]
    wider.append([Edit(Site("head", 1, 0), source[Site("head", 1, 0)], mask_at(SHAPE, 4)),
                  Edit(Site("head", 2, 0), source[Site("head", 2, 0)], mask_at(SHAPE, 4))])  # fmt: skip
    wanted, kept = plain(layout, [*inside, *wider]), keep(layout, inputs(0), AT)
    for tokens in (7, 300):
        alone.clear()
        found = sweep(layout, kept, inside, difference, tokens=tokens)
        torch.testing.assert_close(found, wanted[: len(inside)], atol=2e-5, rtol=1e-4)
        assert {layer for layer, _ in alone} == {0, 1, 3}
        alone.clear()
        found = sweep(layout, kept, wider, difference, tokens=tokens)
        torch.testing.assert_close(found, wanted[len(inside) :], atol=2e-5, rtol=1e-4)
        assert not alone
    clean = difference(kept.logits, torch.arange(ROWS))
    moved = (wanted - clean).abs() > 1e-3
    assert moved.float().mean() > 0.4
    # What comes after the answer of the padded row says nothing of it.
    after = [number for number, edits in enumerate(inside) if int(_first(edits)) > 5]
    assert after
    assert torch.equal(sweep(layout, kept, inside, difference)[after, 1], clean[1].expand(len(after)))


def _first(edits: Candidate) -> torch.Tensor:
    assert edits[0].where is not None
    return edits[0].where.any(0).long().argmax()


@st.composite
def candidate(draw: st.DrawFn, family: str = "llama") -> Candidate:
    """One to three edits anywhere, of one role or of another position in each row, or of all positions."""
    sites = [*strong(family).sites(*KINDS), Site("residual", -1)]
    edits = []
    for site in draw(st.lists(st.sampled_from(sites), min_size=0, max_size=3, unique=True)):
        mask = draw(
            st.one_of(
                st.none(),
                st.integers(-LENGTH, LENGTH - 1).map(lambda position: mask_at(SHAPE, position)),
                st.lists(st.integers(0, LENGTH - 1), min_size=ROWS, max_size=ROWS).map(lambda at: mask_at(SHAPE, at)),
                st.integers(0, LENGTH - 1).map(lambda position: mask_at((1, LENGTH), position)),
                st.integers(0, 2**16).map(_scattered),
            )
        )
        value: Any = draw(st.sampled_from([held(family)[site], held(family)[site].mean(0), torch.zeros_like]))
        edits.append(Edit(site, value, mask))
    return edits


def _scattered(seed: int) -> torch.Tensor:
    return torch.rand(SHAPE, generator=torch.Generator().manual_seed(seed)) < 0.15


@settings(max_examples=10, deadline=None)
@given(candidates=st.lists(candidate(), min_size=1, max_size=8), tokens=st.integers(1, 200))
def test_any_candidates_packed_in_any_way_are_as_single_passes(candidates: list[Candidate], tokens: int) -> None:
    layout = strong("llama")
    found = sweep(layout, keep(layout, inputs(0), AT), candidates, difference, tokens=tokens)
    torch.testing.assert_close(found, plain(layout, candidates), atol=2e-5, rtol=1e-4)


def snapshot(kept: Kept) -> list[torch.Tensor]:
    tensors = []
    for field in fields(kept):
        value = getattr(kept, field.name)
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else [value]
        tensors += [part.clone() for part in parts if isinstance(part, torch.Tensor)]
    return tensors


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_neither_what_is_kept_nor_what_is_put_in_is_written_to(family: str) -> None:
    layout, source = strong(family), held(family)
    kept = keep(layout, inputs(0), AT)
    sites = [Site("residual", -1), *layout.sites("residual", "head", "key", "mlp")[::3]]
    candidates = [
        [Edit(site, source[site], mask_at(SHAPE, 4)), Edit(site, lambda old: old.mul_(2), mask_at(SHAPE, 5))]
        for site in sites
    ]
    before, put = snapshot(kept), {site: values.clone() for site, values in source.items()}
    assert len(before) > 4 * layout.layers
    found = sweep(layout, kept, candidates, difference, tokens=60)
    for edits in candidates[1:]:
        resume(layout, kept, edits, layer=edits[0].site.layer + (edits[0].site.kind == "residual"), start=4)
    assert all(torch.equal(*pair) for pair in zip(before, snapshot(kept), strict=True))
    assert all(torch.equal(source[site], values) for site, values in put.items())
    assert torch.equal(found, sweep(layout, kept, candidates, difference, tokens=60))


def test_an_edit_of_what_a_part_takes_leaves_what_others_take() -> None:
    layout, given = strong("llama"), torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    norm = Site("module-input", path="model.layers.1.post_attention_layernorm")
    more = Edit(norm, lambda old: old + 1)
    sites = [Site("residual", 0), Site("attention", 1), Site("mlp", 1), Site("residual", 1)]
    before, _ = read(layout, inputs(0), sites)
    after, _ = read(layout, inputs(0), sites, [more])
    assert all(torch.equal(before[site], after[site]) for site in sites[:2])
    assert not torch.allclose(before[sites[2]], after[sites[2]])
    # The residual stream beside the norm is not what the norm was given.
    torch.testing.assert_close(after[sites[3]] - after[sites[2]], before[sites[3]] - before[sites[2]])
    net = torch.nn.Sequential(torch.nn.Linear(4, 2))
    saved = given.clone()
    run(read_layout(net), given, [Edit(Site("module-input", path="0"), torch.zeros(4))])
    assert torch.equal(given, saved)


def test_a_candidate_without_edits_is_the_run_itself() -> None:
    layout = strong("llama")
    kept, site = keep(layout, inputs(0), AT), Site("mlp", 2)
    nowhere = Edit(site, torch.zeros_like, torch.zeros(SHAPE, dtype=torch.bool))
    found = sweep(layout, kept, [[], [nowhere], [Edit(site, torch.zeros_like)]], difference)
    clean = difference(kept.logits, torch.arange(ROWS))
    assert torch.equal(found[0], clean)
    torch.testing.assert_close(found[1], clean)
    assert (found[2] - clean).abs().min() > 1e-4


def test_what_stands_in_the_padding_does_not_count() -> None:
    layout, source = strong("llama"), held("llama")
    candidates = [
        [Edit(site, source[site], mask_at(SHAPE, place))] for site in layout.sites("head", "key") for place in (2, 5)
    ]
    long = {name: torch.cat([value, torch.zeros_like(value)[:, :3]], 1) for name, value in inputs(0).items()}
    long["input_ids"][1, 6:] = 7
    wider = [
        [Edit(one.site, torch.nn.functional.pad(one.value, (0, 0, 0, 3), value=9.0), _padded(one.where))]
        for (one,) in candidates
        if isinstance(one.value, torch.Tensor)
    ]
    found = [
        sweep(layout, keep(layout, given, AT), some, difference, tokens=300)
        for given, some in ((inputs(0), candidates), (long, wider))
    ]
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-4)


def _padded(where: torch.Tensor | None) -> torch.Tensor:
    assert where is not None
    return torch.nn.functional.pad(where, (0, 3))


def bloom() -> Layout:
    """A family whose model takes no positions, so that only blocks can be passed over."""
    config = BloomConfig(vocab_size=50, hidden_size=32, n_layer=3, n_head=4, bos_token_id=1, eos_token_id=2)
    torch.manual_seed(0)
    return read_layout(AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval())


def test_a_model_without_positions_goes_on_from_the_beginning() -> None:
    layout = bloom()
    sites = layout.sites("residual", "head", "value", "mlp", "hidden")
    source, _ = read(layout, inputs(1), sites)
    kept = keep(layout, inputs(0), AT)
    assert kept.keys == ()
    candidates = [[Edit(site, source[site], mask_at(SHAPE, position))] for site in sites for position in (0, 5)]
    found = sweep(layout, kept, candidates, difference, tokens=100)
    torch.testing.assert_close(found, plain(layout, candidates), atol=1e-5, rtol=1e-4)
    assert (found - difference(kept.logits, torch.arange(ROWS))).abs().max() > 1e-3


class Stop(Exception):
    """Of an edit or a metric, in the middle of a pass."""


def fail(*_: Any) -> torch.Tensor:
    raise Stop


def _alone(layout: Layout, kept: Kept) -> object:
    edits = [Edit(Site("mlp", 2), fail)]
    return one_position(layout, kept, edits, layer=2, position=3, rows=torch.arange(ROWS))


def _first_block(layout: Layout, kept: Kept) -> object:
    return resume(layout, kept, [Edit(Site("head", 0, 1), fail)], layer=0, start=2)


def _edit(layout: Layout, kept: Kept) -> object:
    return sweep(layout, kept, [[Edit(Site("residual", 1), fail)]], difference)


def _metric(layout: Layout, kept: Kept) -> object:
    def metric(logits: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return difference(logits, rows) if logits is kept.logits else fail()

    return sweep(layout, kept, [[Edit(Site("hidden", 1), torch.zeros_like, mask_at(SHAPE, 5))]], metric)


def _gradient(layout: Layout, kept: Kept) -> object:
    return run(layout, kept.inputs, [Edit(Site("mlp", 2), fail)], at=kept.at, grad=True)


@pytest.mark.parametrize("attempt", [_alone, _first_block, _edit, _metric, _gradient])
def test_the_model_is_whole_after_an_exception_anywhere(attempt: Callable[[Layout, Kept], object]) -> None:
    layout = read_layout(copy.deepcopy(strong("llama").model))
    kept = keep(layout, inputs(0), AT)
    modules = dict(layout.model.named_modules())
    layout.model.train()
    with pytest.raises(Stop):
        attempt(layout, kept)
    assert dict(layout.model.named_modules()) == modules
    assert all(one.training for one in modules.values())
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in modules.values())
    assert all(weight.requires_grad and weight.grad is None for weight in layout.model.parameters())
    assert torch.is_grad_enabled()
    torch.testing.assert_close(run(layout, inputs(0), at=AT), kept.logits)
