"""Flip rates between two runs with right-or-wrong answers (sheet-level definitions in each entry below)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from uphold.core import stats
from uphold.core.registry import measure
from uphold.measure.pairs import Floats, Pairs
from uphold.measure.rates import Rate

# A pair falls into one of eight cells: 4·(old right) + 2·(new right) + (same answer).
CELLS = 8
OLD_RIGHT = np.array([0, 0, 0, 0, 1, 1, 1, 1], dtype=float)
NEW_RIGHT = np.array([0, 0, 1, 1, 0, 0, 1, 1], dtype=float)
SAME = np.array([0, 1, 0, 1, 0, 1, 0, 1], dtype=float)


def _share(weights: Floats) -> Callable[[Floats], Floats]:
    return lambda shares: np.asarray(shares @ weights)


def _ratio(top: Floats, bottom: Floats) -> Callable[[Floats], Floats]:
    return lambda shares: divide(shares @ top, shares @ bottom)


def divide(top: Floats, bottom: Floats) -> Floats:
    """`top / bottom`, NaN (undefined) where `bottom` is zero."""
    undefined = np.full(np.broadcast(top, bottom).shape, np.nan)
    return np.asarray(np.divide(top, bottom, out=undefined, where=bottom != 0))


def _relative_nfr(shares: Floats) -> Floats:
    return divide(shares @ (OLD_RIGHT * (1 - NEW_RIGHT)), (shares @ OLD_RIGHT) * (shares @ (1 - NEW_RIGHT)))


@dataclass(frozen=True)
class _Definition:
    name: str
    label: str
    of: Callable[[Floats], Floats]
    unit: str = "share"
    better: str = ""
    has_floor: bool = True
    over: Floats | None = None
    """The instances of which it is a share, for which a binomial interval exists; None for anything else."""


_ALL, _OLD_WRONG, _NEW_WRONG, _CHANGED = np.ones(CELLS), 1 - OLD_RIGHT, 1 - NEW_RIGHT, 1 - SAME
_NEGATIVE, _POSITIVE = OLD_RIGHT * _NEW_WRONG, _OLD_WRONG * NEW_RIGHT

DEFINITIONS = (
    _Definition("accuracy_old", "accuracy old", _share(OLD_RIGHT), better="higher", has_floor=False, over=_ALL),
    _Definition("accuracy_new", "accuracy new", _share(NEW_RIGHT), better="higher", has_floor=False, over=_ALL),
    _Definition("gain", "gain", _share(NEW_RIGHT - OLD_RIGHT), better="higher"),
    _Definition("nfr", "NFR", _share(_NEGATIVE), better="lower", over=_ALL),
    _Definition("pfr", "PFR", _share(_POSITIVE), better="higher", over=_ALL),
    _Definition("nfr_mc", "NFR^mc", _share(_NEW_WRONG * _CHANGED), better="lower", over=_ALL),
    _Definition("correct_but_changed", "correct but changed", _share(OLD_RIGHT * NEW_RIGHT * _CHANGED), over=_ALL),
    _Definition("flips", "flips", _share(_NEGATIVE + _POSITIVE), over=_ALL),
    _Definition("btc", "BTC", _ratio(OLD_RIGHT * NEW_RIGHT, OLD_RIGHT), better="higher", over=OLD_RIGHT),
    _Definition("bec", "BEC", _ratio(_OLD_WRONG * _NEW_WRONG, _OLD_WRONG), better="higher", over=_OLD_WRONG),
    _Definition("nfi", "NFI", _ratio(_NEGATIVE, _NEW_WRONG), better="lower", over=_NEW_WRONG),
    _Definition("relative_nfr", "relative NFR", _relative_nfr, unit="ratio", better="lower"),
)


@dataclass(frozen=True)
class FlipMatrix:
    """Counts of the four outcomes of an instance."""

    both_right: int
    negative_flips: int
    """Old right, new wrong."""
    positive_flips: int
    """Old wrong, new right."""
    both_wrong: int

    @property
    def total(self) -> int:
        """All instances."""
        return self.both_right + self.negative_flips + self.positive_flips + self.both_wrong

    @property
    def mcnemar_p(self) -> float:
        """Two-sided exact McNemar p-value: are negative and positive flips equally likely?"""
        return stats.mcnemar_exact(self.negative_flips, self.positive_flips)


def cell_counts(pairs: Pairs) -> stats.Ints:
    """How many pairs fall into each of the eight cells, shape (8,)."""
    assert pairs.old_correct is not None
    assert pairs.new_correct is not None
    codes = 4 * pairs.old_correct + 2 * pairs.new_correct + pairs.same_answer
    return np.bincount(codes, minlength=CELLS)


def flip_matrix(pairs: Pairs) -> FlipMatrix | None:
    """The flip matrix; None when the task has continuous scores only."""
    if pairs.old_correct is None:
        return None
    counts = cell_counts(pairs).reshape(4, 2).sum(axis=1)
    both_wrong, positive, negative, both_right = (int(count) for count in counts)
    return FlipMatrix(both_right, negative, positive, both_wrong)


@measure("flips", paper="arXiv:2407.09435")
def flips(pairs: Pairs, *, draws: int = 2000, level: float = 0.95, seed: int = 0) -> list[Rate]:
    """Flip rates of right-or-wrong answers, with paired bootstrap intervals.

    With r1, r2 = old and new right, a1, a2 their answers, N instances:

    - NFR = mean(r1 and not r2), PFR = mean(not r1 and r2), over all N (MUSCLE, section 3);
    - NFR^mc = mean(not r2 and a1 != a2), the inconsistency flips (MUSCLE, section 3);
    - correct but changed = mean(r1 and r2 and a1 != a2); flips = NFR + PFR (Dutta et al. 2024);
    - BTC = share of old-right that stay right, BEC = share of old-wrong that stay wrong (Srivastava et al. 2020);
    - NFI = NFR / error(new) (Cai et al. 2022);
    - relative NFR = NFR / (accuracy(old) · error(new)), 1 when errors are independent (Yan et al. 2021).

    A rate whose denominator is zero is undefined (None). Where every bootstrap draw is the same (no flip was
    seen, or nothing else was) the interval of a share is the exact binomial one instead of a single point.

    Returns:
        One `Rate` per definition; an empty list when the task has continuous scores only.
    """
    if pairs.old_correct is None:
        return []
    counts = cell_counts(pairs)
    shares = counts / counts.sum()
    resampled = stats.bootstrap_shares(counts, draws, seed)
    return [_rate(definition, shares, resampled, len(pairs), level) for definition in DEFINITIONS]


def _rate(definition: _Definition, shares: Floats, resampled: Floats, n: int, level: float) -> Rate:
    value = float(definition.of(shares))
    if np.isnan(value):
        return Rate(definition.name, definition.label, None, unit=definition.unit, better=definition.better)
    interval = stats.percentile_interval(definition.of(resampled), level)
    if interval is not None and interval.low == interval.high and definition.over is not None:
        trials = round(float(shares @ definition.over) * n)
        interval = stats.proportion_interval(round(value * trials), trials, level)
    low, high = interval or (None, None)
    return Rate(definition.name, definition.label, value, low, high, None, definition.unit, definition.better)
