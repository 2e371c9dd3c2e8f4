"""Breadcrumbs: drop the largest and the smallest changes, add up the rest.

Davari and Belilovsky, "Model breadcrumbs: scaling multi-task model merging with sparse masks", ECCV 2024,
arXiv:2312.06795.

Of the n entries of a change, the int(gamma n) largest are dropped and the next int(density n) kept; where this is more
than there are, fewer of the largest are dropped. Masks are per tensor, as in mergekit; `breadcrumbs_paper` has them
per row.
"""

from __future__ import annotations

from uphold.core.registry import merge
from uphold.merge._task_vectors import selecting
from uphold.merge._trim import RESCALE, Trimmed
from uphold.merge.protocol import Parameter, Settings

GAMMA = Parameter("gamma", 0.01, per_model=True, low=0.0, high=1.0, help="share of the largest changes that is dropped")


def middle(density: float, gamma: float, length: int) -> tuple[int, int]:
    """How many of the largest of `length` entries are dropped, and how many are kept after them (at least one)."""
    count = max(1, int(density * length))
    return min(int(gamma * length), length - count), count


@merge("breadcrumbs", paper="arXiv:2312.06795")
class Breadcrumbs(Trimmed):
    """Drop the largest and the smallest changes of each tensor, add the rest to the base."""

    parameters = selecting(False, RESCALE, GAMMA)

    def ranks(self, settings: Settings, model: int, length: int) -> tuple[int, int]:
        """How many of the largest entries are too large, and how many are kept after them."""
        return middle(settings.models[model]["density"], settings.models[model]["gamma"], length)
