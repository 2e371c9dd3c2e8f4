"""Which heads do the task: ranked by ablation or by path patching, screened by gradients, confirmed exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from uphold.core.errors import EmptyError, UsageError
from uphold.core.progress import Progress, silent
from uphold.explain.circuits.ablation import Bench, Circuit
from uphold.explain.circuits.effects import Effects
from uphold.explain.circuits.measures import Measure, of_all
from uphold.explain.circuits.patching import sites_of
from uphold.explain.circuits.paths import Part, Receivers, path_patching
from uphold.explain.circuits.prompts import BATCH, Node, Prompts, nodes_of
from uphold.models.sites.layout import Layout
from uphold.models.sites.screen import attributions
from uphold.models.sites.site import Site


def ablation_effects(
    tried: Bench, nodes: Sequence[Node] | None = None, *, measure: Measure = "correct", progress: Progress = silent
) -> Effects:
    """Set each node, by itself, to its mean. The change of `correct` is minus the drop of accuracy."""
    chosen = tuple(tried.universe if nodes is None else nodes)
    circuits = [tried.whole, *(tried.whole - {node} for node in chosen)]
    found = tried.solved(circuits, progress).float() if measure == "correct" else None
    found = tried.measure(circuits, measure, progress) if found is None else found
    return Effects(chosen, measure, found[0], found[1:])


def ablation_screen(
    layout: Layout, prompts: Prompts, means: Mapping[Site, torch.Tensor], nodes: Sequence[Node], *, batch: int = BATCH
) -> dict[Node, float]:
    """To first order, what the logit difference loses or gains when each node is set to its mean.

    One forward and one backward pass for all nodes (arXiv:2310.10348): a screen, to be confirmed by
    `ablation_effects` of the strongest.
    """
    source = {site: means[site] for site in sites_of(nodes)}
    total = dict.fromkeys(nodes, 0.0)
    for part in prompts.batches(batch):
        found = attributions(layout, part.inputs, source, of_all("logit-difference", part), at=part.at)
        for node in nodes:
            total[node] += float((found[node.site] * part.mask(node.role)).sum())
    return {node: value / len(prompts) for node, value in total.items()}


def strongest(scores: Mapping[Node, float], count: int) -> list[Node]:
    """The nodes with the largest scores by absolute size."""
    return sorted(scores, key=lambda node: (-abs(scores[node]), node))[:count]


def grow(tried: Bench, effects: Effects, target: float, progress: Progress = silent) -> Circuit:
    """The shortest beginning of the ranking whose F reaches `target` times that of the model.

    Nodes come in the order of what the measure loses without them; those that it does not lose by are not taken.
    Use other prompts to measure the result on.

    Raises:
        EmptyError: no node counts, or all that count together do not reach it.
    """
    ranked = [node for node, change in effects.ranked() if change < 0]
    if not ranked:
        raise EmptyError("no node lowers the measure when it is ablated: the model does not do this task by its heads")
    accuracies = tried.accuracies([ranked[:count] for count in range(1, len(ranked) + 1)], progress)
    wanted = target * tried.accuracy(tried.whole)
    for count, accuracy in enumerate(accuracies, 1):
        if accuracy >= wanted:
            return frozenset(ranked[:count])
    raise EmptyError(
        f"all {len(ranked)} nodes that count reach an accuracy of {max(accuracies):.3f}, {wanted:.3f} was asked for: "
        "lower the target"
    )


@dataclass(frozen=True)
class Round:
    """One round of path patching: heads at a role that feed the answer, or those found in an earlier round."""

    group: str
    role: str
    into: str | None = None
    """The group whose heads receive; None for the logits."""
    part: Part = "query"
    """What they receive by."""
    top: int = 10
    """Heads that later rounds lead into."""
    keep: int | None = None
    """Heads that count as the group; as many as `top` where None."""


ENTITY_TRACKING = (
    Round("value fetcher", "last", None, top=20, keep=58),
    Round("position transmitter", "last", "value fetcher", "query", top=5, keep=10),
    Round("position detector", "query", "position transmitter", "value", top=10, keep=25),
    Round("structure reader", "label", "position detector", "value", top=5),
)
"""The paper's four rounds, with its numbers for Llama-7B; roles are those of `entity_tracking.box_prompts`."""


def path_groups(
    layout: Layout,
    clean: Prompts,
    corrupt: Prompts,
    rounds: Sequence[Round],
    *,
    measure: Measure = "probability",
    progress: Progress = silent,
) -> dict[str, tuple[Node, ...]]:
    """Find groups of heads from the answer backwards (arXiv:2402.14811, section 3.1).

    A head that a later round finds at the same role is taken out of the earlier group: it counts once.

    Returns:
        By group, its nodes, the most important first.

    Raises:
        UsageError: a round leads into a group that no earlier round finds.
    """
    ranked: dict[str, list[Node]] = {}
    tops: dict[str, int] = {}
    keeps: dict[str, int] = {}
    for one in rounds:
        if one.into is not None and one.into not in ranked:
            raise UsageError(f"round '{one.group}' leads into '{one.into}', which no earlier round finds")
        receivers = None
        if one.into is not None:
            # With all other heads frozen a sender changes its own position only: it is there that receivers take it up,
            # those behind read its keys and values from there.
            into = [node._replace(role=one.role) for node in ranked[one.into][: tops[one.into]]]
            receivers = Receivers(tuple(into), one.part)
        effects = path_patching(
            layout, clean, corrupt, nodes_of(layout, (one.role,)), receivers, measure=measure, progress=progress
        )
        scored = effects.ranked(relative=measure == "probability")
        ranked[one.group] = [node for node, score in scored if score < 0]
        tops[one.group], keeps[one.group] = one.top, one.top if one.keep is None else one.keep
        if not ranked[one.group]:
            raise EmptyError(f"round '{one.group}': no head at '{one.role}' lowers the measure; the search ends here")
    found: dict[str, tuple[Node, ...]] = {}
    taken: set[Node] = set()
    for name in reversed(ranked):
        found[name] = tuple(node for node in ranked[name][: keeps[name]] if node not in taken)
        taken |= set(found[name])
    return {name: found[name] for name in ranked}
