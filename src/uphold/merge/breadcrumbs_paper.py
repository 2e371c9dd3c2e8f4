"""Breadcrumbs as in its authors' code: masks per row.

arXiv:2312.06795. The defaults are the point from which the authors' search starts; they tune lambda on validation.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from uphold.core.registry import merge
from uphold.merge._sums import DENSITY, LAMBDA, WEIGHT
from uphold.merge._task_vectors import TaskVectors, normalize
from uphold.merge.breadcrumbs import GAMMA, middle
from uphold.merge.protocol import Chunk, Settings

if TYPE_CHECKING:
    import torch


@merge("breadcrumbs_paper", paper="arXiv:2312.06795")
class BreadcrumbsPaper(TaskVectors):
    """Drop the largest and the smallest changes of each row, add the rest to the base."""

    unit = "row"
    parameters = (
        replace(WEIGHT, default=1.0),
        replace(DENSITY, default=0.15),
        replace(GAMMA, default=0.006),
        normalize(False),
        replace(LAMBDA, default=0.2),
    )

    def kept(self, model: int, change: torch.Tensor, chunk: Chunk, settings: Settings, prepared: Any) -> torch.Tensor:
        """The entries of middle rank in their row; equals in order of position."""
        import torch

        from uphold.models.selection import row_order

        chosen = settings.models[model]
        if chosen["density"] >= 1:
            return change
        above, count = middle(chosen["density"], chosen["gamma"], change.shape[-1])
        order = row_order(change, descending=True)
        return change.mul_(torch.zeros_like(change).scatter_(-1, order[..., above : above + count], 1.0))
