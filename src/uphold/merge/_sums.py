"""Weighted sums and means of tensors, and the parameters that many merge methods share. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from uphold.core.errors import UsageError
from uphold.merge.protocol import Parameter

if TYPE_CHECKING:
    import torch

WEIGHT = Parameter("weight", per_model=True, help="how much the model counts; may be negative, and 0 is a weight too")
LAMBDA = Parameter("lambda", 1.0, help="strength at which the merged change is added to the base; 0 is the base itself")
DENSITY = Parameter("density", 1.0, per_model=True, low=1e-6, high=1.0, help="share of the changes that is kept")
INT8_MASK = Parameter("int8_mask", False, help="taken from mergekit's recipes, without effect: masks are one byte here")
SMALLEST = 1e-8
"""Sum of weights, in absolute value, that is taken for zero."""


def weighted_sum(tensors: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """The sum of w_i x_i over all i. Inputs stay as they are."""
    total = tensors[0] * weights[0]
    for tensor, weight in zip(tensors[1:], weights[1:], strict=True):
        total.add_(tensor, alpha=weight)
    return total


def weighted_mean(tensors: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """The sum of w_i x_i divided by the sum of w_i; equal tensors give that tensor, bit for bit.

    Where only one weight is not zero, its tensor itself comes back.

    Args:
        tensors: of one shape; they stay as they are.
        weights: one per tensor; their sum is not zero.
    """
    counted = [(tensor, weight) for tensor, weight in zip(tensors, weights, strict=True) if weight != 0]
    if any(weight < 0 for _, weight in counted):
        return weighted_sum(tensors, [weight / math.fsum(weights) for weight in weights])
    (mean, so_far), *rest = counted
    for tensor, weight in rest:
        so_far += weight
        # A running mean: what is the same in all models is not touched by rounding.
        mean = between(mean, tensor, weight / so_far)
    return mean


def between(first: torch.Tensor, second: torch.Tensor, t: float) -> torch.Tensor:
    """(1 - t) first + t second; where the two are equal it is that number, and -0.0 stays -0.0."""
    if t > 0.5:
        first, second, t = second, first, 1 - t
    return first.sub(first - second, alpha=t)


def check_sum(weights: Sequence[float], method: str, name: str) -> float:
    """The sum of weights that are to be normalised.

    Raises:
        UsageError: it is zero.
    """
    total = math.fsum(weights)
    if abs(total) < SMALLEST:
        listed = ", ".join(f"{weight:g}" for weight in weights[:8])
        raise UsageError(
            f"the weights of '{method}' at {name} add up to 0 ({listed}), which cannot be normalised: "
            "give one of them another weight"
        )
    return total


def moved(base: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    """The base plus a change; where nothing changed, the base's own bits."""
    # -0.0 + 0.0 is 0.0, but -0.0 - 0.0 is -0.0, and 0 - change has no -0.0.
    return base - (0 - change)


def total_of(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """The plain sum of tensors, which stay as they are."""
    total = tensors[0].clone()
    for tensor in tensors[1:]:
        total.add_(tensor)
    return total


def positive_sign(total: torch.Tensor) -> torch.Tensor:
    """1 where a number is not negative, else -1; overwrites it."""
    return total.ge_(0).mul_(2).sub_(1)


def agreeing(changes: Sequence[torch.Tensor], sign: torch.Tensor, weights: Sequence[float] | None) -> torch.Tensor:
    """The sum of the changes that have a certain sign, or their weighted mean.

    Args:
        changes: of one shape; they are overwritten.
        sign: 1 or -1 for each entry.
        weights: what each change was multiplied with, to divide by the sum of those that count, where it is not 0.
    """
    for change in changes:
        change.mul_(sign).clamp_(min=0)
    total = total_of(changes).mul_(sign)
    if weights is None:
        return total
    # Arithmetic on masks of the tensor's own type is several times faster than `where` and boolean masks.
    counted = weighted_sum([change.sign_() for change in changes], weights)
    return total.div_(counted.add_(counted.clone().eq_(0)))
