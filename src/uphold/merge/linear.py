"""Linear: a weighted mean of models ("model soup").

Wortsman et al., "Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing
inference time", ICML 2022, arXiv:2203.05482.

    theta = sum_i w_i theta_i / sum_i w_i                                    (divided where `normalize` is set)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from uphold.core.registry import merge
from uphold.merge._sums import WEIGHT, check_sum, weighted_mean, weighted_sum
from uphold.merge.protocol import Chunk, MergeMethod, Parameter, Settings, View

if TYPE_CHECKING:
    import torch


@merge("linear", paper="arXiv:2203.05482")
class Linear(MergeMethod):
    """Weighted mean of models."""

    base = "optional"
    parameters = (WEIGHT, Parameter("normalize", True, help="divide by the sum of the weights"))

    def prepare(self, view: View, settings: Settings, surveyed: object) -> Sequence[float]:
        """All weights; the base has one where the recipe lists it among the models.

        Raises:
            UsageError: they are to be normalised and add up to 0.
        """
        weights = [*settings.of("weight")]
        if "weight" in settings.base:
            weights.insert(0, settings.base["weight"])
        if settings.options["normalize"]:
            check_sum(weights, "linear", view.name)
        return weights

    def combine(self, chunk: Chunk, settings: Settings, prepared: Sequence[float]) -> torch.Tensor:
        """The mean of a chunk, or the plain sum."""
        tensors = list(chunk.models)
        if len(prepared) > len(tensors):
            assert chunk.base is not None
            tensors.insert(0, chunk.base)
        # Weights that add up to 1 are a mean already, and a mean leaves alone what all models share.
        if settings.options["normalize"] or math.isclose(math.fsum(prepared), 1.0, rel_tol=1e-12):
            return weighted_mean(tensors, prepared)
        return weighted_sum(tensors, prepared)
