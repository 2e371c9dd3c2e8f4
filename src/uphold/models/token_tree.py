"""Token trees: every distinct prefix of a question's requests stands once.

A request is a context and a continuation, as token ids. Its row is all of its tokens but the last; the model's
prediction after row position i is asked for the token at i + 1. Rows that begin alike share nodes, so the context of
a question is read once for all options, options that differ in their last token only (single-token options above
all) add nothing, and equal options are one. Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

HEADER_COST = 64
"""Tokens that a header must save to be worth a forward pass of its own."""
KEYS = 8
"""How many more keys (header included) than tokens a batch may have: each row sees a header of its own in memory."""


class Request(NamedTuple):
    """A context (at least one token) and the continuation (at least one token) whose likelihood is asked for."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]

    @property
    def row(self) -> tuple[int, ...]:
        """What a model has to read: all tokens but the last."""
        return (self.context + self.continuation)[:-1]


@dataclass(frozen=True)
class TokenTree:
    """The rows of some requests, merged where they begin alike; parents come before their children."""

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    """Index of the node before each node; -1 for the first."""
    depths: tuple[int, ...]
    """Position of each node in its row, from 0."""
    targets: tuple[tuple[tuple[int, int], ...], ...]
    """For each request its (node, token) pairs: the node after which the token is predicted."""
    trunk: int
    """How many leading nodes are in every row and predict nothing that is asked for: what a header may hold."""

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def is_chain(self) -> bool:
        """Whether there is one row only, so that plain causal attention reads it."""
        return self.depths[-1] == len(self) - 1

    @property
    def needed(self) -> int:
        """How many nodes' predictions are asked for."""
        return len({node for targets in self.targets for node, _ in targets})

    def visible(self, skip: int = 0) -> npt.NDArray[np.bool_]:
        """Which nodes (columns) each node (rows) may attend to, without the first `skip` nodes."""
        size = len(self) - skip
        seen = np.tri(size, dtype=np.bool_)
        straight = next((node for node in range(1, len(self)) if self.parents[node] != node - 1), len(self))
        for node in range(max(straight, skip), len(self)):
            row, parent = node - skip, self.parents[node] - skip
            seen[row] = seen[parent] if parent >= 0 else False
            seen[row, row] = True
        return seen


def grow(requests: Sequence[Request]) -> TokenTree:
    """The tree of `requests`, at least one."""
    tokens: list[int] = []
    parents: list[int] = []
    depths: list[int] = []
    children: dict[tuple[int, int], int] = {}
    targets = []
    shared = len(requests[0].row)
    for number, (context, continuation) in enumerate(requests):
        row = context + continuation
        node, pairs, known = -1, [], True
        for depth in range(len(row) - 1):
            child = children.get((node, row[depth]))
            if child is None:
                if known and number:
                    shared, known = min(shared, depth), False
                child = children[node, row[depth]] = len(tokens)
                tokens.append(row[depth])
                parents.append(node)
                depths.append(depth)
            node = child
            if depth >= len(context) - 1:
                pairs.append((node, row[depth + 1]))
        shared = min(shared, len(context) - 1)
        targets.append(tuple(pairs))
    return TokenTree(tuple(tokens), tuple(parents), tuple(depths), tuple(targets), shared)


class Group(NamedTuple):
    """Trees that begin with the same tokens."""

    header: tuple[int, ...]
    """The tokens that are read once for all; may be empty."""
    members: tuple[int, ...]
    """Indices of the trees."""


def share_headers(trees: Sequence[TokenTree]) -> list[Group]:
    """Group trees so that the tokens read once instead of many times are the most.

    Sorted by their trunks, trees that share a prefix stand side by side: stretches of them, nested in each other. A
    stretch may get its common prefix as a header. Every tree then saves the longest header that it stands under, and
    every header costs itself and `HEADER_COST`; which stretches get one is decided from the innermost outwards, for
    every header that may come from outside.
    """
    trunks = [tree.tokens[: tree.trunk] for tree in trees]
    order = sorted(range(len(trees)), key=lambda index: (trunks[index], index))
    stretches = _stretches([common_prefix(trunks[one], trunks[other]) for one, other in pairwise(order)], len(order))
    chosen = _with_headers(stretches)
    members: dict[tuple[int, ...], list[int]] = {}
    header: dict[int, tuple[int, ...]] = {-1: ()}
    for number, stretch in enumerate(stretches):
        outside = header[stretch.parent]
        own = (number, len(outside)) in chosen
        header[number] = trunks[order[stretch.start]][: stretch.length] if own else outside
        if stretch.end - stretch.start == 1:
            members.setdefault(outside, []).append(order[stretch.start])
    return [Group(tokens, tuple(sorted(group))) for tokens, group in sorted(members.items(), reverse=True)]


class _Stretch(NamedTuple):
    """Trees `start` to `end` of the sorted ones, which share their first `length` tokens; a single tree is one, too."""

    start: int
    end: int
    length: int
    parent: int
    """Number of the stretch around it; -1 for the outermost."""


def _stretches(common: Sequence[int], count: int) -> list[_Stretch]:
    """All stretches, each before those in it; `common` are the shared prefixes of neighbours."""
    found: list[_Stretch] = []
    waiting = [(0, count, -1)] if count else []
    while waiting:
        start, end, parent = waiting.pop()
        least = min(common[start : end - 1], default=0)
        found.append(_Stretch(start, end, least, parent))
        if end - start > 1:
            bounds = [start, *(at + 1 for at in range(start, end - 1) if common[at] == least), end]
            waiting += [(left, right, len(found) - 1) for left, right in pairwise(bounds)]
    return found


def _with_headers(stretches: Sequence[_Stretch]) -> set[tuple[int, int]]:
    """(number, length of the header from outside) of the stretches that had better get a header of their own."""
    outside: list[set[int]] = []
    for stretch in stretches:
        around = outside[stretch.parent] | {stretches[stretch.parent].length} if stretch.parent >= 0 else {0}
        outside.append(around)
    inner: list[dict[int, int]] = [{} for _ in stretches]
    chosen = set()
    for number in reversed(range(len(stretches))):
        stretch = stretches[number]
        for length in outside[number]:
            saved = length
            if stretch.end - stretch.start > 1:
                saved = inner[number].get(length, 0)
                own = inner[number].get(stretch.length, 0) - stretch.length - HEADER_COST
                if own > saved:
                    saved = own
                    chosen.add((number, length))
            if stretch.parent >= 0:
                inner[stretch.parent][length] = inner[stretch.parent].get(length, 0) + saved
    return chosen


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common prefix."""
    return next(
        (at for at, (left, right) in enumerate(zip(one, other, strict=False)) if left != right),
        min(len(one), len(other)),
    )


def batches(
    trees: Sequence[TokenTree], members: Sequence[int], header: int, alignment: int, tokens: int, predictions: int
) -> Iterator[list[int]]:
    """Cut a group into batches of one padded length each, chains apart from branching trees.

    How a tree is padded and masked so depends on nothing but the tree, whatever stands beside it in a batch.

    Args:
        trees: all trees.
        members: those of the group.
        header: how many leading nodes each is read without.
        alignment: lengths are padded to a multiple of this.
        tokens: the most padded tokens in a batch, and a `KEYS`th of the most keys; a single tree may have more.
        predictions: the most nodes in a batch whose predictions are asked for, with the same exception.
    """
    buckets: dict[tuple[int, bool], list[int]] = {}
    for index in members:
        key = (rounded(len(trees[index]) - header, alignment), trees[index].is_chain)
        buckets.setdefault(key, []).append(index)
    for (length, _), bucket in sorted(buckets.items()):
        batch: list[int] = []
        asked = 0
        for index in bucket:
            needed = trees[index].needed
            rows = len(batch) + 1
            full = rows * length > tokens or rows * (header + length) > KEYS * tokens or asked + needed > predictions
            if batch and full:
                yield batch
                batch, asked = [], 0
            batch.append(index)
            asked += needed
        yield batch


def rounded(size: int, alignment: int) -> int:
    """The next multiple of `alignment`."""
    return -(-size // alignment) * alignment
