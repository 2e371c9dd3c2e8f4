"""Find a circuit on one half of the prompts and measure it on the other, in one model or in two versions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from uphold.core.errors import EmptyError
from uphold.core.progress import Progress, silent
from uphold.core.stats.proportions import proportion_interval
from uphold.core.stats.types import Interval
from uphold.explain.circuit import CircuitConfig
from uphold.explain.circuits.ablation import (
    Bench,
    Circuit,
    Completeness,
    bench,
    completeness,
    minimality,
    random_accuracies,
)
from uphold.explain.circuits.discovery import ablation_effects, ablation_screen, grow, strongest
from uphold.explain.circuits.effects import Effects, jaccard, stability
from uphold.explain.circuits.loaded import layout_for
from uphold.explain.circuits.means import mean_activations
from uphold.explain.circuits.prompts import OTHER, Node, Prompts, halves, nodes_of
from uphold.models.sites.layout import Layout


@dataclass(frozen=True)
class Standing:
    """How a circuit does in one model, on prompts that did not choose it. Accuracies lie in [0, 1]."""

    model: float
    """F of the whole model."""
    circuit: float
    """F of the circuit alone."""
    interval: Interval
    """95 %, of the circuit's."""
    random: tuple[float, ...]
    """F of random circuits with as many nodes per role."""

    @property
    def faithfulness(self) -> float:
        """F of the circuit as a share of the model's."""
        return self.circuit / self.model

    @property
    def random_mean(self) -> float:
        """Mean F of the random circuits."""
        return sum(self.random) / len(self.random)

    def __str__(self) -> str:
        return (
            f"model {self.model:.3f}, circuit {self.circuit:.3f} ({self.interval.low:.3f} to {self.interval.high:.3f}),"
            f" random circuits {self.random_mean:.3f}; faithfulness {self.faithfulness:.2f}"
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "model": self.model,
            "circuit": self.circuit,
            "interval": list(self.interval),
            "random": list(self.random),
            "faithfulness": self.faithfulness,
        }


@dataclass(frozen=True)
class CircuitReport:
    """A circuit of the old model, and how it does."""

    nodes: tuple[Node, ...]
    """The most important first."""
    effects: Effects
    """Of ablating each node by itself in the old model, on the prompts that chose."""
    stability: float
    """Mean pairwise Jaccard index of the strongest nodes over resamples of these prompts."""
    old: Standing
    minimality: Mapping[Node, float]
    completeness: Completeness
    new: Standing | None = None
    """The old model's circuit in the new model."""
    new_nodes: tuple[Node, ...] | None = None
    """The circuit that the same search finds in the new model; None where there is no new model."""

    @property
    def overlap(self) -> float | None:
        """Jaccard index of both circuits."""
        return None if self.new_nodes is None else jaccard(self.nodes, self.new_nodes)

    def __str__(self) -> str:
        names = ", ".join(map(str, self.nodes))
        lines = [f"circuit of {len(self.nodes)} of {len(self.effects.nodes)} nodes: {names}", f"old: {self.old}"]
        if self.new is not None and self.new_nodes is not None:
            shared = len(set(self.nodes) & set(self.new_nodes))
            lines.append(f"new: {self.new}")
            lines.append(f"the new model's own circuit has {len(self.new_nodes)} nodes, {shared} of them in both")
        idle = [str(node) for node, value in self.minimality.items() if value < 0.01]
        lines.append(f"completeness: mean gap {self.completeness.mean_gap:.3f}; stability {self.stability:.2f}")
        lines.append(f"nodes that add less than 1 %: {', '.join(idle) or 'none'}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """For JSON; a node without which nothing is left has no finite minimality and null there."""
        infinite = float("inf")
        return {
            "nodes": [str(node) for node in self.nodes],
            "effects": self.effects.to_dict(),
            "stability": self.stability,
            "old": self.old.to_dict(),
            "new": None if self.new is None else self.new.to_dict(),
            "new_nodes": None if self.new_nodes is None else [str(node) for node in self.new_nodes],
            "overlap": self.overlap,
            "minimality": {str(node): None if value == infinite else value for node, value in self.minimality.items()},
            "completeness": {
                "random": [list(pair) for pair in self.completeness.random],
                "mean_gap": self.completeness.mean_gap,
                "groups": {name: list(pair) for name, pair in self.completeness.groups.items()},
            },
        }


def find(
    old: Any,
    prompts: Prompts,
    new: Any,
    reference: Prompts | None,
    config: CircuitConfig,
    progress: Progress = silent,
) -> CircuitReport:
    """See `uphold.explain.circuit.circuit`."""
    choosing, scoring = halves(prompts, config.seed)
    found = _search(layout_for(old), choosing, scoring, reference, config, progress)
    ranked = tuple(node for node, _ in found.effects.ranked() if node in found.circuit)
    standing = _standing(found.scored, found.circuit, config)
    report = CircuitReport(
        ranked,
        found.effects,
        stability(found.effects, len(ranked), seed=config.seed),
        standing,
        minimality(found.scored, ranked, progress=progress),
        completeness(found.scored, ranked, draws=config.subsets, seed=config.seed, progress=progress),
    )
    if new is None:
        return report
    later = _search(layout_for(new), choosing, scoring, reference, config, progress)
    own = tuple(node for node, _ in later.effects.ranked() if node in later.circuit)
    return CircuitReport(
        report.nodes,
        report.effects,
        report.stability,
        report.old,
        report.minimality,
        report.completeness,
        _standing(later.scored, found.circuit, config),
        own,
    )


@dataclass(frozen=True)
class _Found:
    circuit: Circuit
    effects: Effects
    scored: Bench


def _search(
    layout: Layout,
    choosing: Prompts,
    scoring: Prompts,
    reference: Prompts | None,
    config: CircuitConfig,
    progress: Progress,
) -> _Found:
    device = next(layout.model.parameters()).device
    choosing, scoring = choosing.to(device), scoring.to(device)
    means = mean_activations(
        layout, choosing if reference is None else reference.to(device), batch=config.batch, progress=progress
    )
    universe = nodes_of(layout, [*choosing.roles, OTHER])
    tried = bench(layout, choosing, means, universe, batch=config.batch)
    if tried.accuracy(tried.whole) == 0:
        raise EmptyError(f"the model solves none of the {len(choosing)} prompts: there is no circuit to look for")
    nodes = universe
    if config.confirm is not None:
        nodes = strongest(ablation_screen(layout, choosing, means, universe, batch=config.batch), config.confirm)
    effects = ablation_effects(tried, nodes, progress=progress)
    circuit = grow(tried, effects, config.target, progress)
    return _Found(circuit, effects, bench(layout, scoring, means, universe, batch=config.batch))


def _standing(scored: Bench, circuit: Circuit, config: CircuitConfig) -> Standing:
    model = scored.accuracy(scored.whole)
    if model == 0:
        raise EmptyError("the model solves none of the prompts to measure on: faithfulness is a share of its accuracy")
    right = scored.solved([circuit])[0]
    interval = proportion_interval(int(right.sum()), len(right), method="wilson")
    others = random_accuracies(scored, circuit, count=config.randoms, seed=config.seed)
    return Standing(model, float(right.double().mean()), interval, tuple(others))
