"""What became of a measure when each node was changed by itself."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch

from uphold.core.errors import EmptyError, UsageError
from uphold.explain.circuits.measures import Measure
from uphold.explain.circuits.prompts import Node


@dataclass(frozen=True)
class Effects:
    """One number per node and prompt."""

    nodes: tuple[Node, ...]
    measure: Measure
    clean: torch.Tensor
    """Without any change, shape (rows,)."""
    changed: torch.Tensor
    """With each node changed, shape (nodes, rows)."""
    left_out: int = 0
    """Prompts that were left out because the model does not solve them."""

    @property
    def change(self) -> torch.Tensor:
        """Mean over prompts of changed - clean, shape (nodes,)."""
        return (self.changed - self.clean).mean(1)

    @property
    def relative(self) -> torch.Tensor:
        """Mean over prompts of (changed - clean) / clean, shape (nodes,): the paper's score of probabilities."""
        if bool((self.clean == 0).any()):
            raise UsageError("a share of a measure that is 0 is not defined: use `change`, or only prompts solved")
        return ((self.changed - self.clean) / self.clean).mean(1)

    def ranked(self, *, relative: bool = False, size: bool = False) -> list[tuple[Node, float]]:
        """Nodes and scores, those first whose change lowers the measure most; by absolute size where asked."""
        scores = (self.relative if relative else self.change).tolist()
        pairs = list(zip(self.nodes, scores, strict=True))
        return sorted(pairs, key=lambda pair: (-abs(pair[1]) if size else pair[1], pair[0]))

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the mean change by node."""
        return {
            "measure": self.measure,
            "prompts": len(self.clean),
            "left_out": self.left_out,
            "clean": float(self.clean.mean()),
            "change": {str(node): score for node, score in self.ranked()},
        }


def jaccard(one: Iterable[Node], other: Iterable[Node]) -> float:
    """Shared nodes of two circuits, as a share of all nodes in either; 1 for two empty ones."""
    first, second = set(one), set(other)
    return len(first & second) / len(first | second) if first | second else 1.0


def stability(effects: Effects, size: int, *, draws: int = 100, seed: int = 0) -> float:
    """Mean pairwise Jaccard index of the `size` strongest nodes over bootstrap resamples of the prompts, in [0, 1].

    A circuit that depends on which prompts were drawn has a low one; 0.8 is a common demand (arXiv:2510.00845).

    Raises:
        EmptyError: fewer than two draws.
    """
    if draws < 2:
        raise EmptyError(f"stability compares resamples: {draws} are too few")
    generator = torch.Generator().manual_seed(seed)
    rows = len(effects.clean)
    differences = (effects.changed - effects.clean).cpu()
    found = []
    for _ in range(draws):
        means = differences[:, torch.randint(rows, (rows,), generator=generator)].mean(1)
        found.append(frozenset(means.topk(min(size, len(means)), largest=False).indices.tolist()))
    pairs = [len(one & other) / len(one | other) for one, other in combinations(found, 2)]
    return sum(pairs) / len(pairs)
