"""Does a graph carry its class? Networks of the graph alone, networks without it, and random graphs of the same size.

A kept graph that sees its class everywhere is no explanation: sufficiency is reported with its false positives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from uphold.core.errors import EmptyError, UsageError
from uphold.core.progress import Progress, silent
from uphold.explain.graphs.chain import Chain, Layer, trace
from uphold.explain.graphs.graph import ClassGraph


@dataclass(frozen=True)
class Arm:
    """A network on held-out images; with random graphs the mean over them."""

    accuracy: float
    """Share of the images of the class that get the class, in [0, 1]."""
    logit: float
    """Their mean logit of the class."""
    false_positive: float
    """Share of the images of other classes that get the class, in [0, 1]."""
    separation: float
    """Probability that an image of the class has a higher logit of the class than one of another class, in [0, 1]: 0.5
    where the network cannot tell them apart, whatever the other logits are."""


@dataclass(frozen=True)
class Faithfulness:
    """What keeping and cutting a graph does."""

    arms: Mapping[str, Arm]
    """`original`; `kept` and `random kept`; `cut` and `random cut`; `classifier cut` and `random classifier cut`, where
    only edges of the last layer go."""
    saturated: tuple[str, ...]
    """Layers whose units are all causes. Where there is one, `cut` says nothing against `random cut`."""

    def __str__(self) -> str:
        rows = [
            f"{name:<22}{arm.accuracy:>9.3f}{arm.logit:>9.2f}{arm.false_positive:>16.3f}{arm.separation:>12.3f}"
            for name, arm in self.arms.items()
        ]
        notes = [f"saturated: {', '.join(self.saturated)}; cutting the graph shows nothing"] if self.saturated else []
        return "\n".join(
            [f"{'':<22}{'accuracy':>9}{'logit':>9}{'false positive':>16}{'separation':>12}", *rows, *notes]
        )


def kept_logits(
    chain: Chain, graph: ClassGraph, images: torch.Tensor, *, others: bool = False, batch: int = 1024
) -> torch.Tensor:
    """Logits of the network in which only the graph's edges have weights; biases stay.

    Args:
        chain: of the model.
        graph: what is kept. Layers that it does not reach have no weights left.
        images: shape (n, ...).
        others: in the classifier, keep the weights of all other classes too. The authors' code sets them to 0, so that
            no other class has evidence.
        batch: rows in one forward pass.

    Returns:
        Shape (n, classes).
    """
    masks = {}
    for number, layer in enumerate(chain.layers):
        mask = _inside(graph, layer)
        if others and number + 1 == len(chain.layers):
            mask[[row for row in range(layer.outputs) if row != graph.label]] = True
        masks[number] = mask
    return _masked(chain, masks, images, batch)


def cut_logits(
    chain: Chain, graph: ClassGraph, images: torch.Tensor, *, layers: Sequence[str] | None = None, batch: int = 1024
) -> torch.Tensor:
    """Logits of the network in which the graph's edges have weight 0.

    Args:
        chain: of the model.
        graph: what is cut.
        images: shape (n, ...).
        layers: where it is cut; everywhere where None.
        batch: rows in one forward pass.

    Returns:
        Shape (n, classes).
    """
    chosen = [chain.index(name) for name in layers] if layers is not None else range(len(chain.layers))
    return _masked(chain, {number: ~_inside(graph, chain.layers[number]) for number in chosen}, images, batch)


def random_graph(chain: Chain, graph: ClassGraph, seed: int) -> ClassGraph:
    """A graph with as many causes in each layer, drawn at random; the layer of the images is as it was."""
    generator = torch.Generator().manual_seed(seed)
    effects: tuple[int, ...] = (graph.label,)
    layers = []
    for layer in graph.layers:
        drawn = torch.randperm(layer.inputs, generator=generator)[: len(layer.causes)]
        causes = tuple(sorted(drawn.tolist())) if layer.tested else layer.causes
        layers.append(replace(layer, effects=effects, causes=causes, edges=(), stability=()))
        effects = causes
    return replace(graph, layers=tuple(layers))


def faithfulness(
    model: nn.Module,
    graph: ClassGraph,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    controls: int = 5,
    seed: int = 0,
    others: bool = False,
    batch: int = 1024,
    progress: Progress = silent,
) -> Faithfulness:
    """Measure a graph on images that it was not found on.

    Args:
        model: the classifier.
        graph: of one of its classes.
        images: of all classes, shape (n, ...).
        labels: int64 of shape (n,).
        controls: random graphs.
        seed: of them.
        others: see `kept_logits`.
        batch: rows in one forward pass.
        progress: called after every random graph.

    Raises:
        EmptyError: there are no images of the class, or none of other classes.
        UsageError: the graph belongs to another model, or there are no controls.
    """
    chain = trace(model, images)
    _check_fits(chain, graph)
    if controls < 1:
        raise UsageError(f"faithfulness needs 1 or more random graphs, not {controls}")
    if not 0 < int((labels == graph.label).sum()) < len(labels):
        raise EmptyError(f"faithfulness needs images of class {graph.label} and of other classes")
    top = [graph.layers[0].name]

    def arms(one: ClassGraph, name: str) -> dict[str, Arm]:
        logits = {
            f"{name}kept": kept_logits(chain, one, images, others=others, batch=batch),
            f"{name}cut": cut_logits(chain, one, images, batch=batch),
            f"{name}classifier cut": cut_logits(chain, one, images, layers=top, batch=batch),
        }
        return {key: _arm(value, labels, graph.label) for key, value in logits.items()}

    drawn: list[dict[str, Arm]] = []
    for number in range(controls):
        drawn.append(arms(random_graph(chain, graph, seed + number), "random "))
        progress("random graphs", number + 1, controls)
    random = {
        name: Arm(*(sum(getattr(one[name], part) for one in drawn) / controls for part in Arm.__dataclass_fields__))
        for name in drawn[0]
    }
    original = _arm(_masked(chain, {}, images, batch), labels, graph.label)
    mine = arms(graph, "")
    found = {"original": original}
    for name, arm in mine.items():
        found |= {name: arm, f"random {name}": random[f"random {name}"]}
    return Faithfulness(found, graph.saturated)


def _check_fits(chain: Chain, graph: ClassGraph) -> None:
    for layer in graph.layers:
        known = chain.layers[chain.index(layer.name)]
        if (known.inputs, known.outputs) != (layer.inputs, layer.outputs):
            raise UsageError(
                f"the graph's layer {layer.name} has {layer.outputs} x {layer.inputs} units and the model's "
                f"{known.outputs} x {known.inputs}: give the model that it was found on"
            )


def _arm(logits: torch.Tensor, labels: torch.Tensor, label: int) -> Arm:
    mine, said = labels == label, logits.argmax(1) == label
    return Arm(
        float(said[mine].double().mean()),
        float(logits[mine, label].double().mean()),
        float(said[~mine].double().mean()),
        _separation(logits[mine, label], logits[~mine, label]),
    )


def _separation(mine: torch.Tensor, others: torch.Tensor) -> float:
    """Area under the ROC curve; ties count half."""
    ordered = others.double().sort().values
    below, upto = (torch.searchsorted(ordered, mine.double(), right=right) for right in (False, True))
    return float((below + upto).double().mean() / (2 * len(ordered)))


def _inside(graph: ClassGraph, layer: Layer) -> torch.Tensor:
    """Which edges of a layer belong to the graph: bool of shape (outputs, inputs)."""
    mask = torch.zeros(layer.outputs, layer.inputs, dtype=torch.bool)
    found = graph.layer(layer.name)
    if found is not None:
        mask[torch.tensor(found.effects, dtype=torch.long)[:, None], torch.tensor(found.causes, dtype=torch.long)] = (
            True
        )
    return mask


def _masked(chain: Chain, masks: Mapping[int, torch.Tensor], images: torch.Tensor, batch: int) -> torch.Tensor:
    """Logits where the weights outside the masks, by number of a layer, count as 0."""
    instead = {number: _Masked(chain.layers[number], mask) for number, mask in masks.items()}
    return torch.cat([chain.run(part, instead) for part in torch.split(images, batch)])


class _Masked:
    """A layer with some of its weights at 0, on a copy of them."""

    def __init__(self, layer: Layer, mask: torch.Tensor) -> None:
        module: Any = layer.module
        weight = module.weight.detach()
        if layer.kind == "linear":
            wide = mask.repeat_interleave(layer.block, 1)
        else:
            tall, few = layer.outputs // module.groups, layer.inputs // module.groups
            group = torch.arange(layer.outputs) // tall
            wide = mask[torch.arange(layer.outputs)[:, None], group[:, None] * few + torch.arange(few)]
            wide = wide.reshape(*wide.shape, *[1] * (weight.dim() - 2))
        self.layer, self.weight = layer, weight * wide.to(weight)

    def __call__(self, taken: torch.Tensor) -> torch.Tensor:
        module = self.layer.module
        if self.layer.kind == "linear":
            return functional.linear(taken, self.weight, module.bias)
        return module._conv_forward(taken, self.weight, module.bias)  # type: ignore[no-any-return]
