"""The graph of a class: what it holds, and its file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from uphold.core.errors import CorruptError
from uphold.core.storage import read_json, write_json

SCHEMA = "uphold.class-graph.v1"


@dataclass(frozen=True)
class Edge:
    """A connection between a unit that a layer takes and one that it gives."""

    effect: int
    """The unit that it gives."""
    cause: int
    """The unit that it takes."""
    change: float
    """Mean change of the outcome when this edge alone is cut."""
    p: float
    """Two-sided p-value of the paired t test of that change, not adjusted."""
    stability: float | None = None
    """Share of bootstrap samples whose graph has the edge, in [0, 1]."""


@dataclass(frozen=True)
class GraphLayer:
    """One layer of a graph."""

    name: str
    """Path of the layer in the model."""
    kind: str
    """`linear` or `conv`."""
    inputs: int
    """Units that the layer takes."""
    outputs: int
    """Units that it gives."""
    effects: tuple[int, ...]
    """Those that belong to the graph, of what it gives."""
    causes: tuple[int, ...]
    """Those of what it takes whose cut towards the effects lowers the outcome."""
    tested: bool = True
    """False where all inputs are causes without a test."""
    change: tuple[float, ...] = ()
    """Mean change of the outcome when a unit is cut from all effects at once, for all units; empty where not tested."""
    q: tuple[float, ...] = ()
    """Adjusted p-value, for all units."""
    shift: tuple[float, ...] = ()
    """Mean KL(softmax cut || softmax clean) in nats, for all units."""
    fallback: str = ""
    """See `uphold.explain.graphs.testing.Tested`."""
    screened: int | None = None
    """How many units were cut, where not all."""
    screening: float | None = None
    """Rank correlation (Spearman) of the first-order estimates with the exact effects of the units that were cut."""
    edges: tuple[Edge, ...] = ()
    """Every pair of a cause and an effect, where they were cut one by one."""
    stability: tuple[float, ...] = ()
    """Share of bootstrap samples in which each of `causes` is one, in [0, 1]."""

    @property
    def saturated(self) -> bool:
        """Whether every unit is a cause: to cut them all cannot show that these units are needed."""
        return self.tested and len(self.causes) == self.inputs

    @property
    def pairs(self) -> frozenset[tuple[int, int]]:
        """The edges as (effect, cause)."""
        return frozenset((effect, cause) for effect in self.effects for cause in self.causes)


@dataclass(frozen=True)
class ClassGraph:
    """Units of a classifier that are causes of the logit of a class, from the last layer to the first."""

    label: int
    layers: tuple[GraphLayer, ...]
    """From the classifier down. Fewer than the model has where a layer has no cause."""
    images: tuple[str, ...]
    """Names of the images."""
    images_hash: str
    """SHA-256 of their contents, in order."""
    weights_hash: str
    """SHA-256 of the model's tensors."""
    scale: float
    """Mean over images of the logit of the class minus the mean of all logits."""
    logit: float
    """Mean logit of the class."""
    spread: float
    """Standard deviation of that over images."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """The configuration."""

    def layer(self, name: str) -> GraphLayer | None:
        """The layer of that name, None where the graph ends before it."""
        return next((layer for layer in self.layers if layer.name == name), None)

    @property
    def saturated(self) -> tuple[str, ...]:
        """Names of saturated layers."""
        return tuple(layer.name for layer in self.layers if layer.saturated)

    def __str__(self) -> str:
        sizes = ", ".join(
            f"{layer.name} {len(layer.causes)}/{layer.inputs}" + (" (all: saturated)" if layer.saturated else "")
            for layer in self.layers
        )
        return f"class {self.label}, {len(self.images)} images: causes {sizes}"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"schema": SCHEMA, **asdict(self)}

    def write(self, path: Path) -> None:
        """Write it as JSON, atomically."""
        write_json(path, self.to_dict())


def read_graph(path: Path) -> ClassGraph:
    """The graph in a file.

    Raises:
        DataError: the file is not there.
        CorruptError: it holds no graph.
    """
    value = read_json(path)
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        raise CorruptError(f"{path} holds no causal graph ({SCHEMA}); make it again")
    try:
        layers = tuple(_layer(one) for one in value["layers"])
        rest = {name: one for name, one in value.items() if name not in ("schema", "layers", "images")}
        return ClassGraph(layers=layers, images=tuple(value["images"]), **rest)
    except (KeyError, TypeError) as error:
        raise CorruptError(f"{path} is no whole causal graph ({error}); make it again") from error


def _layer(value: Mapping[str, Any]) -> GraphLayer:
    plain: dict[str, Any] = {
        name: tuple(one) if isinstance(one, list) else one for name, one in value.items() if name != "edges"
    }
    return GraphLayer(**plain, edges=tuple(Edge(**one) for one in value["edges"]))


def jaccard(one: ClassGraph, other: ClassGraph) -> dict[str, float]:
    """Overlap of the causes of two graphs by layer, |both| / |either|, in [0, 1]; 1 where both have none.

    Layers in which all inputs are causes without a test are left out.
    """
    found = {}
    for name in dict.fromkeys(layer.name for graph in (one, other) for layer in graph.layers if layer.tested):
        first, second = (set(layer.causes) if (layer := graph.layer(name)) else set() for graph in (one, other))
        either = first | second
        found[name] = len(first & second) / len(either) if either else 1.0
    return found
