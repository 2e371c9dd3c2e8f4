"""What methods on task vectors share: change against the base, select, fuse, add. Imports no torch.

    delta_i = theta_i - theta_0,   theta = theta_0 + lambda * fuse(w_1 select(delta_1), ..., w_K select(delta_K))

Fusing is a sum or, with sign consensus (TIES, arXiv:2306.01708), the sum over the entries that have the sign of the
total. `normalize` divides by the sum of the weights that went into an entry.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from uphold.merge._sums import (
    DENSITY,
    INT8_MASK,
    LAMBDA,
    SMALLEST,
    WEIGHT,
    agreeing,
    moved,
    positive_sign,
    total_of,
)
from uphold.merge.protocol import Chunk, MergeMethod, Parameter, Settings

if TYPE_CHECKING:
    import torch


def normalize(default: bool) -> Parameter:
    """The switch `normalize`."""
    return Parameter("normalize", default, help="divide every entry by the sum of the weights that went into it")


def selecting(by_default: bool, rescale: Parameter, *more: Parameter) -> tuple[Parameter, ...]:
    """Parameters of a method that selects entries; `by_default` is that of `normalize`."""
    return (WEIGHT, DENSITY, *more, normalize(by_default), rescale, LAMBDA, INT8_MASK)


class TaskVectors(MergeMethod):
    """A method that adds changes to the base. Subclasses select entries of a change in `kept`."""

    base = "required"
    consensus: ClassVar[bool] = False
    """Whether only entries of the elected sign count."""

    def kept(self, model: int, change: torch.Tensor, chunk: Chunk, settings: Settings, prepared: Any) -> torch.Tensor:
        """What is kept of one model's change; may be `change` itself, which may be written to."""
        return change

    def combine(self, chunk: Chunk, settings: Settings, prepared: Any) -> torch.Tensor:
        """The base plus lambda times the fused changes; lambda 0 is the base, bit for bit."""
        assert chunk.base is not None
        strength = settings.options["lambda"]
        if strength == 0:
            return chunk.base
        changes = [self.kept(index, one, chunk, settings, prepared) for index, one in enumerate(chunk.changes)]
        fused = fuse(changes, settings.of("weight"), self.consensus, settings.options["normalize"])
        return moved(chunk.base, fused if strength == 1 else fused.mul_(strength))


def fuse(changes: Sequence[torch.Tensor], weights: Sequence[float], consensus: bool, normalize: bool) -> torch.Tensor:
    """Several changes as one.

    Args:
        changes: of one shape; they are overwritten.
        weights: one per change.
        consensus: take only entries with the sign of the weighted sum (0 counts as +).
        normalize: divide by the sum of weights, per entry where there is a consensus; where it is 0, do not.
    """
    for change, weight in zip(changes, weights, strict=True):
        if weight != 1:
            change.mul_(weight)
    if not consensus:
        total = total_of(changes)
        divisor = sum(weights)
        return total.div_(divisor) if normalize and abs(divisor) >= SMALLEST else total
    return agreeing(changes, positive_sign(total_of(changes)), weights if normalize else None)
