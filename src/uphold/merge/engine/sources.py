"""One model's part in one tensor of the result, read in pieces as float32."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch

from uphold.merge.engine.inputs import Input

_BLOCK = 4096
"""Rows that are summed up at once for a mean: always the same ones."""


class Source(Protocol):
    """A tensor of the result's shape, of which pieces can be read."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the result."""

    def read(self, start: int, stop: int) -> torch.Tensor:
        """Elements `start` to `stop` of the flattened tensor. Shape: (stop - start,), float32; not to be changed."""

    def nbytes(self) -> int:
        """Bytes that reading all of it once takes from the disk."""


@dataclass(frozen=True)
class Stored:
    """A tensor as it is stored, with what the model's adapter changes; its first rows where `rows` says so."""

    model: Input
    name: str
    """In that model."""
    rows: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor, or of its first rows."""
        shape = self.model.checkpoint.infos[self.name].shape
        return shape if self.rows is None else (self.rows, *shape[1:])

    def read(self, start: int, stop: int) -> torch.Tensor:
        """See `Source`; where nothing has to be computed, this is the file's own memory."""
        flat = self.raw()[start:stop].float()
        update = self.model.updates.get(self.name)
        return flat if update is None else update.apply(flat, start)

    def raw(self) -> torch.Tensor:
        """All of it as it is stored, without the adapter. Shape: (elements,)."""
        return self.model.checkpoint.tensor(self.name).reshape(-1)

    def nbytes(self) -> int:
        """See `Source`."""
        return math.prod(self.shape) * self.model.checkpoint.infos[self.name].dtype.itemsize


@dataclass(frozen=True)
class Permuted:
    """Rows by token: a model's own where it has the token, else the mean of those of others; then rows of padding."""

    own: Stored
    rows: torch.Tensor
    """The model's row of every token, -1 where it is to come from elsewhere. Shape: (tokens,), int64."""
    others: tuple[tuple[Stored, torch.Tensor], ...]
    """Further models, and their rows (-1 for none)."""
    padding: int
    """Rows behind the tokens; each is the mean of all rows before."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the result."""
        return (len(self.rows) + self.padding, *self.own.shape[1:])

    def read(self, start: int, stop: int) -> torch.Tensor:
        """See `Source`."""
        columns = math.prod(self.shape[1:])
        first, last = start // columns, -(-stop // columns)
        return self._rows(first, last).reshape(-1)[start - first * columns : stop - first * columns]

    def nbytes(self) -> int:
        """See `Source`."""
        return self.own.nbytes()

    def _rows(self, first: int, last: int) -> torch.Tensor:
        tokens = len(self.rows)
        found = self._tokens(first, min(last, tokens)) if first < tokens else None
        missing = last - max(first, tokens)
        if missing <= 0:
            assert found is not None
            return found
        filling = self._mean.expand(missing, -1)
        return filling.contiguous() if found is None else torch.cat([found, filling])

    def _tokens(self, first: int, last: int) -> torch.Tensor:
        rows = self.rows[first:last]
        result = _gathered(self.own, rows)
        absent = rows < 0
        if absent.any():
            total = torch.zeros_like(result)
            count = torch.zeros(len(rows), 1)
            for other, places in self.others:
                there = absent & (places[first:last] >= 0)
                if there.any():
                    total[there] += _gathered(other, places[first:last][there])
                    count[there] += 1
            result[absent] = (total / count.clamp(min=1))[absent]
        return result

    @cached_property
    def _mean(self) -> torch.Tensor:
        total = torch.zeros(math.prod(self.shape[1:]), dtype=torch.float64)
        for first in range(0, len(self.rows), _BLOCK):
            total += self._tokens(first, min(first + _BLOCK, len(self.rows))).double().sum(dim=0)
        return (total / len(self.rows)).float()


def _gathered(stored: Stored, rows: torch.Tensor) -> torch.Tensor:
    """Some rows of a stored matrix; zeros for -1. Shape: (rows, columns), float32."""
    columns = math.prod(stored.shape[1:])
    matrix = stored.raw().reshape(-1, columns)
    result = matrix[rows.clamp(min=0)].float()
    update = stored.model.updates.get(stored.name)
    if update is not None:
        for index, row in enumerate(rows.tolist()):
            if row >= 0:
                result[index] = update.apply(result[index], row * columns)
    result[rows < 0] = 0.0
    return result
