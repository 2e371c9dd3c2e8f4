"""Cross-model activation patching (CMAP): what one version's heads hold, put into the other on the same input.

Prakash et al., arXiv:2402.14811, section 5. It means something only where one model was tuned from the other, so that
both write in one basis.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from uphold.core.progress import Progress, silent
from uphold.explain.circuits.effects import Effects
from uphold.explain.circuits.measures import Measure, of_all
from uphold.explain.circuits.patching import Held, moved, patched_one_by_one, sites_of
from uphold.explain.circuits.paths import Part, projection
from uphold.explain.circuits.prompts import BATCH, Node, Prompts
from uphold.explain.cmap import Side
from uphold.models.sites.hooks import Edit
from uphold.models.sites.layout import Layout, check_one_architecture
from uphold.models.sites.run import read, run
from uphold.models.sites.screen import attributions
from uphold.models.sites.site import Site

PARTS: tuple[Part, ...] = ("query", "key", "value")


def shared_parts(one: Layout, other: Layout) -> tuple[str, ...]:
    """What speaks against reading one model's activations in the other: one remark each, none where all is shared.

    Patching everything makes one model exactly the other only where embeddings, final norm and unembedding are shared.
    """
    notes = []
    for name, get in (("embeddings", "get_input_embeddings"), ("unembeddings", "get_output_embeddings")):
        weights = [getattr(layout.model, get)().weight.detach().float().cpu() for layout in (one, other)]
        if weights[0].shape != weights[1].shape:
            notes.append(f"the {name} have shapes {tuple(weights[0].shape)} and {tuple(weights[1].shape)}")
        elif not torch.equal(*weights):
            cosine = float(torch.cosine_similarity(weights[0].flatten(), weights[1].flatten(), dim=0))
            notes.append(f"the {name} differ (cosine {cosine:.4f}): read results beside the ceiling")
            if cosine < 0.9:
                notes.append(f"the {name} have little in common: was one model tuned from the other?")
    return tuple(notes)


def cross_patching(
    into: Layout,
    donor: Layout,
    prompts: Prompts,
    groups: Mapping[str, Iterable[Node]],
    *,
    side: Side = "output",
    parts: Sequence[Part] = PARTS,
    measure: Measure = "correct",
    batch: int = BATCH,
    progress: Progress = silent,
) -> dict[str, torch.Tensor]:
    """Patch each group of nodes, by itself, with what it holds in the donor on the same prompts.

    Args:
        into: the model that is patched.
        donor: the model that is taken from.
        prompts: what both are run on.
        groups: by name, nodes that are patched together; the roles of `input` patches are single positions.
        side: `output` patches what the heads write. `input` patches what they read by: their queries where they are,
            and keys and values at all earlier positions; what other heads write, and these heads elsewhere, stays.
        parts: which of query, key and value an `input` patch takes over.
        measure: what to measure.
        batch: prompts in one forward pass.
        progress: called after every pass.

    Returns:
        By group, the measure in each prompt, shape (rows,).

    Raises:
        ModelError: the models are not of one architecture.
    """
    check_one_architecture(into, donor)
    wanted = {name: tuple(nodes) for name, nodes in groups.items()}
    nodes = sorted({node for group in wanted.values() for node in group})
    found: dict[str, list[torch.Tensor]] = {name: [] for name in wanted}
    batches = list(prompts.batches(batch))
    for number, part in enumerate(batches):
        held, own = _activations(into, donor, part, nodes, side, parts)
        for name, group in wanted.items():
            if side == "output":
                edits = [moved(node, held, part, part) for node in group]
            else:
                edits = _inputs(into, group, held, own, part, parts)
            found[name].append(of_all(measure, part)(run(into, part.inputs, edits, at=part.at)).float().cpu())
        progress("patching across models", number + 1, len(batches))
    return {name: torch.cat(values) for name, values in found.items()}


def _activations(
    into: Layout, donor: Layout, prompts: Prompts, nodes: Sequence[Node], side: Side, parts: Sequence[Part]
) -> tuple[Held, Held]:
    """What the donor holds and, for `input` patches, what all heads of the layers write without a patch."""
    if side == "output":
        return read(donor, prompts.inputs, sites_of(nodes), at=prompts.at)[0], {}
    sites = [projection(into, node, part) for node in nodes for part in parts]
    held, _ = read(donor, prompts.inputs, sites, at=prompts.at)
    layers = sorted({node.layer for node in nodes})
    heads = [Site("head", layer, head) for layer in layers for head in range(into.heads)]
    return held, read(into, prompts.inputs, heads, at=prompts.at)[0]


def _inputs(
    layout: Layout, group: Sequence[Node], held: Held, own: Held, prompts: Prompts, parts: Sequence[Part]
) -> list[Edit]:
    edits: list[Edit] = []
    restored: dict[Site, torch.Tensor] = {}
    length = prompts.length
    for node in group:
        here = prompts.mask(node.role)
        earlier = here.flip(1).long().cumsum(1).flip(1) - here.long() > 0
        for part in parts:
            site = projection(layout, node, part)
            edits.append(Edit(site, held[site], here if part == "query" else earlier))
        restored[node.site] = restored.get(node.site, torch.ones(len(prompts), length).bool().to(here.device)) & ~here
    for layer in sorted({node.layer for node in group}):
        for head in range(layout.heads):
            site = Site("head", layer, head)
            # A shared key reaches all heads of its group: those that are not meant write as before.
            edits.append(Edit(site, own[site], restored.get(site)))
    return edits


def ceiling(
    into: Layout, donor: Layout, prompts: Prompts, *, measure: Measure = "correct", batch: int = BATCH
) -> torch.Tensor:
    """The measure with all that the donor's attention and feed-forward parts write, at all positions; shape (rows,).

    What the rest (embeddings, norm, unembedding) leaves possible: the donor's own measure where that is shared.
    """
    check_one_architecture(into, donor)
    sites = into.sites("attention", "mlp")
    found = []
    for part in prompts.batches(batch):
        held, _ = read(donor, part.inputs, sites, at=part.at)
        logits = run(into, part.inputs, [Edit(site, held[site]) for site in sites], at=part.at)
        found.append(of_all(measure, part)(logits).float().cpu())
    return torch.cat(found)


def cross_effects(
    into: Layout,
    donor: Layout,
    prompts: Prompts,
    nodes: Sequence[Node],
    *,
    measure: Measure = "correct",
    batch: int = BATCH,
    progress: Progress = silent,
) -> Effects:
    """What each node's output, by itself, taken from the donor changes: a table of gains by head."""
    check_one_architecture(into, donor)
    return patched_one_by_one(into, donor, prompts, prompts, nodes, measure, batch, progress)


def cross_screen(
    into: Layout,
    donor: Layout,
    prompts: Prompts,
    nodes: Sequence[Node],
    *,
    measure: Measure = "logit-difference",
    batch: int = BATCH,
) -> dict[Node, float]:
    """(a_donor - a_into) . dm/da in `into`, mean over prompts: what `cross_effects` of the measure is to first order.

    One backward pass for all nodes. A screen: what it ranks highest is to be patched.
    """
    check_one_architecture(into, donor)
    total = dict.fromkeys(nodes, 0.0)
    for part in prompts.batches(batch):
        held, _ = read(donor, part.inputs, sites_of(nodes), at=part.at)
        found = attributions(into, part.inputs, held, of_all(measure, part), at=part.at)
        for node in nodes:
            total[node] += float((found[node.site] * part.mask(node.role)).sum())
    return {node: value / len(prompts) for node, value in total.items()}
