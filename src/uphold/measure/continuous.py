"""Flip rates and magnitudes of continuous scores (ROUGE, BLEU, a judge)."""

from __future__ import annotations

import numpy as np

from uphold.core.registry import measure
from uphold.core.stats import Floats, Interval
from uphold.measure import intervals
from uphold.measure.flips import divide
from uphold.measure.pairs import SUMS, TIE, Pairs
from uphold.measure.rates import Rate

_COUNT, _OLD, _NEW, _DIFFERENCE, _LOSSES, _GAINS, _LOSS, _GAIN = range(len(SUMS))
_NAMES = (
    ("score_old", "score old", "score", "higher", _OLD, _COUNT),
    ("score_new", "score new", "score", "higher", _NEW, _COUNT),
    ("mean_difference", "mean D", "score", "higher", _DIFFERENCE, _COUNT),
    ("nfr_score", "NFR (score)", "share", "lower", _LOSSES, _COUNT),
    ("pfr_score", "PFR (score)", "share", "higher", _GAINS, _COUNT),
    ("m_g", "M_g", "score", "higher", _GAIN, _GAINS),
    ("m_r", "M_r", "score", "lower", _LOSS, _LOSSES),
)
"""Name, label, unit, better, and the two of `SUMS` whose quotient it is."""
_TOPS = [top for *_, top, _ in _NAMES]
_BOTTOMS = [bottom for *_, bottom in _NAMES]


@measure("score-flips", paper="arXiv:2407.09435")
def continuous(pairs: Pairs, *, draws: int = 1000, level: float = 0.95, seed: int = 0) -> list[Rate]:
    """Flip rates and magnitudes of continuous scores, with confidence intervals.

    With D_i = S(new_i) - S(old_i): NFR = mean(D < 0), PFR = mean(D > 0), ties count in neither;
    M_g = mean of D where D > 0, M_r = mean of |D| where D < 0, undefined where there is no such instance
    (MUSCLE, section 3). Then mean(D) = PFR · M_g - NFR · M_r.

    Intervals of NFR and PFR are binomial ones (`intervals.SHARES`). Those of the others are a paired bootstrap's up to
    `intervals.MANY` instances. Beyond that they are Student's t, which for M_g and M_r (quotients of two means) is
    what the delta method comes to: the mean over the instances that moved that way, with their variance. Where pairs
    were joined with a cluster, all have the cluster-robust variance of a quotient of sums.

    Returns:
        One `Rate` per definition; an empty list when scores rise and fall exactly where answers turn right and
        wrong, where these numbers say nothing that `flips` does not.
    """
    if not pairs.graded:
        return []
    moments = pairs.moments
    sums = [float(pairs.count), *(pairs.count * moments[name].mean for name in ("old", "new", "difference"))]
    sums += [float(moments[name].n) for name in ("loss", "gain")]
    sums += [moments[name].n * moments[name].mean for name in ("loss", "gain")]
    values = _statistic(np.array(sums))
    if pairs.cluster_sums is not None:
        found = _by_cluster(pairs.cluster_sums, level)
    elif len(pairs) > intervals.MANY:
        found = _large_sample(pairs, level)
    else:
        found = intervals.bootstrap_intervals(_columns(pairs), _statistic, draws, level, seed)
        found = [own or other for own, other in zip(_shares(pairs, level), found, strict=True)]
    rates = []
    for (name, label, unit, better, *_), value, interval in zip(_NAMES, values, found, strict=True):
        low, high = (None, None) if interval is None or np.isnan(value) else interval
        rates.append(Rate(name, label, None if np.isnan(value) else float(value), low, high, None, unit, better))
    return rates


def _statistic(sums: Floats) -> Floats:
    """Sums of shape (..., 8) in the order of `SUMS` -> (..., 7) in the order of `_NAMES`."""
    return divide(sums[..., _TOPS], sums[..., _BOTTOMS])


def _columns(pairs: Pairs) -> Floats:
    """What each instance adds to `SUMS`, shape (n, 8)."""
    difference = pairs.new_score - pairs.old_score
    losses, gains = difference < -TIE, difference > TIE
    parts = (np.ones(len(pairs)), pairs.old_score, pairs.new_score, difference)
    return np.stack([*parts, losses, gains, -difference * losses, difference * gains], axis=1)


def _shares(pairs: Pairs, level: float) -> list[Interval | None]:
    """Intervals of the rates that are shares; None for the others."""
    counts = {_LOSSES: pairs.moments["loss"].n, _GAINS: pairs.moments["gain"].n}
    return [
        intervals.share_interval(counts[top], pairs.count, level) if unit == "share" else None
        for _, _, unit, _, top, _ in _NAMES
    ]


def _large_sample(pairs: Pairs, level: float) -> list[Interval | None]:
    names = ("old", "new", "difference", None, None, "gain", "loss")
    return [
        share if name is None else intervals.mean_interval(pairs.moments[name], level)
        for name, share in zip(names, _shares(pairs, level), strict=True)
    ]


def _by_cluster(sums: Floats, level: float) -> list[Interval | None]:
    return [
        (intervals.cluster_share_interval if unit == "share" else intervals.cluster_mean_interval)(
            sums[:, top], sums[:, bottom], level
        )
        for _, _, unit, _, top, bottom in _NAMES
    ]
