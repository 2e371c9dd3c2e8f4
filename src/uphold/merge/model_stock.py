"""Model Stock: towards the mean of several models, the farther the more their changes agree.

Jang et al., "Model Stock: all we need is just a few fine-tuned models", ECCV 2024, arXiv:2403.19522.

    theta = t mean_i(theta_i) + (1 - t) theta_0,   t = N c / (1 + (N - 1) c)

c is the mean cosine between two of the N changes, over a tensor or, with `filter_wise`, over a row. t is kept in
[0, 1]: changes that point against each other (c < 0) leave the base, and a note says so.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from uphold.core.registry import merge
from uphold.merge._sums import weighted_mean
from uphold.merge.protocol import Chunk, MergeMethod, Parameter, Settings, View

if TYPE_CHECKING:
    import torch


class Prepared(NamedTuple):
    """How far to go."""

    t: torch.Tensor
    """Of shape () or (rows, 1), float32."""
    columns: int
    notes: tuple[str, ...]


@merge("model_stock", paper="arXiv:2403.19522")
class ModelStock(MergeMethod):
    """Between the base and the mean of the models, the farther the more their changes agree."""

    base = "required"
    unit = "row"
    at_least = 2
    parameters = (Parameter("filter_wise", False, help="one ratio per row instead of one per tensor"),)

    def prepare(self, view: View, settings: Settings, surveyed: object) -> Prepared:
        """The ratio t, from the cosines between the changes."""
        from uphold.models.gram import gram, row_grams

        count = len(settings.models)
        if settings.options["filter_wise"] and len(view.shape) > 1:
            rows = math.prod(view.shape[:-1])
            grams = row_grams((chunk.changes for chunk in view.chunks()), rows, count).unsqueeze(1)
        else:
            grams = gram(([one.reshape(-1) for one in chunk.changes] for chunk in view.chunks()), count)
        cosine = mean_cosine(grams)
        notes: tuple[str, ...] = ()
        if against := int((cosine < 0).sum()):
            where = f"{against} of {cosine.numel()} rows" if cosine.dim() else "all of it"
            notes = (
                f"{view.name}: the models' changes point against each other (mean cosine {float(cosine.min()):.3f}): "
                f"the base stays in {where}",
            )
        return Prepared(ratio(cosine, count).float(), view.shape[-1] if view.shape else 1, notes)

    def combine(self, chunk: Chunk, settings: Settings, prepared: Prepared) -> torch.Tensor:
        """The interpolation; t = 0 and t = 1 are exact."""
        assert chunk.base is not None
        t, mean = prepared.t, weighted_mean(chunk.models, [1.0] * len(chunk.models))
        if not t.dim():
            return weighted_mean((chunk.base, mean), (1 - float(t), float(t)))
        first = chunk.start // prepared.columns
        t = t[first : first + len(chunk.base)]
        away = chunk.base - mean
        return (mean + away * (1 - t)).where(t > 0.5, chunk.base - away * t)


def mean_cosine(grams: torch.Tensor) -> torch.Tensor:
    """The mean cosine between two of N vectors; one that is zero is at a right angle to all.

    Args:
        grams: inner products, shape (..., N, N).
    """
    import torch

    count = grams.shape[-1]
    norms = grams.diagonal(dim1=-2, dim2=-1).sqrt()
    norms = torch.where(norms > 0, norms, 1.0)
    cosines = (grams / (norms[..., :, None] * norms[..., None, :])).clamp(-1, 1)
    above = torch.ones(count, count).triu(1).bool()
    return cosines[..., above].mean(dim=-1)


def ratio(cosine: torch.Tensor, count: int) -> torch.Tensor:
    """The share of the mean of `count` models, in [0, 1]; 0 where their changes point against each other."""
    kept = cosine.clamp(min=0)
    return (count * kept / (1 + (count - 1) * kept)).clamp(max=1)
