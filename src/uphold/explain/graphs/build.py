"""Finding the graph of a class, from the classifier down (section 3 of arXiv:2305.08950)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from uphold.core.errors import EmptyError, UsageError
from uphold.core.hashing import sha256_of
from uphold.core.progress import Progress, silent
from uphold.core.stats.types import Floats
from uphold.explain.graphs.chain import Chain, Clean, trace
from uphold.explain.graphs.config import GraphConfig
from uphold.explain.graphs.cutting import Instead, cut_edges, cut_units, estimates, instead, outcome
from uphold.explain.graphs.graph import ClassGraph, Edge, GraphLayer
from uphold.explain.graphs.testing import paired_p, select
from uphold.models.patches.patch import pristine_hashes, value_hash


class Sample(NamedTuple):
    """The images of a class that a graph is found on."""

    chain: Chain
    images: torch.Tensor
    ids: tuple[str, ...]
    clean: Clean
    label: int
    scale: float
    """Mean centred logit of the class."""


def sample(
    model: nn.Module,
    images: torch.Tensor,
    label: int,
    ids: Sequence[str] | None = None,
    config: GraphConfig | None = None,
    *,
    wrong: bool = False,
    scale: float | None = None,
) -> Sample:
    """Run the images of a class and keep the first that the model gets right.

    Args:
        model: a classifier; see `uphold.explain.graphs.chain.trace`.
        images: of the class, shape (n, ...).
        label: the class, a number of a logit.
        ids: names of the images; hashes of their contents where None.
        config: the options.
        wrong: keep images whatever the model says.
        scale: the mean centred logit that effects are shares of; that of these images where None.

    Raises:
        EmptyError: the model gets none right.
        UsageError: there is no such class, or not one name for each image.
        ModelError: the model cannot be treated.
    """
    config = config or GraphConfig()
    if not len(images):
        raise EmptyError(f"no image of class {label} was given: give at least two")
    names = [value_hash(image)[:16] for image in images] if ids is None else list(ids)
    if len(names) != len(images):
        raise UsageError(f"{len(names)} names for {len(images)} images: give one for each")
    chain = trace(model, images)
    if not 0 <= label < chain.classes:
        raise UsageError(f"no class {label}: the model has {chain.classes} logits, 0 to {chain.classes - 1}")
    said = torch.cat([chain.run(part) for part in torch.split(images, config.batch)]).argmax(1)
    kept = torch.arange(len(images)) if wrong else (said == label).nonzero()[:, 0].cpu()
    kept = kept[: config.samples]
    if not len(kept):
        raise EmptyError(f"the model gets none of the {len(images)} images of class {label} right: nothing to explain")
    chosen = images[kept]
    clean = chain.clean(chosen)
    logits = clean.logits.double()
    found = float((logits[:, label] - logits.mean(1)).mean())
    return Sample(
        chain, chosen, tuple(names[k] for k in kept.tolist()), clean, label, found if scale is None else scale
    )


def class_graph(
    model: nn.Module,
    images: torch.Tensor,
    label: int,
    *,
    ids: Sequence[str] | None = None,
    config: GraphConfig | None = None,
    progress: Progress = silent,
) -> ClassGraph:
    """The graph of a class; no weight is touched.

    Args:
        model: a classifier whose weighted layers run one after the other.
        images: of the class, shape (n, ...); those that the model gets wrong are passed over.
        label: the class.
        ids: names of the images.
        config: the options.
        progress: called after every pass.

    Raises:
        EmptyError: the model gets none of the images right, or only one and the test is paired.
        UsageError: an option or the class cannot be.
        ModelError: the model has branches or layers that cannot be treated.
    """
    config = config or GraphConfig()
    return graph_of(sample(model, images, label, ids, config), config, progress)


def graph_of(found: Sample, config: GraphConfig, progress: Progress = silent) -> ClassGraph:
    """The graph of a class on a sample of images."""
    clean = outcome(found.clean.logits, found.label, replace(config, outcome="logit")).cpu().numpy()
    return ClassGraph(
        label=found.label,
        layers=layers_of(found, config, progress),
        images=found.ids,
        images_hash=sha256_of([value_hash(image) for image in found.images]),
        weights_hash=weights_hash(found.chain.model),
        scale=found.scale,
        logit=float(clean.mean()),
        spread=float(clean.std(ddof=1)) if clean.size > 1 else 0.0,
        options=asdict(config),
    )


def weights_hash(model: nn.Module) -> str:
    """SHA-256 of all tensors of a model, by name."""
    state = model.state_dict()
    return sha256_of(pristine_hashes(state, list(state)))


def layers_of(found: Sample, config: GraphConfig, progress: Progress = silent) -> tuple[GraphLayer, ...]:
    """The layers of the graph, from the classifier down to the images or to a layer without causes."""
    layers: list[GraphLayer] = []
    effects: tuple[int, ...] = (found.label,)
    for number in reversed(range(len(found.chain.layers))):
        layer = _layer_of(found, number, effects, config, progress)
        if config.edges and layer.causes:
            layer = replace(layer, edges=_edges(found, number, layer, config, progress))
        layers.append(layer)
        effects = layer.causes
        if not effects:
            break
    return tuple(layers)


def _layer_of(
    found: Sample, number: int, effects: tuple[int, ...], config: GraphConfig, progress: Progress
) -> GraphLayer:
    layer = found.chain.layers[number]
    plain = GraphLayer(layer.name, layer.kind, layer.inputs, layer.outputs, effects, (), tested=False)
    if number == 0 and not config.test_input:
        return replace(plain, causes=tuple(range(layer.inputs)))
    how = instead(config, number)
    candidates, guesses = _candidates(found, number, effects, how, config)
    logits = cut_units(
        found.chain, found.clean, number, effects, candidates, how, batch=config.batch, progress=progress
    )
    clean = outcome(found.clean.logits, found.label, config)
    values = clean.repeat(layer.inputs, 1)
    values[candidates] = outcome(logits, found.label, config)
    known = np.isin(np.arange(layer.inputs), candidates)
    tested = select(values.cpu().numpy(), clean.cpu().numpy(), found.scale, config, known)
    shift = torch.zeros(layer.inputs, dtype=torch.double)
    shift[candidates] = _shift(logits, found.clean.logits).cpu()
    return replace(
        plain,
        causes=tested.causes,
        tested=True,
        change=tuple(tested.effect.tolist()),
        q=tuple(tested.q.tolist()),
        shift=tuple(shift.tolist()),
        fallback=tested.fallback,
        screened=None if guesses is None else len(candidates),
        screening=None if guesses is None else _rank_correlation(guesses, tested.effect[candidates]),
    )


def _candidates(
    found: Sample, number: int, effects: tuple[int, ...], how: Instead, config: GraphConfig
) -> tuple[list[int], Floats | None]:
    """The units that are cut, and what the screening expects of them."""
    units = found.chain.layers[number].inputs
    if config.screen is None:
        return list(range(units)), None
    expected = estimates(found.chain, found.clean, number, effects, how, found.label, config).mean(1).cpu().numpy()
    order = np.argsort(expected, kind="stable")[: config.screen]
    candidates = sorted(order.tolist())
    return candidates, expected[candidates]


def _rank_correlation(one: Floats, other: Floats) -> float | None:
    """Spearman's, None where it is not defined."""
    from scipy.stats import spearmanr

    if len(one) < 2 or not np.ptp(one) or not np.ptp(other):
        return None
    return float(spearmanr(one, other).statistic)


def _shift(cut: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    """Mean over images of KL(softmax cut || softmax clean) in nats: (units, n, classes) to (units,)."""
    after, before = cut.double().log_softmax(-1), clean.double().log_softmax(-1)
    return (after.exp() * (after - before)).sum(-1).mean(1)


def _edges(found: Sample, number: int, layer: GraphLayer, config: GraphConfig, progress: Progress) -> tuple[Edge, ...]:
    pairs = sorted(layer.pairs)
    values = edge_changes(found, number, pairs, config, progress)
    p = paired_p(values, two_sided=True) if values.shape[1] > 1 else np.ones(len(pairs))
    return tuple(
        Edge(effect, cause, float(mean), float(one))
        for (effect, cause), mean, one in zip(pairs, values.mean(1), p, strict=True)
    )


def edge_changes(
    found: Sample, number: int, pairs: Sequence[tuple[int, int]], config: GraphConfig, progress: Progress = silent
) -> Floats:
    """Change of the outcome of each image when one edge (effect, cause) is cut, shape (edges, n)."""
    logits = cut_edges(
        found.chain, found.clean, number, pairs, instead(config, number), batch=config.batch, progress=progress
    )
    change = outcome(logits, found.label, config) - outcome(found.clean.logits, found.label, config)
    return np.asarray(change.cpu().numpy())
