"""Inner products of tensors that are read in parts; the parts do not show in the result.

Products are added in float64 inside blocks at fixed places, and the blocks' sums exactly (`math.fsum`): neither the
chunks nor the number of threads change a bit.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator, Sequence

import torch

BLOCK = 4096
_AT_ONCE = 16
"""Blocks that are widened to float64 at once: they stay in the processor's cache."""


def aligned(chunks: Iterable[Sequence[torch.Tensor]], block: int = BLOCK) -> Iterator[list[torch.Tensor]]:
    """Cut a stream anew: every part but the last is a multiple of `block` long.

    Args:
        chunks: consecutive parts of several equally long 1-D tensors.
        block: the length whose multiples are wanted.

    Yields:
        the same numbers in the same order; only what a chunk leaves over of a block is copied.
    """
    rest: list[torch.Tensor] = []
    for chunk in chunks:
        tensors = list(chunk)
        if rest:
            wanted = block - rest[0].numel()
            rest = [torch.cat([old, new[:wanted]]) for old, new in zip(rest, tensors, strict=True)]
            tensors = [tensor[wanted:] for tensor in tensors]
            if rest[0].numel() < block:
                continue
            yield rest
            rest = []
        whole = tensors[0].numel() // block * block
        if whole:
            yield [tensor[:whole] for tensor in tensors]
        if whole < tensors[0].numel():
            rest = [tensor[whole:].clone() for tensor in tensors]
    if rest:
        yield rest


def row_grams(chunks: Iterable[Sequence[torch.Tensor]], rows: int, count: int) -> torch.Tensor:
    """Inner products of K tensors, row by row.

    Args:
        chunks: consecutive parts of all tensors, each of shape (n, columns).
        rows: of all chunks together.
        count: K.

    Returns:
        float64, shape (rows, K, K).
    """
    # One piece of memory for all: see `_Parts`.
    grams, first = torch.zeros(rows, count, count, dtype=torch.float64), 0
    for tensors in chunks:
        found = _row_grams(tensors)
        grams[first : first + len(found)] = found
        first += len(found)
    return grams


def _row_grams(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    stacked = torch.empty(len(tensors[0]), len(tensors), tensors[0].shape[1], dtype=torch.float64)
    for index, tensor in enumerate(tensors):
        stacked[:, index].copy_(tensor)
    return torch.bmm(stacked, stacked.transpose(1, 2))


def gram(chunks: Iterable[Sequence[torch.Tensor]], count: int) -> torch.Tensor:
    """Inner products of K tensors.

    Args:
        chunks: consecutive parts of all tensors, each of shape (n,).
        count: K.

    Returns:
        float64, shape (K, K).
    """
    parts = _Parts(count, count)
    for tensors in aligned(chunks):
        blocks = [_blocks(tensor) for tensor in tensors]
        for start in range(0, len(blocks[0]), _AT_ONCE):
            parts.add(_row_grams([one[start : start + _AT_ONCE] for one in blocks]))
    return parts.sum()


def column_grams(chunks: Iterable[tuple[int, Sequence[torch.Tensor]]], rows: int) -> torch.Tensor:
    """Inner products of K tensors along their first dimension, for every place in the others.

    Args:
        chunks: number of a chunk's first row, and the chunk of each tensor, shape (n, columns); row i of a tensor's
            first dimension consists of `rows` of these rows.
        rows: how many rows one step along the first dimension takes: 1 for a matrix.

    Returns:
        float64, shape (rows, columns, K, K).
    """
    total: torch.Tensor | None = None
    for first, tensors in chunks:
        if total is None:
            total = torch.zeros(rows, tensors[0].shape[1], len(tensors), len(tensors), dtype=torch.float64)
        done = 0
        while done < len(tensors[0]):
            # One step at a time: the order of additions is that of the rows, whatever the chunks.
            place = (first + done) % rows
            count = min(rows - place, len(tensors[0]) - done)
            part = torch.stack([tensor[done : done + count] for tensor in tensors], dim=-1).double()
            total[place : place + count] += part[..., :, None] * part[..., None, :]
            done += count
    assert total is not None
    return total


def absolute_sums(chunks: Iterable[Sequence[torch.Tensor]], count: int) -> list[float]:
    """The sum of absolute values of each of `count` tensors, read in parts of shape (n,)."""
    parts = _Parts(count)
    for tensors in aligned(chunks):
        parts.add(torch.stack([_blocks(tensor).abs().sum(dim=1, dtype=torch.float64) for tensor in tensors], dim=1))
    return [float(one) for one in parts.sum()]


def _blocks(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor as rows of one block, filled up with zeros."""
    missing = -tensor.numel() % BLOCK
    return (torch.nn.functional.pad(tensor, (0, missing)) if missing else tensor).view(-1, BLOCK)


class _Parts:
    """Sums of blocks, kept as plain numbers.

    Small tensors that live on between large ones that come and go keep the allocator from using their memory again:
    gigabytes for a tensor of 256 MB.
    """

    def __init__(self, *shape: int) -> None:
        self.shape = shape
        self._columns: list[array[float]] = [array("d") for _ in range(math.prod(shape))]

    def add(self, sums: torch.Tensor) -> None:
        """Take the sums of several blocks: float64, shape (blocks, *shape)."""
        for column, numbers in zip(self._columns, sums.flatten(1).T.tolist(), strict=True):
            column.extend(numbers)

    def sum(self) -> torch.Tensor:
        """The sum over all blocks, rounded once: float64 of the shape."""
        return torch.tensor([math.fsum(column) for column in self._columns], dtype=torch.float64).view(self.shape)
