"""The k largest of a stream of magnitudes, found exactly and without sorting.

Floats that are not negative are ordered as their bits are. One pass counts the upper 16 bits of every magnitude, a
second one the lower 16 bits of those that share the upper ones of the k-th largest: then its value is known. Where
several magnitudes equal it and not all are to be kept, the first ones are, and a third pass, over these alone, finds
the position of the last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch

Passes = Callable[[], Iterable[tuple[int, Sequence[torch.Tensor]]]]
"""Starts a pass: yields, in order, the offset of a chunk and the magnitudes of each stream in it, float32, 1-D."""
_HIGH, _LOW = 1 << 15, 1 << 16
_LARGEST = (1 << 31) - 1


class Cut(NamedTuple):
    """Which magnitudes are among the k largest."""

    value: float
    """Those above it are, those below are not."""
    last: int | None
    """Of those equal to it, the ones up to this position are; None for all."""

    def among(self, magnitudes: torch.Tensor, start: int) -> torch.Tensor:
        """Which of some magnitudes are among the k largest.

        Args:
            magnitudes: of shape (n,), not negative.
            start: position of the first one in the stream.

        Returns:
            1 and 0, of shape (n,), float32: to multiply with, which is much faster than filling by boolean masks.
        """
        inside = magnitudes.numel() if self.last is None else min(max(self.last + 1 - start, 0), magnitudes.numel())
        chosen = magnitudes.clone()
        chosen[:inside].ge_(self.value)
        chosen[inside:].gt_(self.value)
        return chosen


EVERYTHING = Cut(0.0, None)
NOTHING = Cut(float("inf"), -1)


class _Search:
    """The way to one cut: the k-th largest of one stream."""

    def __init__(self, stream: int, count: int) -> None:
        self.stream, self.count = stream, count
        self.high = 0
        self.low = torch.zeros(_LOW, dtype=torch.int64)
        self.value, self.equal = 0.0, 0
        self.last: int | None = None

    def found_high(self, histogram: torch.Tensor) -> None:
        """Settle the upper bits; `count` becomes the rank among those that share them."""
        self.high, self.count, _ = _rank(histogram, self.count)

    def found_low(self) -> None:
        """Settle the value; `count` becomes the number of equals to keep."""
        low, self.count, self.equal = _rank(self.low, self.count)
        bits = torch.tensor([(self.high << 16) | low], dtype=torch.int32)
        self.value = float(bits.view(torch.float32))

    def find_last(self, magnitudes: torch.Tensor, start: int) -> None:
        """Look for the position of the last equal one to keep."""
        places = torch.nonzero(magnitudes == self.value).flatten()
        if len(places) >= self.count:
            self.last = start + int(places[self.count - 1])
        self.count -= len(places)


def _rank(histogram: torch.Tensor, count: int) -> tuple[int, int, int]:
    """The bin of the `count`-th largest, its rank from the top inside the bin, and how many are in the bin."""
    from_top = histogram.flip(0).cumsum(0)
    place = int(torch.searchsorted(from_top, count))
    inside = int(histogram[len(histogram) - 1 - place])
    return len(histogram) - 1 - place, count - (int(from_top[place]) - inside), inside


def _count(histogram: torch.Tensor, values: torch.Tensor) -> None:
    """Add to a histogram."""
    counts = torch.bincount(values)
    histogram[: len(counts)] += counts


def largest(passes: Passes, counts: Sequence[Sequence[int]], length: int) -> list[list[Cut]]:
    """For each stream, and each k asked of it, what is among its k largest magnitudes.

    At most three passes; memory does not depend on the length. The result does not depend on the chunks.

    Args:
        passes: the streams, all of the same length.
        counts: for each stream, the values of k; k below 1 selects nothing, k of `length` and more everything.
        length: magnitudes in a stream.

    Returns:
        for each stream, a cut for each k.
    """
    searches = {
        (stream, count): _Search(stream, count) for stream, asked in enumerate(counts) for count in asked
        if 0 < count < length
    }  # fmt: skip
    if searches:
        _run(passes, list(searches.values()))

    def cut(stream: int, count: int) -> Cut:
        if count <= 0:
            return NOTHING
        if count >= length:
            return EVERYTHING
        found = searches[stream, count]
        return Cut(found.value, found.last)

    return [[cut(stream, count) for count in asked] for stream, asked in enumerate(counts)]


def _run(passes: Passes, searches: Sequence[_Search]) -> None:
    histograms = {search.stream: torch.zeros(_HIGH, dtype=torch.int64) for search in searches}
    for _, streams in passes():
        for stream, histogram in histograms.items():
            _count(histogram, streams[stream].view(torch.int32) >> 16)
    for search in searches:
        search.found_high(histograms[search.stream])
    for _, streams in passes():
        for search in searches:
            bits = streams[search.stream].view(torch.int32)
            _count(search.low, bits[bits >> 16 == search.high] & (_LOW - 1))
    for search in searches:
        search.found_low()
    torn = [search for search in searches if search.count < search.equal]
    for start, streams in passes() if torn else ():
        for search in torn:
            if search.last is None:
                search.find_last(streams[search.stream], start)
        if all(search.last is not None for search in torn):
            break


def row_order(values: torch.Tensor, *, descending: bool = False) -> torch.Tensor:
    """Positions of the entries of each row by magnitude; equals in order of position.

    Args:
        values: float32, shape (rows, columns) or (columns,).
        descending: the largest first.

    Returns:
        int64, of the same shape.
    """
    # Bits of non-negative floats are in the floats' order. With the position below them no two keys are equal, so that
    # numpy's vectorised sort will do, which is three times faster than a stable one of torch.
    bits = values.abs().view(torch.int32).to(torch.int64)
    keys = ((_LARGEST - bits if descending else bits) << 32) | torch.arange(values.shape[-1])
    keys.numpy().sort(axis=-1)
    return keys.bitwise_and_(0xFFFF_FFFF)
