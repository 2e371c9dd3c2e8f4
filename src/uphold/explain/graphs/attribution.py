"""Path-specific attribution maps: where in an image the units of a graph find their class."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from uphold.core.errors import UsageError
from uphold.explain.graphs.chain import trace
from uphold.explain.graphs.cutting import Instead, changes
from uphold.explain.graphs.graph import ClassGraph


def attribution_map(
    model: nn.Module, graph: ClassGraph, layer: str, images: torch.Tensor, *, softmax: bool = False, batch: int = 1024
) -> torch.Tensor:
    """What the causes of a convolution give to its effects at each place, averaged over causes, summed over effects.

    Args:
        model: the classifier.
        graph: of a class.
        layer: a two-dimensional convolution that the graph reaches.
        images: shape (n, channels, height, width).
        softmax: turn each map of an edge into one that is positive and sums to 1 over places first, as the authors do;
            the sign of the evidence is then lost.
        batch: maps of single edges at once, over images.

    Returns:
        Shape (n, height, width), resized to the images bilinearly.

    Raises:
        UsageError: the graph does not reach the layer, or it is no two-dimensional convolution.
    """
    chain = trace(model, images)
    number, found = chain.index(layer), graph.layer(layer)
    if found is None or not isinstance(chain.layers[number].module, nn.Conv2d):
        raise UsageError(f"'{layer}' is no two-dimensional convolution that the graph reaches; name one")
    pairs = torch.tensor(sorted(found.pairs))
    taken = chain.clean(images).inputs[number]
    total = torch.zeros(())
    for some in torch.split(pairs, max(1, batch // len(images))):
        # What cutting an edge takes away is what it gives.
        with torch.no_grad():
            given = -changes(chain.layers[number], taken, some[:, 0], some[:, 1], Instead(0.0))
        if softmax:
            given = given.flatten(2).softmax(-1).view_as(given)
        total = total.to(given) + given.sum(0)
    total = total / len(found.causes)
    return functional.interpolate(total[:, None], images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
