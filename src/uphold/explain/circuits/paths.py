"""Path patching: what one head passes on to others, or to the answer, without a detour through further heads.

Prakash et al., "Fine-Tuning Enhances Existing Mechanisms: A Case Study on Entity Tracking", arXiv:2402.14811, after
Wang et al., arXiv:2211.00593, and Goldowsky-Dill et al., arXiv:2304.05969.

A sender s at position p takes its value of the corrupt run; from p on every other head keeps what it wrote in the clean
run, and the feed-forward parts compute anew. Receivers' queries, keys or values are recorded in that run and put into a
second clean run, in which all else computes anew. Score = mean of (p_patched - p_clean) / p_clean of the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from uphold.core.errors import EmptyError, UsageError
from uphold.core.progress import Progress, silent
from uphold.explain.circuits.effects import Effects
from uphold.explain.circuits.measures import Measure, measured, solved
from uphold.explain.circuits.patching import Held, check_paired, moved, sites_of, unmoved
from uphold.explain.circuits.prompts import OTHER, Node, Prompts
from uphold.models.sites.hooks import Edit, reading
from uphold.models.sites.layout import Layout
from uphold.models.sites.resume import Kept, keep, resume
from uphold.models.sites.run import read
from uphold.models.sites.site import Kind, Site
from uphold.models.sites.sweep import TOKENS, sweep

Part = Literal["query", "key", "value"]
HEADS: tuple[Kind, ...] = ("attention",)
BATCH = 32
"""Prompts whose clean and corrupt runs are kept at once."""


@dataclass(frozen=True)
class Receivers:
    """Heads that a sender's path leads into."""

    nodes: tuple[Node, ...]
    part: Part
    """Which of their projections it enters."""


def path_patching(
    layout: Layout,
    clean: Prompts,
    corrupt: Prompts,
    senders: Sequence[Node],
    receivers: Receivers | None = None,
    *,
    measure: Measure = "probability",
    freeze: Sequence[Kind] = HEADS,
    batch: int = BATCH,
    tokens: int = TOKENS,
    progress: Progress = silent,
) -> Effects:
    """Patch the path from each sender, by itself, to the receivers, or straight to the logits where there are none.

    Prompts that the model does not solve are left out and counted: a share of a small probability says nothing.

    Args:
        layout: of the model.
        clean: the prompts that are run.
        corrupt: as many, to take from row by row; a sender's value is taken where its role is there.
        senders: heads at roles.
        receivers: where the paths lead.
        measure: what to measure; `Effects.relative` is the paper's score with `probability`.
        freeze: what stays as in the clean run behind the sender: what heads write (`attention`); with `mlp`, what feed-
            forward parts write as well, so that only the direct effect is left.
        batch: prompts whose runs are kept at once.
        tokens: positions in one forward pass, over all prompts and senders.
        progress: called after every batch.

    Returns:
        The measure by sender. It is exactly the clean one where nothing can pass: the sender holds the same in both
        runs, or all receivers lie below it or before it.

    Raises:
        EmptyError: the model solves none of the prompts.
        UsageError: a receiver is at `other`, which is no one position.
    """
    check_paired(clean, corrupt)
    for node in receivers.nodes if receivers else ():
        if node.role == OTHER:
            raise UsageError(f"receiver {node}: a path leads into one position; name a role")
    usable = solved(layout, clean)
    if not bool(usable.any()):
        raise EmptyError(f"the model solves none of the {len(clean)} prompts: there is no mechanism to look for")
    clean, corrupt = clean.rows(usable), corrupt.rows(usable)
    before, after = [], []
    parts = list(zip(clean.batches(batch), corrupt.batches(batch), strict=True))
    for number, (ours, theirs) in enumerate(parts):
        clear, found = _one_batch(layout, ours, theirs, senders, receivers, measure, freeze, tokens)
        before.append(clear)
        after.append(found)
        progress("path patching", number + 1, len(parts))
    left_out = int((~usable).sum())
    return Effects(tuple(senders), measure, torch.cat(before), torch.cat(after, 1), left_out)


def _one_batch(
    layout: Layout,
    ours: Prompts,
    theirs: Prompts,
    senders: Sequence[Node],
    receivers: Receivers | None,
    measure: Measure,
    freeze: Sequence[Kind],
    tokens: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The measure of the clean run, shape (rows,), and with each sender's path patched, shape (senders, rows)."""
    sites = sites_of(senders)
    own, _ = read(layout, ours.inputs, [*sites, *layout.sites(*freeze)], at=ours.at)
    held, _ = read(layout, theirs.inputs, sites, at=theirs.at)
    kept = keep(layout, ours.inputs, ours.at)
    metric = measured(measure, ours)
    clear = metric(kept.logits, torch.arange(len(ours), device=ours.at.device)).float().cpu()
    if receivers is None:
        candidates = [_only(layout, node, freeze, own, held, theirs, ours) for node in senders]
    else:
        candidates = _entering(layout, kept, senders, receivers, freeze, own, held, theirs, ours, tokens)
    found = clear.expand(len(senders), -1).clone()
    some = [number for number, edits in enumerate(candidates) if edits]
    if some:
        found[some] = sweep(layout, kept, [candidates[number] for number in some], metric, tokens=tokens).cpu()
    idle = torch.stack([unmoved(node, own, held, theirs, ours) for node in senders])
    if receivers is not None:
        idle |= torch.stack([_apart(node, receivers, ours, freeze) for node in senders])
    return clear, torch.where(idle, clear, found)


def _only(
    layout: Layout, sender: Node, freeze: Sequence[Kind], own: Held, held: Held, source: Prompts, target: Prompts
) -> list[Edit]:
    """The sender's corrupt value, and all heads behind it as in the clean run.

    What heads write before the sender's layer or position is theirs anyway, and to keep all heads of a layer is to keep
    what their common output projection gives.
    """
    first = moved(sender, held, source, target)
    assert first.where is not None
    later = first.where.long().cumsum(1) > 0
    return [first, *(Edit(site, own[site], later) for site in _behind(layout, sender.layer, freeze))]


def _behind(layout: Layout, layer: int, freeze: Sequence[Kind]) -> list[Site]:
    """What is frozen behind the heads of a layer: its own feed-forward part may be, its attention is not."""
    return [
        site for site in layout.sites(*freeze) if site.layer > layer or (site.layer == layer and site.kind == "mlp")
    ]


def _apart(sender: Node, receivers: Receivers, prompts: Prompts, freeze: Sequence[Kind]) -> torch.Tensor:
    """In which rows nothing of the sender can reach a receiver above it; bool, shape (rows,).

    Where attention is frozen, a sender changes its own positions only; otherwise those behind them too.
    """
    here = prompts.mask(sender.role)
    reached = here if "attention" in freeze else here.long().cumsum(1) > 0
    found = torch.zeros(len(prompts), dtype=torch.bool, device=here.device)
    rows = torch.arange(len(prompts), device=here.device)
    for node in receivers.nodes:
        if node.layer > sender.layer:
            found |= reached[rows, prompts.roles[node.role]]
    return ~found.cpu()


def _entering(
    layout: Layout,
    kept: Kept,
    senders: Sequence[Node],
    receivers: Receivers,
    freeze: Sequence[Kind],
    own: Held,
    held: Held,
    source: Prompts,
    target: Prompts,
    tokens: int,
) -> list[list[Edit]]:
    """For each sender, what its path makes of the receivers' projections; nothing where no receiver lies above it."""
    candidates: list[list[Edit]] = [[] for _ in senders]
    packed = max(1, tokens // (len(target) * target.length))
    for layer in range(layout.layers):
        into = [node for node in receivers.nodes if node.layer > layer]
        numbers = [number for number, node in enumerate(senders) if node.layer == layer] if into else []
        for begin in range(0, len(numbers), packed):
            pack = numbers[begin : begin + packed]
            recorded = _recorded(layout, kept, [senders[one] for one in pack], into, receivers.part, freeze,
                                 own, held, source, target)  # fmt: skip
            for place, number in enumerate(pack):
                rows = slice(place * len(target), (place + 1) * len(target))
                candidates[number] = [
                    Edit(site, recorded[site, role][rows], target.mask(role)) for site, role in recorded
                ]
    return candidates


def _recorded(
    layout: Layout,
    kept: Kept,
    pack: Sequence[Node],
    into: Sequence[Node],
    part: Part,
    freeze: Sequence[Kind],
    own: Held,
    held: Held,
    source: Prompts,
    target: Prompts,
) -> dict[tuple[Site, str], torch.Tensor]:
    """Receivers' projections where they are, by site and role, shape (senders * rows, 1, width)."""
    count, layer = len(target), pack[0].layer
    edits = []
    for place, sender in enumerate(pack):
        edit = moved(sender, held, source, target)
        edits.append(Edit(edit.site, edit.value, edit.where, slice(place * count, (place + 1) * count)))
    edits += [Edit(site, own[site].repeat(len(pack), 1, 1)) for site in _behind(layout, layer, freeze)]
    sites = {node: projection(layout, node, part) for node in into}
    rows = torch.arange(count, device=kept.at.device).repeat(len(pack))
    with reading(layout, list(sites.values())) as found:
        resume(layout, kept, edits, layer=layer, rows=rows)
    every = torch.arange(len(rows), device=rows.device)
    return {
        (site, node.role): found[site][every, target.roles[node.role][rows]][:, None] for node, site in sites.items()
    }


def projection(layout: Layout, node: Node, part: Part) -> Site:
    """A head's query, or the key or value that it shares with its group of heads."""
    head = node.head if part == "query" else node.head * layout.key_heads // layout.heads
    return Site(part, node.layer, head)
