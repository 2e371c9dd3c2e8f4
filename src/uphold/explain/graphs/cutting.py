"""Cutting edges: the exact effect of do(W[e, i] = u) without a weight being touched.

The cut changes what the layer gives at unit e by a_i (u - W[e, i]), a product or a convolution. So the images are run
once, the changes of many cuts are added to copies of what the layer gave, and only the layers above run again. Equal
to editing weights (section 3 of arXiv:2305.08950) up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.nn import functional

from uphold.core.progress import Progress, silent
from uphold.explain.graphs.chain import Chain, Clean, Layer
from uphold.explain.graphs.config import GraphConfig

SOFT = 0.01
"""Width of the interval of soft interventions."""


class Instead(NamedTuple):
    """What a cut edge has."""

    weight: float | None
    """The new weight; None leaves the weight and sets the unit to its mean over the images."""


def instead(config: GraphConfig, number: int) -> Instead:
    """What the options say for layer `number`; one draw per layer where the intervention is soft."""
    if config.replace == "mean":
        return Instead(None)
    if config.replace == "zero":
        return Instead(0.0)
    generator = torch.Generator().manual_seed(1_000_003 * config.seed + number)
    return Instead(config.beta + SOFT * float(torch.rand((), generator=generator)))


def changes(
    layer: Layer, taken: torch.Tensor, effects: torch.Tensor, causes: torch.Tensor, how: Instead
) -> torch.Tensor:
    """By how much cutting each edge changes what the layer gives at its effect.

    Args:
        layer: of the path.
        taken: what it took, shape (n, ...).
        effects: units that it gives, int64 of shape (edges,).
        causes: units that it takes, likewise.
        how: what a cut edge has instead.

    Returns:
        Shape (edges, n, ...) with the places of a convolution's output.
    """
    weight = layer.module.weight.detach()
    if layer.kind == "linear":
        source = taken.reshape(len(taken), layer.inputs, layer.block)[:, causes]
        rows = weight.reshape(layer.outputs, layer.inputs, layer.block)[effects, causes]
        if how.weight is None:
            return torch.einsum("neb,eb->en", source.mean(0, keepdim=True) - source, rows)
        return torch.einsum("neb,eb->en", source, how.weight - rows)
    module = layer.module
    wide, tall = layer.inputs // module.groups, layer.outputs // module.groups
    kernels = weight[effects, causes % wide]
    connected = (effects // tall == causes // wide).to(kernels).view(-1, *[1] * (kernels.dim() - 1))
    source = taken[:, causes]
    if how.weight is None:
        source, kernels = source.mean(0, keepdim=True) - source, kernels * connected
    else:
        kernels = (how.weight - kernels) * connected
    return _convolved(layer, source, kernels).transpose(0, 1)


def _convolved(layer: Layer, source: torch.Tensor, kernels: torch.Tensor) -> torch.Tensor:
    """Each channel with its own kernel, as the layer would do it: (n, c, ...) and (c, ...) to (n, c, ...)."""
    module, padding = layer.module, layer.module.padding
    if module.padding_mode != "zeros":
        source = functional.pad(source, module._reversed_padding_repeated_twice, mode=module.padding_mode)
        padding = 0
    convolve = getattr(functional, f"conv{kernels.dim() - 1}d")
    found: torch.Tensor = convolve(
        source, kernels[:, None], None, module.stride, padding, module.dilation, groups=len(kernels)
    )
    return found


def cut_units(
    chain: Chain,
    clean: Clean,
    number: int,
    effects: Sequence[int],
    causes: Sequence[int],
    how: Instead,
    *,
    batch: int = 1024,
    progress: Progress = silent,
) -> torch.Tensor:
    """Logits where all edges from one unit to `effects` are cut, for each of `causes` by itself.

    Returns:
        Shape (causes, n, classes).
    """
    given = clean.outputs[number]
    per, rows = max(1, batch // len(given)), torch.tensor(effects, device=given.device)
    found = []
    for start in range(0, len(causes), per):
        some = torch.tensor(causes[start : start + per], device=given.device)
        delta = changes(
            chain.layers[number],
            clean.inputs[number],
            rows.repeat(len(some)),
            some.repeat_interleave(len(rows)),
            how,
        )
        copies = given.repeat(len(some), *[1] * (given.dim() - 1))
        copies[:, rows] += delta.view(len(some), len(rows), *delta.shape[1:]).transpose(1, 2).flatten(0, 1)
        found.append(chain.above(number, copies).view(len(some), len(given), -1))
        progress(f"cut {chain.layers[number].name}", min(start + per, len(causes)), len(causes))
    return torch.cat(found)


def cut_edges(
    chain: Chain,
    clean: Clean,
    number: int,
    edges: Sequence[tuple[int, int]],
    how: Instead,
    *,
    batch: int = 1024,
    progress: Progress = silent,
) -> torch.Tensor:
    """Logits where one edge is cut, for each of `edges`, pairs (effect, cause), by itself.

    Returns:
        Shape (edges, n, classes).
    """
    given = clean.outputs[number]
    per = max(1, batch // len(given))
    found = []
    for start in range(0, len(edges), per):
        pairs = torch.tensor(edges[start : start + per], device=given.device)
        delta = changes(chain.layers[number], clean.inputs[number], pairs[:, 0], pairs[:, 1], how)
        copies = given.repeat(len(pairs), *[1] * given.dim()).view(len(pairs), *given.shape)
        copies[torch.arange(len(pairs)), :, pairs[:, 0]] += delta
        found.append(chain.above(number, copies.flatten(0, 1)).view(len(pairs), len(given), -1))
        progress(f"cut edges of {chain.layers[number].name}", min(start + per, len(edges)), len(edges))
    return torch.cat(found)


def outcome(logits: torch.Tensor, label: int, config: GraphConfig) -> torch.Tensor:
    """The logit of the class, or that minus the mean logit: shape (..., classes) to (...), float64."""
    wide = logits.double()
    mine = wide[..., label]
    return mine - wide.mean(-1) if config.outcome == "centred-logit" and config.compat is None else mine


def estimates(
    chain: Chain, clean: Clean, number: int, effects: Sequence[int], how: Instead, label: int, config: GraphConfig
) -> torch.Tensor:
    """First-order estimates of the effects of all units: the changes of a cut times the slopes of the outcome.

    One backward pass for all units; `changes` summed over effects and places.

    Returns:
        Shape (units, n), float64.
    """
    given = clean.outputs[number].clone().requires_grad_()
    with torch.enable_grad():
        total = outcome(chain.above(number, given + 0, grad=True), label, config).sum()
        (slope,) = torch.autograd.grad(total, given)
    layer, rows = chain.layers[number], torch.tensor(effects, device=given.device)
    found = []
    per = max(1, config.batch // len(given))
    for start in range(0, layer.inputs, per):
        some = torch.arange(start, min(start + per, layer.inputs), device=given.device)
        delta = changes(layer, clean.inputs[number], rows.repeat(len(some)), some.repeat_interleave(len(rows)), how)
        product = delta.view(len(some), len(rows), *delta.shape[1:]) * slope[:, rows].transpose(0, 1)
        found.append(product.transpose(1, 2).flatten(2).sum(-1))
    return torch.cat(found).double()
