"""SLERP: interpolation between two models along the sphere.

    theta = sin((1-t) omega) / sin(omega) theta_0 + sin(t omega) / sin(omega) theta_1,   cos(omega) = <u_0, u_1>

u_i is theta_i divided by its norm over the whole tensor, if that is above 1e-8; theta_i itself keeps its norm. Where
|cos(omega)| is above 0.9995, and so between most fine-tuned versions of one base, it is the linear interpolation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uphold.core.registry import merge
from uphold.merge._sums import weighted_mean, weighted_sum
from uphold.merge.protocol import Chunk, MergeMethod, Parameter, Settings, View

if TYPE_CHECKING:
    import torch


@merge("slerp")
class Slerp(MergeMethod):
    """Interpolation between the base (t = 0) and one model (t = 1) along the sphere."""

    base = "required"
    at_most = 1
    parameters = (Parameter("t", low=0.0, high=1.0, help="place between the base (0) and the model (1)"),)

    def prepare(self, view: View, settings: Settings, surveyed: object) -> tuple[float, float] | None:
        """The two coefficients; None where the interpolation is linear."""
        from uphold.models.gram import gram
        from uphold.models.spherical import slerp_shares

        t = settings.options["t"]
        if t in (0, 1):
            return None
        pairs = ((chunk.base, *chunk.models) for chunk in view.chunks() if chunk.base is not None)
        shares = slerp_shares(gram(pairs, 2), t)
        return None if shares.linear else (float(shares.first), float(shares.second))

    def combine(self, chunk: Chunk, settings: Settings, prepared: tuple[float, float] | None) -> torch.Tensor:
        """The interpolation; t = 0 and t = 1 are the models, bit for bit."""
        assert chunk.base is not None
        pair = (chunk.base, chunk.models[0])
        t = settings.options["t"]
        return weighted_mean(pair, (1 - t, t)) if prepared is None else weighted_sum(pair, prepared)
