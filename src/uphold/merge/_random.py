"""Random masks, rescaled so that what is kept has the change as its mean. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from uphold.merge._task_vectors import TaskVectors, selecting
from uphold.merge.protocol import Chunk, Parameter, Settings, View

if TYPE_CHECKING:
    import torch

RESCALE = Parameter("rescale", True, help="divide what is kept by the probability of keeping it")


class RandomMask(TaskVectors):
    """DARE: keeps each entry of a change with the same probability and divides it by that."""

    parameters = selecting(False, RESCALE)

    def prepare(self, view: View, settings: Settings, surveyed: Any) -> View:
        """The tensor, which has the random numbers."""
        return view

    def kept(self, model: int, change: torch.Tensor, chunk: Chunk, settings: Settings, prepared: View) -> torch.Tensor:
        """The change with a random mask on it; density 1 draws no numbers."""
        density = settings.models[model]["density"]
        if density >= 1:
            return change
        change.mul_(drawn(prepared, model, chunk.start, change).lt_(density))
        return change.div_(density) if settings.options["rescale"] else change


def drawn(view: View, model: int, start: int, like: torch.Tensor) -> torch.Tensor:
    """Uniform numbers in [0, 1) for a chunk, in its shape."""
    import torch

    return torch.from_numpy(view.uniform(model, start, like.numel())).view(like.shape)
