"""Search for the conjunction of conditions in which marked instances pile up, with a permutation test of the search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from uphold.core.stats import Floats, Ints

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

Conjunction = tuple[int, ...]
"""Places of conditions that hold together, in ascending order."""

LEAST_MARKED = 3
"""A rule covers at least so many marked instances."""
BEAM = 10
"""So many of the best conjunctions of one size are extended to the next."""
_REMEMBERED = 10_000_000
_FEW = 1000


@dataclass(frozen=True)
class Best:
    """The most surprising conjunction."""

    conjunction: Conjunction
    score: float
    """Natural logarithm of the bound on its hypergeometric tail, plus the price of its size; at most 0."""


@dataclass
class RuleSearch:
    """Instances with their conditions, some of which are going to be marked.

    A conjunction is scored by how unlikely its number of marked instances is when marks are dealt at random: the
    upper bound P(X = k) / (1 - r) of the hypergeometric tail P(X >= k), with r = P(X = k + 1) / P(X = k). Every
    condition after the first costs log(number of conditions), as each step multiplies the conjunctions there are.
    """

    instances: int
    rows: Sequence[Ints]
    """Per condition, the ascending places of the instances it holds for."""
    minimum: int
    """Instances that a conjunction covers at least."""
    depth: int
    """Conditions in a conjunction at most."""
    _matrix: csr_matrix = field(init=False, repr=False)
    _held: list[Ints] = field(init=False, repr=False)
    _log_factorial: Floats = field(init=False, repr=False)
    _single: Ints = field(init=False, repr=False)
    _together: dict[Conjunction, Ints] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        from scipy.sparse import csc_matrix
        from scipy.special import gammaln

        self._single = np.array([len(rows) for rows in self.rows], np.int64)
        indices = np.concatenate([*self.rows, np.zeros(0, np.int64)]).astype(np.int32)
        ends = np.concatenate([[0], np.cumsum(self._single)])
        ones = np.ones(len(indices), np.float32)
        self._matrix = csc_matrix((ones, indices, ends), shape=(self.instances, len(self.rows))).tocsr()
        # Adding up a few instances' own lists is faster than taking rows of the matrix.
        self._held = np.split(self._matrix.indices, self._matrix.indptr[1:-1])
        self._log_factorial = gammaln(np.arange(self.instances + 1) + 1.0)

    def covered(self, conjunction: Conjunction) -> Ints:
        """The ascending places of the instances that it holds for."""
        rows = self.rows[conjunction[0]]
        for condition in conjunction[1:]:
            rows = np.intersect1d(rows, self.rows[condition], assume_unique=True)
        return rows

    def best(self, marked: Ints) -> Best | None:
        """The conjunction with the lowest score when the instances at `marked` are the marked ones; None for none."""
        hits = self._count(marked)
        scores = self._scores(hits, self._single, len(marked))
        beam: list[Conjunction] = [(int(place),) for place in _lowest(scores, BEAM)]
        if not beam:
            return None
        found = Best(beam[0], float(scores[beam[0][0]]))
        is_marked = np.zeros(self.instances, bool)
        is_marked[marked] = True
        for size in range(2, self.depth + 1):
            extended = self._extend(beam, is_marked, len(marked))
            if not extended:
                break
            beam = [entry.conjunction for entry in extended]
            price = (size - 1) * np.log(len(self.rows))
            if extended[0].score + price < found.score:
                found = Best(extended[0].conjunction, extended[0].score + price)
        return found

    def _extend(self, beam: Sequence[Conjunction], is_marked: NDArray[np.bool_], marked: int) -> list[Best]:
        """The best conjunctions with one more condition, without the price of their size."""
        covered = [self.covered(conjunction) for conjunction in beam]
        hits = np.stack([self._count(rows[is_marked[rows]]) for rows in covered])
        counts = np.stack([self._counts_with(*pair) for pair in zip(beam, covered, strict=True)])
        scores = self._scores(hits, counts, marked)
        for column, conjunction in enumerate(beam):
            scores[column, list(conjunction)] = 0.0
        found: dict[Conjunction, Best] = {}
        for place in _lowest(scores.ravel(), 2 * BEAM):
            column, condition = divmod(int(place), len(self.rows))
            conjunction = tuple(sorted((*beam[column], condition)))
            found.setdefault(conjunction, Best(conjunction, float(scores[column, condition])))
        return list(found.values())[:BEAM]

    def _count(self, places: Ints) -> Ints:
        """How many of the instances at `places` each condition holds for."""
        if len(places) > _FEW:
            held = self._matrix[places].indices
        else:
            held = np.concatenate([np.zeros(0, np.int32), *(self._held[place] for place in places)])
        return np.bincount(held, minlength=len(self.rows))

    def _counts_with(self, conjunction: Conjunction, covered: Ints) -> Ints:
        """How many instances a conjunction covers together with each of the conditions."""
        counts = self._together.get(conjunction)
        if counts is None:
            counts = self._count(covered)
            if len(self._together) * len(self.rows) < _REMEMBERED:
                self._together[conjunction] = counts
        return counts

    def _scores(self, hits: Ints, counts: Ints, marked: int) -> Floats:
        """The scores of conjunctions with `hits` marked ones among `counts`, 0 where they are not surprising."""
        scores = np.zeros(hits.shape)
        possible = (hits >= LEAST_MARKED) & (counts >= self.minimum) & (hits * self.instances > counts * marked)
        k, n = hits[possible], counts[possible]
        others = self.instances - marked
        log = self._log_factorial
        mass = (
            (log[marked] - log[k] - log[marked - k])
            + (log[others] - log[n - k] - log[others - n + k])
            - (log[self.instances] - log[n] - log[self.instances - n])
        )
        ratio = (marked - k) * (n - k) / ((k + 1.0) * (others - n + k + 1))
        falling = ratio < 1
        scores[possible] = np.where(falling, np.minimum(0.0, mass - np.log1p(-np.where(falling, ratio, 0.0))), 0.0)
        return scores


def search_p(search: RuleSearch, best: Best, marked: int, draws: int, alpha: float, seed: int) -> float | None:
    """The chance that the whole search finds something at least as surprising when marks are dealt at random.

    Westfall and Young's step of the minimal p-value, over every conjunction that the search could have found:
    (1 + draws that are at least as surprising) / (draws + 1).

    Returns:
        None as soon as it is certain that the value is above `alpha`.
    """
    generator = np.random.default_rng(seed)
    as_good = 0
    for _ in range(draws):
        dealt = generator.choice(search.instances, marked, replace=False, shuffle=False)
        chance = search.best(dealt)
        as_good += int(chance is not None and chance.score <= best.score + 1e-9)
        if 1 + as_good > alpha * (draws + 1):
            return None
    return (1 + as_good) / (draws + 1)


def without(rows: Sequence[Ints], gone: Ints, instances: int) -> tuple[list[Ints], NDArray[np.int64]]:
    """The conditions' rows after the instances at `gone` were taken away, and the old places of those that stay."""
    stays = np.ones(instances, bool)
    stays[gone] = False
    place = np.cumsum(stays) - 1
    return [place[held[stays[held]]] for held in rows], np.flatnonzero(stays)


def _lowest(scores: Floats, most: int) -> Ints:
    """Places of the lowest scores below zero, lowest first; of equal ones the first place."""
    places = np.flatnonzero(scores < 0)
    if len(places) > most:
        places = np.sort(places[np.argpartition(scores[places], most)[:most]])
    return places[np.argsort(scores[places], kind="stable")]
