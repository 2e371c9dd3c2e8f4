"""DELLA without consensus: drop changes at random, small ones more often, and add up the rest.

Deep et al., "DELLA-Merging: reducing interference in model merging through magnitude-based sampling", 2024,
arXiv:2406.11617.

    p = (density - epsilon) + 2 epsilon (rank - 1) / (R - 1)

rank, from 1, is that of the magnitude in its row of R entries (a tensor of one dimension is a row). What is kept is
divided by its own p, as in the paper, so that the mean over masks is the change itself; mergekit restores the L1 norm
of each tensor instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from uphold.core.errors import UsageError
from uphold.core.registry import merge
from uphold.merge._random import RESCALE, RandomMask, drawn
from uphold.merge._task_vectors import selecting
from uphold.merge.protocol import Chunk, Parameter, Settings, View

if TYPE_CHECKING:
    import torch


def epsilon(default: float) -> Parameter:
    """Half the width of the band of probabilities."""
    return Parameter("epsilon", default, per_model=True, low=0.0, high=0.5, help="p is in density -/+ epsilon")


@merge("della_linear", paper="arXiv:2406.11617")
class DellaLinear(RandomMask):
    """Drop changes at random, small ones of a row more often; rescale the rest, add up."""

    unit = "row"
    parameters = selecting(False, RESCALE, epsilon(0.15))

    def survey(self, views: Iterator[tuple[View, Settings]]) -> None:
        """Check all settings before anything is merged."""
        for view, settings in views:
            _check(settings, view.name)

    def kept(self, model: int, change: torch.Tensor, chunk: Chunk, settings: Settings, prepared: Any) -> torch.Tensor:
        """The change with a random mask on it; density 1 draws no numbers."""
        chosen = settings.models[model]
        if chosen["density"] >= 1:
            return change
        probability = keep_probability(change, chosen["density"], chosen["epsilon"])
        change.mul_(drawn(prepared, model, chunk.start, change).lt_(probability))
        return change.div_(probability) if settings.options["rescale"] else change


def keep_probability(change: torch.Tensor, density: float, epsilon: float) -> torch.Tensor:
    """The probability of keeping each entry, by the rank of its magnitude in its row; equals in order of position.

    Args:
        change: of shape (rows, columns).
        density: mean of the probabilities of a row.
        epsilon: half their range; a row of one entry has `density`.
    """
    import torch

    from uphold.models.selection import row_order

    columns = change.shape[-1]
    by_rank = torch.linspace(density - epsilon, density + epsilon, columns) if columns > 1 else torch.tensor([density])
    return torch.empty_like(change).scatter_(-1, row_order(change), by_rank.expand_as(change))


def _check(settings: Settings, name: str) -> None:
    for model in settings.models:
        density, band = model["density"], model["epsilon"]
        if density < 1 and not 0 < density - band <= density + band < 1:
            raise UsageError(
                f"density {density:g} and epsilon {band:g} at {name}: density -/+ epsilon must lie between 0 and 1; "
                f"set epsilon below {min(density, 1 - density):g}"
            )
