"""Flip rates between two runs with right-or-wrong answers (sheet-level definitions in each entry below)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from uphold.core import stats
from uphold.core.registry import measure
from uphold.core.stats import Floats, Interval, Ints
from uphold.measure import intervals
from uphold.measure.pairs import CELLS, Pairs
from uphold.measure.rates import Rate

OLD_RIGHT = np.array([0, 0, 0, 0, 1, 1, 1, 1], dtype=float)
NEW_RIGHT = np.array([0, 0, 1, 1, 0, 0, 1, 1], dtype=float)
SAME = np.array([0, 1, 0, 1, 0, 1, 0, 1], dtype=float)


def divide(top: Floats, bottom: Floats) -> Floats:
    """`top / bottom`, NaN (undefined) where `bottom` is zero."""
    undefined = np.full(np.broadcast(top, bottom).shape, np.nan)
    return np.asarray(np.divide(top, bottom, out=undefined, where=bottom != 0))


@dataclass(frozen=True)
class _Definition:
    name: str
    label: str
    of: Floats
    """1 for the cells that have the property (-1 for those that count against it)."""
    over: Floats | None
    """1 for the cells that could have it; None for the relative NFR, which is no share."""
    better: str = ""
    has_floor: bool = True


_ALL, _OLD_WRONG, _NEW_WRONG, _CHANGED = np.ones(CELLS), 1 - OLD_RIGHT, 1 - NEW_RIGHT, 1 - SAME
_NEGATIVE, _POSITIVE = OLD_RIGHT * _NEW_WRONG, _OLD_WRONG * NEW_RIGHT

DEFINITIONS = (
    _Definition("accuracy_old", "accuracy old", OLD_RIGHT, _ALL, "higher", has_floor=False),
    _Definition("accuracy_new", "accuracy new", NEW_RIGHT, _ALL, "higher", has_floor=False),
    _Definition("gain", "gain", NEW_RIGHT - OLD_RIGHT, _ALL, "higher"),
    _Definition("nfr", "NFR", _NEGATIVE, _ALL, "lower"),
    _Definition("pfr", "PFR", _POSITIVE, _ALL, "higher"),
    _Definition("nfr_mc", "NFR^mc", _NEW_WRONG * _CHANGED, _ALL, "lower"),
    _Definition("correct_but_changed", "correct but changed", OLD_RIGHT * NEW_RIGHT * _CHANGED, _ALL),
    _Definition("flips", "flips", _NEGATIVE + _POSITIVE, _ALL),
    _Definition("btc", "BTC", OLD_RIGHT * NEW_RIGHT, OLD_RIGHT, "higher"),
    _Definition("bec", "BEC", _OLD_WRONG * _NEW_WRONG, _OLD_WRONG, "higher"),
    _Definition("nfi", "NFI", _NEGATIVE, _NEW_WRONG, "lower"),
    _Definition("relative_nfr", "relative NFR", _NEGATIVE, None, "lower"),
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


def flip_matrix(pairs: Pairs) -> FlipMatrix | None:
    """The flip matrix; None when the task has continuous scores only."""
    return None if pairs.cells is None else _matrix(pairs.cells)


def _matrix(cells: Ints) -> FlipMatrix:
    both_wrong, positive, negative, both_right = (int(count) for count in cells.reshape(4, 2).sum(axis=1))
    return FlipMatrix(both_right, negative, positive, both_wrong)


@measure("flips", paper="arXiv:2407.09435")
def flips(pairs: Pairs, *, draws: int = 2000, level: float = 0.95, seed: int = 0) -> list[Rate]:
    """Flip rates of right-or-wrong answers, with confidence intervals.

    With r1, r2 = old and new right, a1, a2 their answers, N instances:

    - NFR = mean(r1 and not r2), PFR = mean(not r1 and r2), over all N (MUSCLE, section 3);
    - NFR^mc = mean(not r2 and a1 != a2), the inconsistency flips (MUSCLE, section 3);
    - correct but changed = mean(r1 and r2 and a1 != a2); flips = NFR + PFR (Dutta et al. 2024);
    - BTC = share of old-right that stay right, BEC = share of old-wrong that stay wrong (Srivastava et al. 2020);
    - NFI = NFR / error(new) (Cai et al. 2022);
    - relative NFR = NFR / (accuracy(old) · error(new)), 1 when errors are independent (Yan et al. 2021).

    A rate whose denominator is zero is undefined (None). Intervals of shares are binomial ones over their denominator
    (`intervals.SHARES`), that of the gain is Tango's, that of the relative NFR a bootstrap's. Where pairs were joined
    with a cluster, those of shares use the cluster-robust variance (`intervals.cluster_share_interval`), that of
    the gain is a t interval with it, and the bootstrap draws clusters.

    Returns:
        One `Rate` per definition; an empty list when the task has continuous scores only.
    """
    if pairs.cells is None:
        return []
    cells, clusters = pairs.cells, pairs.cluster_cells
    rates = []
    for entry in DEFINITIONS:
        if entry.over is None:
            value, interval = _relative(cells, clusters, draws, level, seed)
        else:
            value, interval = _share(entry.of, entry.over, cells, clusters, level)
            if entry.name == "gain":
                interval = _gain_interval(cells, clusters, level)
        low, high = interval or (None, None)
        unit = "share" if entry.over is not None else "ratio"
        rates.append(Rate(entry.name, entry.label, value, low, high, unit=unit, better=entry.better))
    return rates


_Estimate = tuple[float | None, Interval | None]


def _share(of: Floats, over: Floats, cells: Ints, clusters: Ints | None, level: float) -> _Estimate:
    top, trials = round(float(cells @ of)), round(float(cells @ over))
    if trials == 0:
        return None, None
    if (of < 0).any():
        return top / trials, None
    if clusters is not None:
        return top / trials, intervals.cluster_share_interval(clusters @ of, clusters @ over, level)
    return top / trials, intervals.share_interval(top, trials, level)


def _gain_interval(cells: Ints, clusters: Ints | None, level: float) -> Interval | None:
    matrix = _matrix(cells)
    counts = (matrix.both_right, matrix.negative_flips, matrix.positive_flips, matrix.both_wrong)
    if clusters is None:
        return stats.paired_difference_interval(*counts, level)
    if not matrix.negative_flips + matrix.positive_flips:
        # Without a flip there is no variance to go by: a cluster counts as one instance.
        return stats.paired_difference_interval(0, 0, 0, len(clusters), level)
    interval = intervals.cluster_mean_interval(clusters @ (_POSITIVE - _NEGATIVE), clusters @ _ALL, level)
    return interval and Interval(max(-1.0, interval.low), min(1.0, interval.high))


def _relative_nfr(counts: Floats) -> Floats:
    """Counts of shape (..., 8) -> relative NFR of shape (..., 1)."""
    total = counts.sum(axis=-1)
    return divide((counts @ _NEGATIVE) * total, (counts @ OLD_RIGHT) * (counts @ _NEW_WRONG))[..., None]


def _relative(cells: Ints, clusters: Ints | None, draws: int, level: float, seed: int) -> _Estimate:
    value = float(_relative_nfr(cells.astype(float))[0])
    if np.isnan(value):
        return None, None
    if value == 0:
        # Every draw would be zero, too: the uncertainty that is left is that of the NFR.
        _, nfr = _share(_NEGATIVE, _ALL, cells, clusters, level)
        expected = float(cells @ OLD_RIGHT) * float(cells @ _NEW_WRONG) / float(cells.sum()) ** 2
        return value, nfr and Interval(0.0, nfr.high / expected)
    if clusters is not None:
        return value, intervals.bootstrap_intervals(clusters.astype(float), _relative_nfr, draws, level, seed)[0]
    return value, _bootstrap_cells(cells, value, draws, level, seed)


def _bootstrap_cells(cells: Ints, value: float, draws: int, level: float, seed: int) -> Interval | None:
    # Leaving out one of the instances of a cell gives the same value for each of them.
    seen = np.flatnonzero(cells)
    left_out = _relative_nfr(cells[None] - np.eye(CELLS)[seen])[:, 0]
    drawn = _relative_nfr(stats.bootstrap_shares(cells, draws, seed))[:, 0]
    return intervals.corrected_interval(value, drawn, left_out, level, cells[seen])
