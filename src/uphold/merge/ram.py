"""RAM: what one model alone changed is added whole, what several changed is averaged.

"Reinforced Agent Merging", 2026, arXiv:2601.13572.

    theta = theta_0 + sum_i d_i [|d_i| > epsilon] / n,   n = the number of models with |d_i| > epsilon
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from uphold.core.registry import merge
from uphold.merge._sums import moved, total_of
from uphold.merge.protocol import Chunk, MergeMethod, Parameter, Settings

if TYPE_CHECKING:
    import torch

EPSILON = Parameter("epsilon", 1e-5, low=0.0, help="size above which an entry counts as changed")


@merge("ram", paper="arXiv:2601.13572")
class Ram(MergeMethod):
    """Add what one model alone changed, average what several changed."""

    base = "required"
    parameters = (EPSILON,)

    def combine(self, chunk: Chunk, settings: Settings, prepared: Any) -> torch.Tensor:
        """The base plus the changes."""
        assert chunk.base is not None
        changes, active, counts = active_changes(chunk, settings.options["epsilon"])
        for change, mask in zip(changes, active, strict=True):
            change.mul_(mask)
        return moved(chunk.base, total_of(changes).div_(counts.clamp_(min=1)))


def active_changes(chunk: Chunk, epsilon: float) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]:
    """Each model's changes, which of them are larger than epsilon (1 or 0), and how many models changed each entry."""
    changes = chunk.changes
    active = [change.abs().gt_(epsilon) for change in changes]
    return changes, active, total_of(active)
