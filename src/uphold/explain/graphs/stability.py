"""How firm a graph is: what becomes of it on other samples of the same images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from uphold.core.errors import UsageError
from uphold.core.progress import Progress, silent
from uphold.explain.graphs.build import graph_of, layers_of, sample
from uphold.explain.graphs.config import GraphConfig
from uphold.explain.graphs.graph import ClassGraph, GraphLayer


def stable_graph(
    model: nn.Module,
    images: torch.Tensor,
    label: int,
    *,
    ids: Sequence[str] | None = None,
    config: GraphConfig | None = None,
    draws: int = 20,
    seed: int = 0,
    progress: Progress = silent,
) -> ClassGraph:
    """The graph of a class with the bootstrap stability of each cause and edge.

    The kept images are drawn anew with replacement, and the whole graph is found again on each draw: what is selected
    above decides what is tested below.

    Args:
        model: see `uphold.explain.graphs.build.class_graph`, as for the other arguments not named here.
        images: of the class.
        label: the class.
        ids: names of the images.
        config: the options.
        draws: how often.
        seed: of the draws.
        progress: called after every draw.
    """
    if draws < 1:
        raise UsageError(f"bootstrap stability needs 1 or more draws, not {draws}")
    config = config or GraphConfig()
    found = sample(model, images, label, ids, config)
    graph = graph_of(found, config)
    generator = torch.Generator().manual_seed(seed)
    causes: Counter[tuple[str, int]] = Counter()
    edges: Counter[tuple[str, int, int]] = Counter()
    for draw in range(draws):
        index = torch.randint(len(found.images), (len(found.images),), generator=generator)
        again = found._replace(clean=found.clean.rows(index))
        for layer in layers_of(again, replace(config, edges=False)):
            causes.update((layer.name, cause) for cause in layer.causes)
            edges.update((layer.name, *pair) for pair in layer.pairs)
        progress("bootstrap", draw + 1, draws)

    def shared(layer: GraphLayer) -> GraphLayer:
        return replace(
            layer,
            stability=tuple(causes[layer.name, cause] / draws for cause in layer.causes),
            edges=tuple(
                replace(edge, stability=edges[layer.name, edge.effect, edge.cause] / draws) for edge in layer.edges
            ),
        )

    return replace(graph, layers=tuple(shared(layer) for layer in graph.layers))
