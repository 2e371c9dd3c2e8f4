"""Karcher mean: the Riemannian centre of mass of several models' directions, at their mean norm.

Karcher, "Riemannian center of mass and mollifier smoothing", Communications on Pure and Applied Mathematics 30 (1977);
for merging: arXiv:2603.04972.

    T = 1/K sum_i (omega_i / sin(omega_i)) (u_i - cos(omega_i) u),   u <- cos|T| u + sin|T| T / |T|

until |T| is below `tol` or `max_iter` steps are made. A base takes part as the other models do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from uphold.core.registry import merge
from uphold.merge._sums import weighted_mean, weighted_sum
from uphold.merge.protocol import Chunk, MergeMethod, Parameter, Settings, View

if TYPE_CHECKING:
    import torch


@merge("karcher", paper="arXiv:2603.04972")
class Karcher(MergeMethod):
    """Centre of several models on the sphere, at their mean norm."""

    base = "optional"
    parameters = (
        Parameter("max_iter", 10, low=1, high=1000, help="most steps"),
        Parameter("tol", 1e-5, low=1e-12, high=1.0, help="length of a step at which to stop"),
    )

    def prepare(self, view: View, settings: Settings, surveyed: object) -> Sequence[float] | None:
        """One coefficient per model; None where the result is the plain mean."""
        from uphold.models.gram import gram
        from uphold.models.spherical import are_parallel, karcher_mean

        count = len(settings.models) + next((chunk.base is not None for chunk in view.chunks()), False)
        if count == 1:
            return None
        inner = gram((_members(chunk) for chunk in view.chunks()), count)
        if are_parallel(inner):
            return None
        return karcher_mean(inner, settings.options["max_iter"], settings.options["tol"])

    def combine(self, chunk: Chunk, settings: Settings, prepared: Sequence[float] | None) -> torch.Tensor:
        """The mean; equal models give that model, bit for bit."""
        members = _members(chunk)
        return weighted_mean(members, [1.0] * len(members)) if prepared is None else weighted_sum(members, prepared)


def _members(chunk: Chunk) -> list[torch.Tensor]:
    return [*([] if chunk.base is None else [chunk.base]), *chunk.models]
