"""Which candidate of a search to take, and which can be given up before it has answered everything."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from uphold.measure.pairs import TIE
from uphold.measure.rates import format_value

MARGIN = 0.005
"""Loss of accuracy against the best candidate that fewer negative flips may cost: half a point."""


@dataclass(frozen=True)
class Scores:
    """What a candidate has answered so far. One entry per task."""

    sizes: tuple[int, ...]
    """Instances that there are."""
    asked_by_task: tuple[int, ...]
    scored: tuple[int, ...]
    """Of those asked, the ones that the reference has a score on, too."""
    right: tuple[float, ...]
    """Right answers, or the sum of scores in [0, 1]."""
    falls: tuple[int, ...]
    """Negative flips against the reference, or lower scores."""

    @classmethod
    def none(cls, sizes: Sequence[int]) -> Scores:
        """Before the first answer."""
        zeros = (0,) * len(sizes)
        return cls(tuple(sizes), zeros, zeros, zeros, zeros)

    def plus(self, task: int, asked: int, scored: int, right: float, falls: int) -> Scores:
        """With more answers to one task."""
        return replace(
            self,
            asked_by_task=_with(self.asked_by_task, task, asked),
            scored=_with(self.scored, task, scored),
            right=_with(self.right, task, right),
            falls=_with(self.falls, task, falls),
        )

    @property
    def asked(self) -> int:
        """Instances asked so far."""
        return sum(self.asked_by_task)

    @property
    def left(self) -> int:
        """Instances still to be asked."""
        return sum(self.sizes) - self.asked

    @property
    def score(self) -> float:
        """Accuracy, or the mean score, of what was asked: the mean over the tasks that were."""
        return _mean([right / count for right, count in zip(self.right, self.scored, strict=True) if count])

    @property
    def nfr(self) -> float:
        """Negative flip rate of what was asked: the mean over the tasks that were."""
        return _mean([falls / count for falls, count in zip(self.falls, self.scored, strict=True) if count])

    @property
    def highest(self) -> float:
        """The highest `score` that it can still have when all is asked."""
        return _mean([(right + left) / (count + left) for right, count, left in self._rest(self.right)])

    @property
    def lowest(self) -> float:
        """The lowest `nfr` that it can still have when all is asked."""
        return _mean([falls / (count + left) for falls, count, left in self._rest(self.falls)])

    def _rest(self, values: Sequence[float]) -> list[tuple[float, int, int]]:
        left = [size - asked for size, asked in zip(self.sizes, self.asked_by_task, strict=True)]
        rows = zip(values, self.scored, left, strict=True)
        return [(value, count, rest) for value, count, rest in rows if count + rest]


@dataclass(frozen=True)
class Trial:
    """A candidate on the validation split."""

    values: Mapping[str, Any]
    """Of the searched parameters."""
    asked: int
    """Instances asked, of all tasks."""
    score: float
    """Accuracy, or the mean score, of what was asked."""
    nfr: float
    """Negative flip rate against the reference, of what was asked."""
    stopped: str = ""
    """Why it was given up before all was asked."""

    @property
    def name(self) -> str:
        """Its values, for people."""
        return ", ".join(f"{key} = {shown(value)}" for key, value in self.values.items())

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {**asdict(self), "values": dict(self.values)}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Trial:
        """What `to_dict` gave."""
        return cls(**saved)

    def __str__(self) -> str:
        """For people."""
        scores = f"{self.name}: accuracy {format_value(self.score, 'share')}, NFR {format_value(self.nfr, 'share')}"
        return f"{scores}; given up: {self.stopped}" if self.stopped else scores


def choose(trials: Sequence[Trial]) -> int:
    """The number of the trial to take: the lowest NFR of those at most `MARGIN` less accurate than the most accurate.

    Of equals the more accurate, then the first. What was given up is not chosen.
    """
    whole = [(number, one) for number, one in enumerate(trials) if not one.stopped]
    best = max(one.score for _, one in whole)
    near = [(number, one) for number, one in whole if one.score >= best - MARGIN - TIE]
    return min(near, key=lambda entry: (entry[1].nfr, -entry[1].score, entry[0]))[0]


def hopeless(scores: Scores, earlier: Sequence[Trial]) -> str:
    """Why a candidate cannot be chosen, whatever it answers to the rest; "" where it still can.

    Either its accuracy stays below that of a finished one by more than `MARGIN`, or a finished one is at least as
    accurate with no more negative flips. What it may still reach is what it reaches with right answers only.

    Args:
        scores: what it has answered.
        earlier: candidates before it.
    """
    for one in earlier:
        if one.stopped:
            continue
        if scores.highest < one.score - MARGIN - TIE:
            return f"its accuracy cannot come within half a point of {one.name}"
        if scores.highest <= one.score and scores.lowest >= one.nfr:
            return f"it cannot be more accurate than {one.name}, nor have fewer negative flips"
    return ""


def shown(value: Any) -> str:
    """A parameter's value, for people."""
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


def _with(values: tuple[Any, ...], place: int, more: float) -> tuple[Any, ...]:
    return (*values[:place], values[place] + more, *values[place + 1 :])


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0
