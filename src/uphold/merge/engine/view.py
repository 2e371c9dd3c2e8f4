"""One tensor of all models, handed to a merge method in chunks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from uphold.merge.engine.counter import uniform
from uphold.merge.engine.plan import Planned
from uphold.merge.protocol import Chunk, Unit

if TYPE_CHECKING:
    import numpy as np

CHUNK = 1 << 18
"""Elements of one tensor that are worked on at once."""


@dataclass(frozen=True)
class TensorView:
    """A planned tensor as `uphold.merge.protocol.View`."""

    tensor: Planned
    unit: Unit
    seed: int
    size: int = CHUNK

    @property
    def name(self) -> str:
        """Its name in the result."""
        return self.tensor.name

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the result."""
        return self.tensor.shape

    def chunks(self) -> Iterator[Chunk]:
        """All of it, in order; every call starts anew."""
        base, models = self.tensor.base, self.tensor.models
        for start, stop in spans(self.shape, self.unit, self.size):
            shape = self._chunk_shape(stop - start)
            yield Chunk(
                start,
                base.read(start, stop).reshape(shape) if base is not None else None,
                [one.read(start, stop).reshape(shape) for one in models],
            )

    def uniform(self, model: int, start: int, count: int) -> np.ndarray:
        """See `uphold.merge.engine.counter`."""
        return uniform(self.seed, self.name, model, start, count)

    def _chunk_shape(self, count: int) -> tuple[int, ...]:
        if self.unit == "element":
            return (count,)
        if self.unit == "tensor":
            return self.shape
        columns = self.shape[-1] if self.shape else 1
        return (count // columns if columns else 0, columns)


def spans(shape: tuple[int, ...], unit: Unit, size: int = CHUNK) -> Iterator[tuple[int, int]]:
    """First element, and the one behind the last, of every chunk; whole rows where these are not too long."""
    total = math.prod(shape)
    columns = shape[-1] if shape else 1
    if unit == "tensor":
        size = total
    elif unit == "row" or columns <= size:
        size = max(1, size // max(1, columns)) * columns
    for start in range(0, total, max(1, size)):
        yield start, min(total, start + size)


def largest_chunk(shape: tuple[int, ...], unit: Unit, size: int = CHUNK) -> int:
    """Elements of the largest chunk of a tensor."""
    return max((stop - start for start, stop in spans(shape, unit, size)), default=0)
