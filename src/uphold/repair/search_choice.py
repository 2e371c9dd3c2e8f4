"""Which of several repairs to ship, by the validation split alone.

What is chosen from are `Candidate`s, and a candidate knows nothing but three runs on the validation split: the choice
cannot look at the test split.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from uphold.core import stats
from uphold.core.errors import DataError, UsageError
from uphold.measure.pairs import TIE

if TYPE_CHECKING:
    from uphold.core.records import Record
    from uphold.core.runs import Run

MARGIN = 0.005
"""The loss of accuracy that is tolerated by default: half a point."""
LEVEL = 0.95
"""One-sided confidence of the non-inferiority test."""
_QUANTILE = 1.6448536269514722
"""Of the standard normal distribution at `LEVEL`."""
Standing = Literal["kept", "level", "near", "below", "lost"]


@dataclass(frozen=True)
class Candidate:
    """A repair on the validation split."""

    name: str
    count: int
    """Instances scored in all of the old, the new and the repaired version."""
    score: float
    """Accuracy, or mean score."""
    nfr: float
    """Negative flip rate against the old version; on a continuous task the share of lower scores."""
    plain_score: float
    """The new version's accuracy or mean score."""
    plain_nfr: float
    """The new version's NFR."""
    changed: int
    """Instances on which the repaired version's score differs from the new one's."""
    test: stats.MarginTest
    """Non-inferiority of the repaired version to the new one: is its accuracy at most the margin lower?"""
    margin: float

    @property
    def standing(self) -> Standing:
        """What is known of the accuracy against the new version's.

        `kept`: shown to be at most the margin below. `lost`: shown to be lower by more than the margin. Between the
        two the test is inconclusive: `level` where the observed accuracy is not below the new version's, `near` where
        it is at most the margin below, else `below`.
        """
        if self.test.holds:
            return "kept"
        if self.test.high < -self.margin:
            return "lost"
        if self.score >= self.plain_score - TIE:
            return "level"
        return "near" if self.score >= self.plain_score - self.margin - TIE else "below"

    @property
    def needed(self) -> int | None:
        """How many instances would show an equal accuracy half of the time; None where nothing changed.

        Normal approximation: the bound of a difference of 0 lies 1.645 sqrt(d / n) below it, where d is the share of
        instances that changed.
        """
        if not self.changed or not self.margin:
            return None
        return math.ceil(self.changed / self.count * (_QUANTILE / self.margin) ** 2)


def candidate(name: str, old: Run, new: Run, repaired: Run, margin: float = MARGIN) -> Candidate:
    """What the validation split says of a repair.

    Args:
        name: of the trial.
        old: the run of the old version on the validation split.
        new: that of the plain update.
        repaired: that of the repair.
        margin: the loss of accuracy (or mean score) that is tolerated, in [0, 1).

    Raises:
        UsageError: the margin is out of range.
        DataError: the three share no scored instance.
    """
    if not 0 <= margin < 1:
        raise UsageError(f"the margin must be a share from 0 to below 1, such as 0.005, not {margin}")
    sides = [{record.id: record for record in run.records()} for run in (old, new, repaired)]
    rows = [tuple(side[key] for side in sides) for key in sides[0] if all(key in side for side in sides[1:])]
    scored = [row for row in rows if all(record.score is not None for record in row)]
    if not scored:
        raise DataError(f"{name}: no validation instance is scored for the old, the new and the repaired version")
    before, plain, after = ([_score(row[side]) for row in scored] for side in range(3))
    differences = [ours - theirs for ours, theirs in zip(after, plain, strict=True)]
    count = len(scored)
    return Candidate(
        name,
        count,
        math.fsum(after) / count,
        sum(ours < theirs - TIE for ours, theirs in zip(after, before, strict=True)) / count,
        math.fsum(plain) / count,
        sum(ours < theirs - TIE for ours, theirs in zip(plain, before, strict=True)) / count,
        sum(abs(difference) > TIE for difference in differences),
        _margin_test(plain, after, differences, margin),
        margin,
    )


def _score(record: Record) -> float:
    return float(record.score or 0.0)


def _margin_test(
    plain: Sequence[float], after: Sequence[float], differences: Sequence[float], margin: float
) -> stats.MarginTest:
    if {*plain, *after} <= {0.0, 1.0}:
        negative = sum(difference < 0 for difference in differences)
        positive = sum(difference > 0 for difference in differences)
        right = sum(after) - positive
        wrong = len(after) - negative - positive - right
        return stats.non_inferiority_paired(int(right), negative, positive, int(wrong), margin, LEVEL)
    return stats.non_inferiority_bounded(differences, margin, LEVEL)


def tier(one: Candidate, strict: bool = False) -> int | None:
    """How readily a repair may be shipped: 0 before 1; None where it may not.

    It needs fewer negative flips than the plain update, and an accuracy that is shown to be at most the margin lower
    or not observed to be lower (0), or observed to be lower by no more than the margin (1).

    Args:
        one: the repair.
        strict: ask for a shown non-inferiority.
    """
    if one.nfr >= one.plain_nfr:
        return None
    tiers = {"kept": 0} if strict else {"kept": 0, "level": 0, "near": 1}
    return tiers.get(one.standing)


def ranked(candidates: Sequence[Candidate], strict: bool = False) -> list[Candidate]:
    """The best first: those that may be shipped by tier and NFR, then the others by how far their accuracy falls short.

    Of equals the more accurate comes first, then the earlier one.
    """

    def key(one: Candidate) -> tuple[float, float, float]:
        rank = tier(one, strict)
        if rank is not None:
            return rank, one.nfr, -one.score
        return math.inf, max(0.0, one.plain_score - one.score), one.nfr

    return sorted(candidates, key=key)


def choose(candidates: Sequence[Candidate], strict: bool = False) -> Candidate | None:
    """The repair to ship: of those of the best tier (see `tier`) the one with the lowest NFR.

    Why a repair need not be shown non-inferior: the fewer answers a repair changes, the easier that is to show, so a
    rule that asks for it prefers repairs that do next to nothing (with 1,000 instances and a margin of half a point
    hardly any other can be shown).

    Args:
        candidates: in the order in which they were tried.
        strict: ask for a shown non-inferiority.

    Returns:
        None where none may be shipped: the plain update is to stay.
    """
    best = ranked([one for one in candidates if tier(one, strict) is not None], strict)
    return best[0] if best else None
