"""Multi-SLERP: the mean direction of several models, or of what they changed, at their mean norm.

Goddard, "Multi-SLERP" (goddard.blog, 2025).

    theta = (sum_i w_i |theta_i|) m / |m|,   m = sum_i w_i theta_i / |theta_i|

The description goes on from m in its tangent space by the weighted sum of the tangents towards all models; at m that
sum is zero, so m is the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from uphold.core.registry import merge
from uphold.merge._sums import WEIGHT, check_sum, moved, weighted_mean, weighted_sum
from uphold.merge.protocol import Chunk, MergeMethod, Parameter, Settings, View

if TYPE_CHECKING:
    import torch


@merge("multislerp")
class MultiSlerp(MergeMethod):
    """Mean direction of several models, or of their changes against a base, at their mean norm."""

    base = "optional"
    parameters = (
        WEIGHT,
        Parameter("normalize_weights", True, help="divide the weights by their sum"),
        Parameter(
            "eps", 1e-8, low=0.0, help="taken from mergekit's recipes, without effect: norms are divided by exactly"
        ),
    )

    def prepare(self, view: View, settings: Settings, surveyed: object) -> Sequence[float] | None:
        """One coefficient per model; None where the result is the weighted mean.

        Raises:
            UsageError: the weights add up to 0, or the directions cancel each other.
        """
        from uphold.models.gram import gram
        from uphold.models.spherical import are_parallel, mean_direction

        weights = _weights(settings, view.name)
        if sum(weight != 0 for weight in weights) == 1 and settings.options["normalize_weights"]:
            return None
        parts = (chunk.models if chunk.base is None else chunk.changes for chunk in view.chunks())
        inner = gram(([one.reshape(-1) for one in part] for part in parts), len(weights))
        if are_parallel(inner) and settings.options["normalize_weights"]:
            return None
        found = mean_direction(inner, weights, view.name)
        return weights if found is None else found

    def combine(self, chunk: Chunk, settings: Settings, prepared: Sequence[float] | None) -> torch.Tensor:
        """The mean; equal models give that model, bit for bit."""
        if prepared is None:
            return weighted_mean(chunk.models, settings.of("weight"))
        if chunk.base is None:
            return weighted_sum(chunk.models, prepared)
        return moved(chunk.base, weighted_sum(chunk.changes, prepared))


def _weights(settings: Settings, name: str) -> list[float]:
    weights = settings.of("weight")
    if not settings.options["normalize_weights"]:
        return weights
    total = check_sum(weights, "multislerp", name)
    return [weight / total for weight in weights]
