"""Activation patching of heads: each node takes what it holds on another prompt, and what becomes of the answer.

The prompts are aligned by role: what a head holds where the role is in the source goes where the role is in the target.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from uphold.core.errors import UsageError
from uphold.core.progress import Progress, silent
from uphold.explain.circuits.effects import Effects
from uphold.explain.circuits.measures import Measure, measured
from uphold.explain.circuits.prompts import BATCH, OTHER, Node, Prompts
from uphold.models.sites.hooks import Edit
from uphold.models.sites.layout import Layout
from uphold.models.sites.resume import keep
from uphold.models.sites.run import read
from uphold.models.sites.site import Site
from uphold.models.sites.sweep import sweep

Held = Mapping[Site, torch.Tensor]
"""What sites hold, each of shape (rows, positions, width)."""


def activation_patching(
    layout: Layout,
    clean: Prompts,
    corrupt: Prompts,
    nodes: Sequence[Node],
    *,
    measure: Measure = "logit-difference",
    batch: int = BATCH,
    progress: Progress = silent,
) -> Effects:
    """Patch each node of the clean run, by itself, with what it holds in the corrupt run.

    Args:
        layout: of the model.
        clean: the prompts that are run.
        corrupt: as many prompts, those to take from, row by row; for nodes at `other`, of the same length.
        nodes: what to patch.
        measure: what to measure.
        batch: prompts in one forward pass of the corrupt run.
        progress: called after every batch.

    Raises:
        UsageError: the prompts do not go together.
    """
    check_paired(clean, corrupt)
    return patched_one_by_one(layout, layout, clean, corrupt, nodes, measure, batch, progress)


def patched_one_by_one(
    into: Layout,
    donor: Layout,
    clean: Prompts,
    source: Prompts,
    nodes: Sequence[Node],
    measure: Measure,
    batch: int,
    progress: Progress,
) -> Effects:
    """Patch each node of a run of `into`, by itself, with what it holds in a run of `donor`."""
    sites = sites_of(nodes)
    before, after = [], []
    parts = list(zip(clean.batches(batch), source.batches(batch), strict=True))
    for number, (ours, theirs) in enumerate(parts):
        own, _ = read(into, ours.inputs, sites, at=ours.at)
        held, _ = read(donor, theirs.inputs, sites, at=theirs.at)
        kept = keep(into, ours.inputs, ours.at)
        metric = measured(measure, ours)
        found = sweep(into, kept, [[moved(node, held, theirs, ours)] for node in nodes], metric).cpu()
        clear = metric(kept.logits, torch.arange(len(ours), device=ours.at.device)).float().cpu()
        same = torch.stack([unmoved(node, own, held, theirs, ours) for node in nodes])
        before.append(clear)
        after.append(torch.where(same, clear, found))
        progress("activation patching", number + 1, len(parts))
    return Effects(tuple(nodes), measure, torch.cat(before), torch.cat(after, 1))


def check_paired(clean: Prompts, corrupt: Prompts) -> None:
    """Refuse prompts that cannot be patched into each other row by row."""
    if len(clean) != len(corrupt):
        raise UsageError(f"{len(clean)} prompts and {len(corrupt)} to take from: expected one for each")


def sites_of(nodes: Sequence[Node]) -> list[Site]:
    """The heads of nodes, each once."""
    return list(dict.fromkeys(node.site for node in nodes))


def moved(node: Node, held: Held, source: Prompts, target: Prompts) -> Edit:
    """The edit that gives a node of the target what it holds in the source.

    Raises:
        UsageError: positions without a role have no counterpart, because the prompts differ in length.
    """
    return Edit(node.site, _at_role(node, held[node.site], source, target), target.mask(node.role))


def unmoved(node: Node, own: Held, held: Held, source: Prompts, target: Prompts) -> torch.Tensor:
    """In which rows a node holds the same in both runs, so that to patch it changes nothing; bool, shape (rows,)."""
    same = (_at_role(node, held[node.site], source, target) == own[node.site]).all(-1)
    return (same | ~target.mask(node.role)).all(1).cpu()


def _at_role(node: Node, values: torch.Tensor, source: Prompts, target: Prompts) -> torch.Tensor:
    if node.role == OTHER:
        if source.length != target.length:
            raise UsageError(
                f"node {node}: prompts of {source.length} and {target.length} positions have no '{OTHER}' positions "
                "in common; patch nodes at roles"
            )
        return values
    if node.role not in source.roles:
        source.mask(node.role)
    rows = torch.arange(len(values), device=values.device)
    return values[rows, source.roles[node.role].to(values.device)][:, None]
