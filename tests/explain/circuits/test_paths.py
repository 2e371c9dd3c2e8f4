import copy
from typing import Any

import pytest
import torch
from torch import nn

from tests.explain.circuits.made import FAMILIES, layout_of, prompts
from uphold.core.errors import EmptyError, UsageError
from uphold.explain.circuits import discovery
from uphold.explain.circuits.discovery import Round, path_groups
from uphold.explain.circuits.effects import Effects
from uphold.explain.circuits.measures import Measure, of_all
from uphold.explain.circuits.patching import activation_patching
from uphold.explain.circuits.paths import Part, Receivers, path_patching, projection
from uphold.explain.circuits.prompts import OTHER, Node, Prompts, nodes_of
from uphold.models.sites.hooks import Edit
from uphold.models.sites.layout import Layout, read_layout
from uphold.models.sites.run import read, run
from uphold.models.sites.site import Site

INTO = (Node(2, 1, "last"), Node(3, 3, "last"))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("receivers", [None, Receivers(INTO, "query"), Receivers(INTO, "value")])
def test_nothing_changes_where_both_runs_are_one(family: str, receivers: Receivers | None) -> None:
    layout = layout_of(family)
    clean = prompts(layout, 0)
    senders = nodes_of(layout, ["last", "early", OTHER])
    found = path_patching(layout, clean, clean, senders, receivers, batch=2)
    assert (found.change == 0).all()
    assert (found.relative == 0).all()
    assert (activation_patching(layout, clean, clean, senders, batch=2).change == 0).all()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("measure", ["probability", "logit-difference"])
def test_a_sender_in_the_last_layer_is_patched_as_any_activation(family: str, measure: Measure) -> None:
    layout = layout_of(family)
    clean, corrupt = prompts(layout, 0), prompts(layout, 1)
    senders = [Node(3, head, "last") for head in range(4)]
    paths = path_patching(layout, clean, corrupt, senders, measure=measure)
    plain = activation_patching(layout, clean, corrupt, senders, measure=measure)
    torch.testing.assert_close(paths.changed, plain.changed, atol=1e-5, rtol=1e-5)
    assert paths.change.abs().max() > 1e-4


@pytest.mark.parametrize("part", ["query", "key", "value"])
def test_senders_that_no_receiver_lies_behind_score_exactly_zero(part: Part) -> None:
    layout = layout_of("llama")
    clean, corrupt = prompts(layout, 0), prompts(layout, 1)
    receivers = Receivers((Node(1, 0, "early"), Node(2, 2, "early")), part)
    above = [Node(layer, head, "early") for layer in (2, 3) for head in range(4)]
    later = [Node(0, head, "last") for head in range(4)]
    found = path_patching(layout, clean, corrupt, [*above, *later], receivers)
    assert (found.changed == found.clean).all()


def by_definition(
    layout: Layout, clean: Prompts, corrupt: Prompts, sender: Node, receivers: Receivers | None
) -> torch.Tensor:
    """Every head of every layer overwritten from p on, one by one, in whole passes."""
    heads = layout.sites("head")
    own, _ = read(layout, clean.inputs, heads, at=clean.at)
    held, _ = read(layout, corrupt.inputs, heads, at=corrupt.at)
    here = clean.mask(sender.role)
    later = here.long().cumsum(1) > 0
    rows = torch.arange(len(clean))
    value = held[sender.site][rows, corrupt.roles[sender.role]][:, None]
    edits = [Edit(site, own[site], later) for site in heads if site != sender.site]
    edits += [Edit(sender.site, own[sender.site], later), Edit(sender.site, value, here)]
    measure = of_all("logit-difference", clean)
    if receivers is None:
        return measure(run(layout, clean.inputs, edits, at=clean.at))
    sites = {node: projection(layout, node, receivers.part) for node in receivers.nodes}
    found, _ = read(layout, clean.inputs, list(sites.values()), edits, at=clean.at)
    second = [Edit(site, found[site], clean.mask(node.role)) for node, site in sites.items()]
    return measure(run(layout, clean.inputs, second, at=clean.at))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("receivers", [None, *(Receivers(INTO, part) for part in ("query", "key", "value"))])
@pytest.mark.parametrize("tokens", [60, 4096])
def test_scores_are_those_of_the_definition(family: str, receivers: Receivers | None, tokens: int) -> None:
    layout = layout_of(family)
    clean, corrupt = prompts(layout, 0), prompts(layout, 1)
    senders = nodes_of(layout, ["last", "early"])[::5]
    found = path_patching(layout, clean, corrupt, senders, receivers, measure="logit-difference", tokens=tokens)
    wanted = torch.stack([by_definition(layout, clean, corrupt, sender, receivers) for sender in senders])
    torch.testing.assert_close(found.changed, wanted, atol=1e-5, rtol=1e-4)


def test_with_feed_forward_parts_frozen_it_is_the_direct_effect_on_the_logits() -> None:
    layout = layout_of("gpt2")
    clean, corrupt = prompts(layout, 0, padded=False), prompts(layout, 1, padded=False)
    senders = nodes_of(layout, ["last"])
    found = path_patching(layout, clean, corrupt, senders, measure="logit-difference", freeze=("attention", "mlp"))
    final = Site("residual", 3)
    own, _ = read(layout, clean.inputs, [*layout.sites("head"), final])
    held, _ = read(layout, corrupt.inputs, layout.sites("head"))
    model: Any = layout.model
    for sender, scores in zip(senders, found.changed, strict=True):
        weight = model.transformer.h[sender.layer].attn.c_proj.weight[8 * sender.head : 8 * sender.head + 8]
        moved = (held[sender.site] - own[sender.site])[:, -1] @ weight
        with torch.no_grad():
            logits = model.lm_head(model.transformer.ln_f(own[final][:, -1] + moved))
        torch.testing.assert_close(of_all("logit-difference", clean)(logits), scores, atol=1e-5, rtol=1e-4)


def test_direct_effects_add_up_where_all_is_linear() -> None:
    model: Any = copy.deepcopy(layout_of("gpt2").model)
    model.transformer.ln_f = nn.Identity()
    for block in model.transformer.h:
        block.ln_1 = block.ln_2 = nn.Identity()
        nn.init.zeros_(block.mlp.c_proj.weight)
    layout = read_layout(model)
    clean, corrupt = prompts(layout, 0, padded=False), prompts(layout, 1, padded=False)
    corrupt.inputs["input_ids"][:, -1] = clean.inputs["input_ids"][:, -1]
    found = path_patching(layout, clean, corrupt, nodes_of(layout, ["last"]), measure="logit-difference")
    whole = of_all("logit-difference", clean)(run(layout, corrupt.inputs, at=corrupt.at)) - found.clean
    torch.testing.assert_close((found.changed - found.clean).sum(0), whole, atol=1e-5, rtol=1e-4)


def test_prompts_that_are_not_solved_are_left_out_and_counted() -> None:
    layout = layout_of("gpt2")
    clean, corrupt = prompts(layout, 0), prompts(layout, 1)
    clean.answers[1] = (clean.answers[1] + 1) % 50
    found = path_patching(layout, clean, corrupt, nodes_of(layout, ["last"]))
    assert (found.left_out, found.changed.shape) == (1, (16, 4))
    clean.answers[:] = (clean.answers + 1) % 50
    clean.answers[1] = (clean.answers[1] + 1) % 50
    with pytest.raises(EmptyError, match="solves none of the 5 prompts"):
        path_patching(layout, clean, corrupt, nodes_of(layout, ["last"]))


def test_wrong_calls_are_refused() -> None:
    layout = layout_of("gpt2")
    clean = prompts(layout, 0)
    with pytest.raises(UsageError, match="expected one for each"):
        path_patching(layout, clean, clean.rows(slice(0, 2)), [Node(0, 0, "last")])
    with pytest.raises(UsageError, match="a path leads into one position"):
        path_patching(layout, clean, clean, [Node(0, 0, "last")], Receivers((Node(1, 0, OTHER),), "value"))


def test_values_are_taken_where_the_role_is_in_the_source() -> None:
    layout = layout_of("llama")
    clean, corrupt = prompts(layout, 0, padded=False), prompts(layout, 1, padded=False)
    corrupt.roles["early"][:] = torch.tensor([5, 6, 7, 8, 0])
    node = Node(1, 2, "early")
    found = activation_patching(layout, clean, corrupt, [node], batch=3)
    held, _ = read(layout, corrupt.inputs, [node.site])
    value = held[node.site][torch.arange(5), corrupt.roles["early"]][:, None]
    logits = run(layout, clean.inputs, [Edit(node.site, value, clean.mask("early"))], at=clean.at)
    torch.testing.assert_close(found.changed[0], of_all("logit-difference", clean)(logits), atol=1e-5, rtol=1e-5)


def test_receivers_take_up_what_is_sent_where_the_sender_is(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = layout_of("llama")
    clean, corrupt = prompts(layout, 0, padded=False), prompts(layout, 1, padded=False)
    clean.roles["early"][:] = corrupt.roles["early"][:] = 8
    seen: list[Receivers] = []

    def spied(*given: Any, **named: Any) -> Effects:
        seen.extend(given[4:5])
        return path_patching(*given, **named)

    monkeypatch.setattr(discovery, "path_patching", spied)
    rounds = [Round("fetch", "last", top=16), Round("detect", "early", "fetch", "value", top=3)]
    found = path_groups(layout, clean, corrupt, rounds, measure="logit-difference")
    assert seen[1].part == "value"
    assert {node.role for node in seen[1].nodes} == {"early"}
    assert {node[:2] for node in seen[1].nodes} == {node[:2] for node in found["fetch"]}
    effects = path_patching(layout, clean, corrupt, found["detect"], seen[1], measure="logit-difference")
    assert effects.change.abs().min() > 1e-4


@pytest.mark.parametrize("part", ["query", "key", "value"])
def test_nothing_passes_between_positions_where_attention_is_frozen(part: Part) -> None:
    layout = layout_of("llama")
    clean, corrupt = prompts(layout, 0), prompts(layout, 1)
    into = Receivers((Node(3, 0, "last"), Node(2, 1, "last")), part)
    found = path_patching(layout, clean, corrupt, nodes_of(layout, ["early"]), into)
    assert (found.changed == found.clean).all()
