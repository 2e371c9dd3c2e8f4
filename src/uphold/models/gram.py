"""Inner products of tensors that are read in parts; the parts do not show in the result.

Products are added in float64 inside blocks at fixed places, and the blocks' sums exactly (`math.fsum`): neither the
chunks nor the number of threads change a bit.
"""

from __future__ import annotations

import math
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


def row_grams(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Inner products of K tensors, row by row.

    Args:
        tensors: each of shape (rows, columns).

    Returns:
        float64, shape (rows, K, K).
    """
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
    parts = [torch.zeros(0, count, count, dtype=torch.float64)]
    for tensors in aligned(chunks):
        blocks = [_blocks(tensor) for tensor in tensors]
        for start in range(0, len(blocks[0]), _AT_ONCE):
            parts.append(row_grams([one[start : start + _AT_ONCE] for one in blocks]))
    return _exact_sum(torch.cat(parts))


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
    parts = [torch.zeros(0, count, dtype=torch.float64)]
    parts += [
        torch.stack([_blocks(tensor).abs().sum(dim=1, dtype=torch.float64) for tensor in tensors], dim=1)
        for tensors in aligned(chunks)
    ]
    return [float(one) for one in _exact_sum(torch.cat(parts))]


def _blocks(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor as rows of one block, filled up with zeros."""
    missing = -tensor.numel() % BLOCK
    return (torch.nn.functional.pad(tensor, (0, missing)) if missing else tensor).view(-1, BLOCK)


def _exact_sum(parts: torch.Tensor) -> torch.Tensor:
    """The sum over the first dimension, rounded once."""
    columns = parts.flatten(1).T.tolist()
    return torch.tensor([math.fsum(column) for column in columns], dtype=torch.float64).view(parts.shape[1:])
