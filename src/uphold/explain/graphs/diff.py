"""What an update did to the graph of a class: the edges that it gained, lost or re-weighted."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import nn

from uphold.core.errors import EmptyError, NotComparableError, UsageError
from uphold.core.progress import Progress, silent
from uphold.core.stats import benjamini_hochberg
from uphold.core.storage import write_json
from uphold.explain.graphs.build import Sample, edge_changes, graph_of, sample
from uphold.explain.graphs.config import PAPER, GraphConfig
from uphold.explain.graphs.graph import ClassGraph
from uphold.explain.graphs.testing import paired_p
from uphold.models.patches.make import make
from uphold.models.patches.patch import Patch

SCHEMA = "uphold.class-graph-diff.v1"
Kind = Literal["gained", "lost", "re-weighted", "same"]


@dataclass(frozen=True)
class EdgeChange:
    """An edge of the old graph, the new one or both."""

    layer: str
    effect: int
    cause: int
    kind: Kind
    """`gained` and `lost`: in the new or the old graph only; `re-weighted`: in both, and changed; `same`: in both."""
    old: float
    """Mean change of the outcome when the edge alone is cut from the old model."""
    new: float
    """The same of the new one, on the same images."""
    q: float
    """Adjusted p-value, over all edges, of the paired test of new - old."""
    changed: bool
    """Whether q is at most alpha and |new - old| at least `min_effect` of the mean centred logit."""


@dataclass(frozen=True)
class GraphDiff:
    """Two graphs of one class on the same images, and what differs."""

    old: ClassGraph
    new: ClassGraph
    edges: tuple[EdgeChange, ...]
    """By size of the difference, the largest first."""

    def counts(self, changed: bool = True) -> dict[Kind, int]:
        """How many edges of each kind; of those that changed beyond noise, or of all."""
        return {
            kind: sum(edge.kind == kind and (edge.changed or not changed) for edge in self.edges)
            for kind in get_args(Kind)
        }

    def __str__(self) -> str:
        beyond, all_edges = self.counts(), self.counts(changed=False)
        parts = ", ".join(f"{kind} {beyond[kind]} of {all_edges[kind]}" for kind in ("gained", "lost", "re-weighted"))
        return (
            f"class {self.old.label}, {len(self.old.images)} images: {parts}, same {all_edges['same']}; logit "
            f"{self.old.logit:.2f} to {self.new.logit:.2f}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"schema": SCHEMA, "old": self.old.to_dict(), "new": self.new.to_dict(),
                "edges": [asdict(edge) for edge in self.edges]}  # fmt: skip

    def write(self, path: Path) -> None:
        """Write it as JSON, atomically."""
        write_json(path, self.to_dict())


class Row(NamedTuple):
    """A unit that a layer gives, and by how much its edges changed."""

    layer: str
    unit: int
    change: float
    """Sum of |new - old| over changed edges that end in it."""


def diff(
    old: nn.Module,
    new: nn.Module,
    images: torch.Tensor,
    label: int,
    *,
    ids: Sequence[str] | None = None,
    config: GraphConfig | None = None,
    progress: Progress = silent,
) -> GraphDiff:
    """Compare the graphs of a class in two versions of a model.

    Both graphs come from the images that the old model gets right, whatever the new one says of them, and effects of
    both are shares of the old model's mean centred logit.

    Args:
        old: the version before.
        new: the version after, with the same layers.
        images: of the class, shape (n, ...).
        label: the class.
        ids: names of the images.
        config: the options.
        progress: called after every pass.

    Raises:
        NotComparableError: the two do not have the same layers.
        EmptyError: the old model gets none of the images right, or only one.
        UsageError: an option or the class cannot be.
        ModelError: a model has branches or layers that cannot be treated.
    """
    config = config or GraphConfig()
    before = sample(old, images, label, ids, config)
    if len(before.images) < 2:
        raise EmptyError("a comparison of graphs needs 2 images that the old model gets right, not 1; give more images")
    after = sample(new, before.images, label, before.ids, config, wrong=True, scale=before.scale)
    _check_alike(before, after)
    graphs = graph_of(before, config, progress), graph_of(after, config, progress)
    names, means, p = [], [], []
    for number, layer in enumerate(before.chain.layers):
        sets = [set(found.pairs) if (found := graph.layer(layer.name)) else set() for graph in graphs]
        pairs = sorted(sets[0] | sets[1])
        if not pairs:
            continue
        first, second = (edge_changes(one, number, pairs, config, progress) for one in (before, after))
        names += [(layer.name, *pair, pair in sets[0], pair in sets[1]) for pair in pairs]
        means += list(zip(first.mean(1).tolist(), second.mean(1).tolist(), strict=True))
        p += paired_p(second - first, two_sided=True).tolist()
    q = benjamini_hochberg(np.asarray(p)).tolist()
    least = config.min_effect * before.scale
    edges = [_change(name, pair, one, least, config.alpha) for name, pair, one in zip(names, means, q, strict=True)]
    edges.sort(key=lambda edge: (-abs(edge.new - edge.old), edge.layer, edge.effect, edge.cause))
    return GraphDiff(*graphs, tuple(edges))


def changed_rows(diffs: Sequence[GraphDiff]) -> tuple[Row, ...]:
    """Units whose incoming edges changed in any of the comparisons, those that changed most first."""
    sums: defaultdict[tuple[str, int], float] = defaultdict(float)
    for one in diffs:
        for edge in one.edges:
            if edge.changed:
                sums[edge.layer, edge.effect] += abs(edge.new - edge.old)
    found = [Row(layer, unit, change) for (layer, unit), change in sums.items()]
    return tuple(sorted(found, key=lambda row: (-row.change, row.layer, row.unit)))


def revert(old: nn.Module, new: nn.Module, rows: Sequence[Row]) -> Patch:
    """A patch for the new model that gives rows of its layers the old weights and biases back.

    Args:
        old: the version before.
        new: the version after.
        rows: which; see `changed_rows`.

    Raises:
        UsageError: there is no row or no such layer.
        EmptyError: the two models do not differ there.
    """
    if not rows:
        raise UsageError("no row was given: no edge changed, or the list was cut to nothing")
    before, after = old.state_dict(), new.state_dict()
    target = {name: tensor.clone() for name, tensor in after.items()}
    for row in rows:
        if f"{row.layer}.weight" not in target:
            raise UsageError(f"the new model has no weight '{row.layer}.weight': give the models that were compared")
        for part in ("weight", "bias"):
            name = f"{row.layer}.{part}"
            if name in target:
                target[name][row.unit] = before[name][row.unit]
    return make(dict(after), target, method="causal-graph", paper=PAPER, facts={"rows": [list(row) for row in rows]})


def _check_alike(before: Sample, after: Sample) -> None:
    ours, theirs = (
        [(layer.name, layer.kind, layer.outputs, layer.inputs) for layer in one.chain.layers] for one in (before, after)
    )
    if ours != theirs:
        first = next((pair for pair in zip(ours, theirs, strict=False) if pair[0] != pair[1]), None)
        what = f"{first[0]} in the old, {first[1]} in the new" if first else f"{len(ours)} and {len(theirs)} layers"
        raise NotComparableError(f"the two models do not have the same layers ({what}); compare versions of one model")


def _change(
    name: tuple[str, int, int, bool, bool], means: tuple[float, float], q: float, least: float, alpha: float
) -> EdgeChange:
    layer, effect, cause, had, has = name
    old, new = means
    changed = q <= alpha and abs(new - old) >= least and new != old
    kind: Kind = "lost" if not has else "gained" if not had else "re-weighted" if changed else "same"
    return EdgeChange(layer, effect, cause, kind, old, new, q, changed)
