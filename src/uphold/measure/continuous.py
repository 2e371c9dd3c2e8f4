"""Flip rates and magnitudes of continuous scores (ROUGE, BLEU, a judge)."""

from __future__ import annotations

import numpy as np

from uphold.core import stats
from uphold.core.registry import measure
from uphold.measure.flips import divide
from uphold.measure.pairs import Floats, Pairs
from uphold.measure.rates import Rate

TIE = 1e-9
"""Score differences up to this count as ties: sums of floats in another order must not look like flips."""

_NAMES = (
    ("score_old", "score old", "higher"),
    ("score_new", "score new", "higher"),
    ("mean_difference", "mean D", "higher"),
    ("nfr_score", "NFR (score)", "lower"),
    ("pfr_score", "PFR (score)", "higher"),
    ("m_g", "M_g", "higher"),
    ("m_r", "M_r", "lower"),
)


def _statistic(rows: Floats) -> Floats:
    """Shape (d, n, 2) of old and new scores -> (d, 7) in the order of `_NAMES`."""
    old, new = rows[..., 0], rows[..., 1]
    difference = new - old
    gains, losses = difference > TIE, difference < -TIE
    n = difference.shape[-1]
    return np.stack(
        [
            old.mean(-1),
            new.mean(-1),
            difference.mean(-1),
            losses.sum(-1) / n,
            gains.sum(-1) / n,
            divide(np.where(gains, difference, 0).sum(-1), gains.sum(-1).astype(float)),
            divide(np.where(losses, -difference, 0).sum(-1), losses.sum(-1).astype(float)),
        ],
        axis=-1,
    )


def _says_nothing_new(pairs: Pairs) -> bool:
    """Whether scores rise and fall exactly where answers turn right and wrong."""
    if pairs.old_correct is None or pairs.new_correct is None:
        return False
    if np.isin([pairs.old_score, pairs.new_score], (0.0, 1.0)).all():
        return True
    turned = pairs.new_correct.astype(int) - pairs.old_correct
    difference = pairs.new_score - pairs.old_score
    # Two runs without a flip (the noise floor of a task with partial credit) have to show their zeros.
    return bool(turned.any() and np.array_equal(turned, np.where(np.abs(difference) > TIE, np.sign(difference), 0)))


@measure("score-flips", paper="arXiv:2407.09435")
def continuous(pairs: Pairs, *, draws: int = 1000, level: float = 0.95, seed: int = 0) -> list[Rate]:
    """Flip rates and magnitudes of continuous scores, with paired bootstrap intervals.

    With D_i = S(new_i) - S(old_i): NFR = mean(D < 0), PFR = mean(D > 0), ties count in neither;
    M_g = mean of D where D > 0, M_r = mean of |D| where D < 0, undefined where there is no such instance
    (MUSCLE, section 3). Then mean(D) = PFR · M_g - NFR · M_r. Where no draw differs from another, the interval of
    NFR and PFR is the exact binomial one instead of a single point.

    Returns:
        One `Rate` per definition; an empty list when scores rise and fall exactly where answers turn right and
        wrong, where these numbers say nothing that `flips` does not.
    """
    rows = np.stack([pairs.old_score, pairs.new_score], axis=-1)
    if _says_nothing_new(pairs):
        return []
    values = _statistic(rows[None])[0]
    resampled = stats.bootstrap_rows(rows, _statistic, draws, seed)
    rates = []
    for column, (name, label, better) in enumerate(_NAMES):
        value = float(values[column])
        unit = "share" if name in ("nfr_score", "pfr_score") else "score"
        if np.isnan(value):
            rates.append(Rate(name, label, None, unit=unit, better=better))
            continue
        interval = stats.percentile_interval(resampled[:, column], level)
        if interval is not None and interval.low == interval.high and unit == "share":
            interval = stats.proportion_interval(round(value * len(pairs)), len(pairs), level)
        low, high = interval or (None, None)
        rates.append(Rate(name, label, value, low, high, None, unit, better))
    return rates
