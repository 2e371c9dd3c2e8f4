"""Interpolation on the sphere, in coefficients.

What these methods return is a linear combination of the tensors they are given, and its coefficients depend on inner
products only. So the Gram matrix is all they need to see.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from uphold.core.errors import UsageError

PARALLEL = 1e-12
"""1 - cos below which directions are the same: there the interpolation on the sphere is the linear one to 12 digits."""
TINY = 1e-8
CANCELLED = 1e-7
"""Length of a mean of directions, for weights of sum 1, that is rounding only: it is the root of a difference."""


class Shares(NamedTuple):
    """Coefficients of two tensors; both of the Gram matrices' batch shape, float64."""

    first: torch.Tensor
    second: torch.Tensor
    linear: torch.Tensor
    """Where they are 1 - t and t, as the tensors are (nearly) parallel."""


def slerp_shares(grams: torch.Tensor, t: float, parallel: float = 0.9995) -> Shares:
    """Coefficients of spherical interpolation between two tensors, which keep their own norms.

        sin((1-t) omega) / sin(omega),  sin(t omega) / sin(omega),  cos(omega) = <x, y> / (|x| |y|)

    A tensor of norm 1e-8 or less is not normalised, so a zero tensor is at a right angle to everything.

    Args:
        grams: inner products, shape (..., 2, 2).
        t: place between the first tensor (0) and the second (1).
        parallel: |cos| above which the interpolation is linear.
    """
    norms = grams.diagonal(dim1=-2, dim2=-1).sqrt()
    norms = torch.where(norms > TINY, norms, 1.0)
    cosine = (grams[..., 0, 1] / norms.prod(dim=-1)).clamp(-1, 1)
    linear = cosine.abs() > parallel
    omega = torch.where(linear, torch.pi / 2, cosine.arccos())
    first = torch.where(linear, 1 - t, torch.sin((1 - t) * omega) / omega.sin())
    return Shares(first, torch.where(linear, t, torch.sin(t * omega) / omega.sin()), linear)


def are_parallel(gram: torch.Tensor) -> bool:
    """Whether K tensors, none of them zero, point into one direction."""
    norms = gram.diagonal().sqrt()
    return bool((norms > 0).all()) and bool((gram / norms.outer(norms) > 1 - PARALLEL).all())


def mean_direction(gram: torch.Tensor, weights: Sequence[float], name: str) -> list[float] | None:
    """Coefficients of the point on the sphere at the weighted mean of K directions, at the weighted mean of the norms.

    The published description (Goddard, Multi-SLERP) then moves in the tangent space at that point by the weighted sum
    of the tangents there. That sum is zero: the point is the mean itself, and so it is the result.

    Args:
        gram: inner products, shape (K, K).
        weights: one per tensor.
        name: of the tensor, for messages.

    Returns:
        one coefficient per tensor; None where two directions cancel each other, which leaves the linear mean.

    Raises:
        UsageError: three directions or more cancel each other.
    """
    chosen, norms = torch.tensor(weights, dtype=torch.float64), gram.diagonal().sqrt()
    units = torch.where(norms > 0, chosen / norms, 0.0)
    length = float((units @ gram @ units).clamp(min=0).sqrt())
    if length < CANCELLED * float(chosen.abs().sum()):
        if len(weights) == 2 or float(norms.max()) == 0:
            return None
        raise UsageError(
            f"the weighted directions of {name} cancel each other, so there is no mean direction: "
            "give the models other weights, or use 'linear'"
        )
    return [float(one) for one in units / length * (chosen @ norms)]


def karcher_mean(gram: torch.Tensor, iterations: int, tolerance: float) -> list[float]:
    """Coefficients of the Riemannian centre of mass of K directions, at the mean of the norms.

    Args:
        gram: inner products, shape (K, K).
        iterations: most steps to take.
        tolerance: length of a step at which to stop.
    """
    norms = gram.diagonal().sqrt()
    counted = (norms > 0).nonzero().flatten()
    found = torch.zeros(len(gram), dtype=torch.float64)
    if not len(counted):
        return [float(one) for one in found]
    lengths = norms[counted]
    cosines = gram[counted][:, counted] / lengths.outer(lengths)
    count = len(counted)

    def length(point: torch.Tensor) -> torch.Tensor:
        return (point @ cosines @ point).clamp(min=0).sqrt()

    point = torch.full((count,), 1 / count, dtype=torch.float64)
    point = point / length(point) if length(point) >= tolerance else torch.eye(count, dtype=torch.float64)[0]
    for _ in range(iterations):
        dots = (cosines @ point).clamp(-1, 1)
        angles = dots.arccos()
        far = angles >= tolerance
        pulls = torch.where(far, angles / torch.where(far, angles.sin(), 1.0), 0.0) / count
        tangent = pulls - (pulls @ dots) * point
        step = length(tangent)
        if step < tolerance:
            break
        point = step.cos() * point + step.sin() / step * tangent
        point = point / length(point)
    found[counted] = point / lengths * norms.mean()
    return [float(one) for one in found]
