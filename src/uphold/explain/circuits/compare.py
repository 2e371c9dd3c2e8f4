"""Which heads carry what a new version does better: patched across, in both directions, beside the ceiling."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from uphold.core.errors import UsageError
from uphold.core.progress import Progress, silent
from uphold.explain.circuits.ablation import random_circuit
from uphold.explain.circuits.cross import (
    ceiling,
    cross_patching,
    shared_parts,
)
from uphold.explain.circuits.loaded import layout_for
from uphold.explain.circuits.prompts import OTHER, Node, Prompts, nodes_of
from uphold.explain.cmap import CmapConfig
from uphold.models.sites.layout import Layout, check_one_architecture


@dataclass(frozen=True)
class Patched:
    """A group of nodes, patched. Accuracies lie in [0, 1]."""

    nodes: tuple[Node, ...]
    new_in_old: float
    """Accuracy of the old model with the new one's activations there."""
    old_in_new: float
    """Accuracy of the new model with the old one's."""
    random_in_old: float | None
    """Mean of `new_in_old` over random groups with as many nodes per role; None where the group is all nodes."""


@dataclass(frozen=True)
class CmapReport:
    """What came of patching across versions."""

    old: float
    """Accuracy of the old model."""
    new: float
    """Accuracy of the new model."""
    ceiling: float
    """Of the old model with all that attention and feed-forward parts of the new one write."""
    groups: Mapping[str, Patched]
    prompts: int
    side: str
    notes: tuple[str, ...]
    """What speaks against reading one model's activations in the other."""

    def recovered(self, group: str) -> float:
        """Which share of the gain from old to new a group carries by itself.

        Raises:
            UsageError: the models are equally accurate: there is no gain.
        """
        if self.new == self.old:
            raise UsageError(f"both models have an accuracy of {self.old:.3f}: there is no gain to share out")
        return (self.groups[group].new_in_old - self.old) / (self.new - self.old)

    def __str__(self) -> str:
        lines = [
            f"{self.prompts} prompts: old {self.old:.3f}, new {self.new:.3f}, "
            f"everything of the new in the old {self.ceiling:.3f}"
        ]
        ranked = sorted(self.groups, key=lambda name: -self.groups[name].new_in_old)
        for name in ranked:
            one = self.groups[name]
            control = "" if one.random_in_old is None else f", random groups {one.random_in_old:.3f}"
            share = "" if self.new == self.old else f" ({self.recovered(name):+.0%} of the gain)"
            lines.append(f"{name}: new in old {one.new_in_old:.3f}{share}{control}; old in new {one.old_in_new:.3f}")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "old": self.old,
            "new": self.new,
            "ceiling": self.ceiling,
            "prompts": self.prompts,
            "side": self.side,
            "notes": list(self.notes),
            "groups": {
                name: {
                    "nodes": [str(node) for node in one.nodes],
                    "new_in_old": one.new_in_old,
                    "old_in_new": one.old_in_new,
                    "random_in_old": one.random_in_old,
                }
                for name, one in self.groups.items()
            },
        }


def by_layer_and_role(nodes: Iterable[Node]) -> dict[str, tuple[Node, ...]]:
    """Nodes of one block at one role, as a group each."""
    found: dict[str, list[Node]] = {}
    for node in sorted(nodes):
        found.setdefault(f"block {node.layer} at {node.role}", []).append(node)
    return {name: tuple(group) for name, group in found.items()}


def compare(
    old: Any,
    new: Any,
    prompts: Prompts,
    groups: Mapping[str, Iterable[Node]] | None,
    config: CmapConfig,
    progress: Progress = silent,
) -> CmapReport:
    """See `uphold.explain.cmap.cmap`."""
    into, donor = layout_for(old), layout_for(new)
    check_one_architecture(into, donor)
    roles = list(prompts.roles) if config.side == "input" else [*prompts.roles, OTHER]
    every = nodes_of(into, roles)
    wanted = {name: tuple(dict.fromkeys(nodes)) for name, nodes in (groups or by_layer_and_role(every)).items()}
    controls = _controls(wanted, every, config)
    tried = {"": (), **wanted, **controls}
    if len(tried) != 1 + len(wanted) + len(controls):
        raise UsageError("a group of nodes needs a name that is not empty and does not end in '(random N)'")
    here = _accuracies(into, donor, prompts, tried, config, progress)
    there = _accuracies(donor, into, prompts, {"": (), **wanted}, config, progress)
    found = {}
    for name, nodes in wanted.items():
        chance = [here[control] for control in controls if control.startswith(f"{name} (random ")]
        mean = sum(chance) / len(chance) if chance else None
        found[name] = Patched(nodes, here[name], there[name], mean)
    top = float(ceiling(into, donor, _on(into, prompts), batch=config.batch).double().mean())
    return CmapReport(here[""], there[""], top, found, len(prompts), config.side, shared_parts(into, donor))


def _accuracies(
    into: Layout,
    donor: Layout,
    prompts: Prompts,
    groups: Mapping[str, tuple[Node, ...]],
    config: CmapConfig,
    progress: Progress,
) -> dict[str, float]:
    found = cross_patching(
        into, donor, _on(into, prompts), groups, side=config.side, batch=config.batch, progress=progress
    )
    return {name: float(values.double().mean()) for name, values in found.items()}


def _on(layout: Layout, prompts: Prompts) -> Prompts:
    return prompts.to(next(layout.model.parameters()).device)


def _controls(
    groups: Mapping[str, tuple[Node, ...]], every: list[Node], config: CmapConfig
) -> dict[str, tuple[Node, ...]]:
    generator = torch.Generator().manual_seed(config.seed)
    return {
        f"{name} (random {number})": tuple(sorted(random_circuit(nodes, every, generator)))
        for name, nodes in groups.items()
        if len(nodes) < len(every)
        for number in range(config.randoms)
    }
