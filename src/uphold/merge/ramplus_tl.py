"""RAM+, tensor by tensor: RAM that makes up for what averaging takes from a model.

"Reinforced Agent Merging", 2026, arXiv:2601.13572. As `ram`, but what model i alone changed is scaled by

    1 + r clip(shared_i / unique_i, 0, alpha)

with the numbers of entries of the tensor that i changed together with others, and alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uphold.core.registry import merge
from uphold.merge._sums import moved, total_of
from uphold.merge.protocol import Chunk, MergeMethod, Parameter, Settings, View
from uphold.merge.ram import EPSILON, active_changes

if TYPE_CHECKING:
    import torch


@merge("ramplus_tl", paper="arXiv:2601.13572")
class RamPlusTensorLocal(MergeMethod):
    """RAM that scales up what one model alone changed, by how much it shares with others."""

    base = "required"
    parameters = (
        Parameter("r", 0.1, low=0.0, help="how much is made up for"),
        Parameter("alpha", 0.2, low=0.0, help="largest ratio of shared to unique entries that counts"),
        EPSILON,
    )

    def prepare(self, view: View, settings: Settings, surveyed: object) -> list[float]:
        """The scale of each model's own changes."""
        shared, alone = [0] * len(settings.models), [0] * len(settings.models)
        for chunk in view.chunks():
            _, active, counts = active_changes(chunk, settings.options["epsilon"])
            several = counts.gt_(1)
            for index, mask in enumerate(active):
                both = int((mask * several).count_nonzero())
                shared[index] += both
                alone[index] += int(mask.count_nonzero()) - both
        # A model without entries of its own has nothing that a scale could act on.
        r, alpha = settings.options["r"], settings.options["alpha"]
        return [1 + r * min(one / other, alpha) if other else 1.0 for one, other in zip(shared, alone, strict=True)]

    def combine(self, chunk: Chunk, settings: Settings, prepared: list[float]) -> torch.Tensor:
        """The base plus the changes."""
        assert chunk.base is not None
        changes, active, counts = active_changes(chunk, settings.options["epsilon"])
        alone = counts.clone().eq_(1)
        for change, mask, scale in zip(changes, active, prepared, strict=True):
            change.mul_(mask).mul_((alone * (scale - 1)).add_(1))
        return moved(chunk.base, total_of(changes).div_(counts.clamp_(min=1)))
