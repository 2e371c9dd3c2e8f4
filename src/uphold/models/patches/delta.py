"""What a patch adds to one tensor, and the one sum by which it is added."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from uphold.core.errors import UsageError
from uphold.models.patches.quantise import Quantised, Scheme, quantise

CHUNK = 1 << 22
"""Elements that are worked on at once."""


@dataclass(frozen=True, eq=False)
class Delta:
    """What is added to one tensor: to all of it, to some elements, or to some rows or columns."""

    shape: tuple[int, ...]
    """Of the tensor that it is added to."""
    values: torch.Tensor | Quantised
    """The numbers, flat, float32 or quantised."""
    indices: torch.Tensor | None = None
    """Which elements (offsets in the flattened tensor) or which slices of `dim`: int64, increasing. None for all."""
    dim: int | None = None
    """The dimension that `indices` counts along: 0 for rows, 1 for columns; None where they are flat offsets. `values`
    then holds one whole slice after the other."""

    @classmethod
    def dense(cls, values: torch.Tensor) -> Delta:
        """Added to a whole tensor of the shape of `values`."""
        return cls(tuple(values.shape), _flat(values))

    @classmethod
    def sparse(cls, shape: Sequence[int], indices: torch.Tensor, values: torch.Tensor) -> Delta:
        """Added to single elements.

        Args:
            shape: of the tensor.
            indices: offsets in the flattened tensor, each at most once, shape (n,).
            values: what is added there, shape (n,).
        """
        order = torch.argsort(indices)
        return cls(tuple(shape), _flat(values)[order.cpu()], indices.detach()[order].cpu().long())._checked()

    @classmethod
    def slices(cls, shape: Sequence[int], dim: int, indices: Sequence[int], values: torch.Tensor) -> Delta:
        """Added to whole rows (`dim` 0), columns (`dim` 1) or slices of a higher dimension.

        Args:
            shape: of the tensor.
            dim: which dimension `indices` counts along.
            indices: which slices, each at most once.
            values: shape (n, ...): what is added to each slice, of the tensor's shape without `dim`.
        """
        place = torch.tensor(list(indices), dtype=torch.int64)
        order = torch.argsort(place)
        ordered = values.detach().cpu()[order]
        return cls(tuple(shape), _flat(ordered), place[order], dim)._checked()

    @property
    def count(self) -> int:
        """How many numbers it holds."""
        return self.values.count if isinstance(self.values, Quantised) else self.values.numel()

    @property
    def elements(self) -> int:
        """How many elements the whole tensor has."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that it takes in a file, but for the header."""
        places = 0 if self.indices is None else self.indices.numel() * place_dtype(self).itemsize
        return self.values.nbytes + places

    def quantised(self, how: Scheme) -> Delta:
        """The same with few bits a number."""
        return replace(self, values=quantise(self.part(0, self.count), how))

    def part(self, start: int, stop: int) -> torch.Tensor:
        """Numbers `start` to `stop` (excluded) of `values`, float32."""
        return _part(self.values, start, stop)

    def tensor(self) -> torch.Tensor:
        """All of it as a float32 tensor of its shape, zero where nothing is added."""
        found = torch.zeros(self.elements)
        places, values = self.flat()
        found[slice(None) if places is None else places] = _part(values, 0, self.count)
        return found.reshape(self.shape)

    def smallest(self) -> Delta:
        """The same, dense where that takes fewer bytes."""
        return self if self.indices is None or self.nbytes < 4 * self.elements else Delta.dense(self.tensor())

    def flat(self) -> tuple[torch.Tensor | None, torch.Tensor | Quantised]:
        """Increasing flat offsets (None for all elements) and the numbers that belong to them."""
        if self.indices is None or self.dim is None:
            return self.indices, self.values
        grid: torch.Tensor = torch.zeros(1, dtype=torch.int64)
        for dim, size in enumerate(self.shape):
            along = self.indices if dim == self.dim else torch.arange(size)
            grid = grid[..., None] * size + along
        values = self.part(0, self.count).reshape(len(self.indices), *_slice_shape(self)).movedim(0, self.dim)
        return grid.reshape(-1), values.reshape(-1)

    def check(self) -> Delta:
        """Itself, where its parts fit together and every number is finite.

        Raises:
            ValueError: they do not; the message says what was found.
        """
        self._checked()
        if not isinstance(self.values, Quantised) and not bool(torch.isfinite(self.values).all()):
            raise ValueError("a number that is not finite")
        return self

    def _checked(self) -> Delta:
        if self.dim is not None and not 0 <= self.dim < len(self.shape):
            raise ValueError(f"dimension {self.dim} of a tensor of shape {self.shape}")
        size = self.elements if self.dim is None else self.shape[self.dim]
        expected = self.elements
        if self.indices is not None:
            many = self.indices.numel()
            expected = many if self.dim is None else many * (self.elements // size if size else 0)
            if many and (int(self.indices[0]) < 0 or int(self.indices[-1]) >= size):
                raise ValueError(f"an index outside 0 to {size - 1}")
            if many > 1 and not bool((self.indices[1:] > self.indices[:-1]).all()):
                raise ValueError("an index that is there twice, or indices out of order")
        if self.count != expected:
            raise ValueError(f"{self.count:,} numbers where {expected:,} are needed")
        return self


def place_dtype(delta: Delta) -> torch.dtype:
    """What a delta's indices are stored as."""
    return torch.int32 if delta.elements <= 2**31 - 1 else torch.int64


class Piece(NamedTuple):
    """A contiguous part of a patched tensor."""

    start: int
    """Offset of its first element in the flattened tensor."""
    values: torch.Tensor
    """Of the tensor's own dtype, shape (n,)."""
    asked: int
    """How many of these elements the sum was to change."""
    lost: int
    """How many of those are what they were, since the change rounds away in the tensor's dtype."""


def fused(name: str, pristine: torch.Tensor, terms: Sequence[tuple[float, Delta]]) -> Iterator[Piece]:
    """`pristine + sum of strength * delta`, piece by piece; elements with a sum of zero keep their very bits.

    Args:
        name: what the tensor is called in messages.
        pristine: the weights without any patch; floating point.
        terms: strengths and deltas, summed in this order.

    Raises:
        UsageError: the tensor does not hold floating-point numbers, or the sum overflows its dtype.
    """
    if not pristine.is_floating_point():
        raise UsageError(f"'{name}' holds {dtype_name(pristine)}: nothing can be added to it, only replaced")
    flat = pristine.detach().reshape(-1)
    accumulate = torch.promote_types(flat.dtype, torch.float32) if flat.dtype.itemsize > 1 else torch.float32
    summed = _Sum(terms)
    for start in range(0, flat.numel(), CHUNK):
        piece = flat[start : start + CHUNK]
        added = summed.part(start, start + piece.numel())
        if added is None:
            yield Piece(start, piece, 0, 0)
            continue
        added = added.to(piece.device)
        changed = added != 0
        new = (piece.to(accumulate) + added).to(piece.dtype)
        if bool((changed & ~torch.isfinite(new.float()) & torch.isfinite(piece.float())).any()):
            raise UsageError(f"'{name}' overflows {dtype_name(pristine)} with these patches: lower their strength")
        asked = int(changed.sum())
        lost = int((changed & (new.to(accumulate) == piece.to(accumulate))).sum())
        yield Piece(start, torch.where(changed, new, piece), asked, lost)


def total(terms: Sequence[tuple[float, Delta]]) -> Delta:
    """The sum of strength * delta, summed in this order, as one float32 delta: sparse where that is smaller.

    Args:
        terms: strengths and deltas of one shape.
    """
    shape, dims = terms[0][1].shape, {delta.dim for _, delta in terms}
    if any(delta.indices is None for _, delta in terms) or len(dims) > 1:
        summed, found = _Sum(terms), torch.zeros(math.prod(shape))
        for start in range(0, len(found), CHUNK):
            part = summed.part(start, min(start + CHUNK, len(found)))
            if part is not None:
                found[start : start + CHUNK] = part
        return Delta(shape, found)
    indices = torch.unique(torch.cat([delta.indices for _, delta in terms if delta.indices is not None]))
    values = torch.zeros(len(indices), *_slice_shape(terms[0][1]))
    for strength, delta in terms:
        assert delta.indices is not None
        part = delta.part(0, delta.count).reshape(len(delta.indices), *values.shape[1:])
        values[torch.searchsorted(indices, delta.indices)] += part * strength
    return Delta(shape, values.reshape(-1), indices, dims.pop()).smallest()


def _slice_shape(delta: Delta) -> list[int]:
    return [] if delta.dim is None else [size for dim, size in enumerate(delta.shape) if dim != delta.dim]


class _Sum:
    """A weighted sum of deltas, looked at in parts. The parts do not depend on where they are cut."""

    def __init__(self, terms: Sequence[tuple[float, Delta]]) -> None:
        self._terms = [(strength, *delta.flat()) for strength, delta in terms]

    def part(self, start: int, stop: int) -> torch.Tensor | None:
        """Elements `start` to `stop` (excluded), float32; None where no delta has any."""
        found: torch.Tensor | None = None
        for strength, indices, values in self._terms:
            if indices is None:
                found = torch.zeros(stop - start) if found is None else found
                found += _part(values, start, stop) * strength
                continue
            low, high = torch.searchsorted(indices, torch.tensor([start, stop])).tolist()
            if low < high:
                found = torch.zeros(stop - start) if found is None else found
                found[indices[low:high] - start] += _part(values, low, high) * strength
        return found


def _part(values: torch.Tensor | Quantised, start: int, stop: int) -> torch.Tensor:
    return values.part(start, stop) if isinstance(values, Quantised) else values[start:stop]


def replaced(name: str, like: torch.Tensor, terms: Sequence[tuple[float, torch.Tensor]]) -> torch.Tensor:
    """What takes the place of a tensor: the mean of the replacements, weighted by strength (arXiv:2302.12480).

    Args:
        name: what the tensor is called in messages.
        like: the tensor; the result has its dtype and device.
        terms: strengths above 0 and replacements.

    Raises:
        UsageError: a strength is negative, or several patches replace an integer tensor by different values.
    """
    if any(strength < 0 for strength, _ in terms):
        raise UsageError(f"a patch that replaces '{name}' cannot have a negative strength")
    first = terms[0][1]
    if all(first.dtype == other.dtype and torch.equal(first, other) for _, other in terms[1:]):
        return first.to(like.device, like.dtype)
    if not like.is_floating_point():
        raise UsageError(f"two patches replace '{name}' ({dtype_name(like)}) by different values: apply one of them")
    mean = sum(strength * other.double() for strength, other in terms) / sum(strength for strength, _ in terms)
    return torch.as_tensor(mean).to(like.device, like.dtype)


def _flat(values: torch.Tensor) -> torch.Tensor:
    return values.detach().to("cpu", torch.float32).contiguous().reshape(-1)


def dtype_name(tensor: torch.Tensor) -> str:
    """`float32`, `bfloat16` and so on."""
    return str(tensor.dtype).removeprefix("torch.")
