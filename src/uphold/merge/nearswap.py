"""NearSwap: take over from a model what is close to the base, move the rest by a fixed distance.

    theta = w theta_1 + (1 - w) theta_0,   w = min(t / |theta_1 - theta_0|, 1)

that is, theta_0 plus the difference clipped to [-t, t].
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from uphold.core.registry import merge
from uphold.merge._sums import moved
from uphold.merge.protocol import Chunk, MergeMethod, Parameter, Settings

if TYPE_CHECKING:
    import torch


@merge("nearswap")
class NearSwap(MergeMethod):
    """Move the base towards one model by at most t in every entry."""

    base = "required"
    at_most = 1
    parameters = (Parameter("t", low=0.0, help="largest distance that an entry moves"),)

    def combine(self, chunk: Chunk, settings: Settings, prepared: Any) -> torch.Tensor:
        """The base plus the clipped difference; entries that arrive are the model's, bit for bit."""
        assert chunk.base is not None
        t = settings.options["t"]
        if t == 0:
            return chunk.base
        (change,) = chunk.changes
        arrived = change.abs() <= t
        return chunk.models[0].where(arrived, moved(chunk.base, change.clamp_(-t, t)))
