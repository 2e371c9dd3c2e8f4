"""Batch-norm layers of patched networks: their statistics belong to the weights before them.

They are replaced by those of the robust model, not added to (by the mean, where several patches replace them: patches
see to that), and can be estimated anew on damaged data (arXiv:2302.12480): reset to mean 0 and variance 1, one pass,
each batch of b after n images counting b / (n + b).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from uphold.core.errors import EmptyError, UsageError

_STATISTICS = ("running_mean", "running_var")
_TENSORS = ("weight", "bias", *_STATISTICS)


def batch_norm_tensors(names: Iterable[str]) -> list[str]:
    """Those of `names` that are weights, biases or running statistics of batch-norm layers, in their order.

    A layer is known by its running statistics. Its counter of batches is not among them: it is no weight.
    """
    known = list(names)
    layers = {name.removesuffix(_STATISTICS[0]) for name in known if name.rpartition(".")[2] == _STATISTICS[0]}
    wanted = {layer + tensor for layer in layers for tensor in _TENSORS}
    return [name for name in known if name in wanted]


def reestimated(
    model: nn.Module, batches: Iterable[Any], names: Iterable[str] | None = None, strength: float = 1.0
) -> dict[str, torch.Tensor]:
    """Running statistics of batch-norm layers, estimated on `batches`; `model` stays as it is.

    Only batch-norm layers run in train mode, so that dropout has no part in it.

    Args:
        model: with the patch applied, its replaced statistics included.
        batches: inputs of the model, tensors of shape (b, ...); damaged data.
        names: which statistics, as the state dict calls them; those of all layers where None. Names of other tensors
            are passed over.
        strength: below 1, the result is (1 - strength) times what was there plus strength times the estimate.

    Raises:
        UsageError: the model has no such layer, or the strength is not in [0, 1].
        EmptyError: there are no batches.
    """
    if not 0 <= strength <= 1:
        raise UsageError(f"batch-norm statistics are mixed with a strength in [0, 1], not {strength}")
    wanted = None if names is None else set(names)
    trained = copy.deepcopy(model).eval()
    layers = {
        name: layer
        for name, layer in trained.named_modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm)
        and layer.running_mean is not None
        and (wanted is None or f"{name}.{_STATISTICS[0]}" in wanted)
    }
    if not layers:
        raise UsageError("there are no batch-norm statistics to estimate: leave the batches away")
    before = {
        f"{name}.{statistic}": getattr(layer, statistic).clone()
        for name, layer in layers.items()
        for statistic in _STATISTICS
    }
    for layer in layers.values():
        layer.train()
        layer.reset_running_stats()
    seen = 0
    with torch.no_grad():
        for batch in batches:
            for layer in layers.values():
                layer.momentum = len(batch) / (seen + len(batch))
            trained(batch)
            seen += len(batch)
    if not seen:
        raise EmptyError("there are no batches to estimate batch-norm statistics on")
    after = trained.state_dict()
    return {name: torch.lerp(value, after[name], strength) for name, value in before.items()}
