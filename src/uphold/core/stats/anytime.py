"""Tests that may be looked at after every instance: betting e-processes and confidence sequences for a mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from uphold.core.stats.types import Floats, Interval, check_level

Side = Literal["greater", "less"]

BETS = 0.985 * 2.0 ** -np.arange(8.0)
"""Bets, as fractions of the one that can lose everything, from bold to careful.

Halving loses a sixth of the growth at worst, between two bets; more bets would each cost evidence. The bold ones
suit the absence of rare flips, the careful ones flips somewhat more frequent than the null hypothesis says.
"""

_CHUNK = 200_000
_HALVINGS = 60


class EProcess:
    """Evidence against a hypothesis about the mean of bounded values, valid at any time it is looked at.

    `side="greater"` tests H0: mean <= null, "less" tests H0: mean >= null. The e-value is the average, over a fixed
    grid of bets b, of the product over all values x of 1 + b (x - null) / (null - low), or of
    1 + b (null - x) / (high - null) for "less" (Waudby-Smith and Ramdas, JRSS B 2024, section 4). Under H0 it is a
    nonnegative supermartingale that starts at 1, so that the chance that it EVER reaches 1 / alpha is at most alpha
    (Ville 1939): rejecting as soon as `p` <= alpha is an honest test however often, and for whatever reason, one
    looks and stops. The price is a larger sample than a test at one fixed n needs.

    Assumes that each value has, given all before it, a mean on H0's side under H0; independent instances drawn in
    random order do. Two-sided: one process per side, each at alpha / 2.

    Args:
        null: the mean that is tested, strictly between `low` and `high`.
        low: no value lies below.
        high: no value lies above.
        side: where the alternative lies.

    Raises:
        ValueError: not low < null < high, or `side` is unknown.
    """

    def __init__(self, null: float, low: float = 0.0, high: float = 1.0, side: Side = "greater") -> None:
        if not low < null < high:
            raise ValueError(f"need low < null < high, not null {null} between {low} and {high}")
        if side not in ("greater", "less"):
            raise ValueError(f"unknown side {side!r}: greater or less")
        self.null, self.low, self.high, self.side = null, low, high, side
        self.count = 0
        """Values seen."""
        self._logs = np.zeros(BETS.size)
        self._most = 0.0

    def update(self, values: ArrayLike) -> None:
        """Take more values, in their order, looking after each of them.

        Raises:
            ValueError: a value lies outside [low, high].
        """
        sample = self._checked(np.asarray(values, dtype=float).ravel())
        for start in range(0, sample.size, _CHUNK // BETS.size):
            part = sample[start : start + _CHUNK // BETS.size]
            logs = self._logs + np.cumsum(self._log_factors(part), axis=0)
            self._logs = logs[-1]
            self._most = max(self._most, float(_log_mean_exp(logs).max()))
        self.count += sample.size

    def update_counts(self, counts: Mapping[float, int]) -> None:
        """Take more values as {value: how often}, looking once, after all of them. Their order does not matter.

        Raises:
            ValueError: a value lies outside [low, high], or a count is negative.
        """
        times = np.array(list(counts.values()), dtype=float)
        if (times < 0).any():
            raise ValueError(f"counts cannot be negative: {dict(counts)}")
        seen = times > 0
        values = self._checked(np.array(list(counts), dtype=float)[seen])
        self._logs = self._logs + times[seen] @ self._log_factors(values)
        self._most = max(self._most, self.log_e)
        self.count += int(times.sum())

    @property
    def log_e(self) -> float:
        """Natural logarithm of the e-value now."""
        return float(_log_mean_exp(self._logs))

    @property
    def p(self) -> float:
        """Anytime-valid p-value: 1 over the largest e-value at any look so far, at most 1."""
        return float(np.exp(-self._most))

    def _log_factors(self, values: Floats) -> Floats:
        gain = (values - self.null) if self.side == "greater" else (self.null - values)
        loss = self.null - self.low if self.side == "greater" else self.high - self.null
        return np.log1p(gain[:, None] / loss * BETS)

    def _checked(self, values: Floats) -> Floats:
        if not ((values >= self.low) & (values <= self.high)).all():
            raise ValueError(f"values must lie in [{self.low}, {self.high}]")
        return values


def confidence_sequence(
    counts: Mapping[float, int], low: float = 0.0, high: float = 1.0, level: float = 0.95
) -> Interval:
    """Interval of a mean that holds at every look at once: all means that no `EProcess` rejects now.

    With confidence `level`, the true mean lies in every interval of a growing sample. Inverts one e-process per
    side, each at (1 - level) / 2, by bisection (Waudby-Smith and Ramdas 2024). Assumptions as for `EProcess`.

    Args:
        counts: the values so far, {value: how often}.
        low: no value lies below.
        high: no value lies above.
        level: confidence, in (0, 1).

    Returns:
        [low, high] itself while there are no values.

    Raises:
        ValueError: a value lies outside [low, high], a count is negative, or `level` is not in (0, 1).
    """
    check_level(level)
    total = sum(counts.values())
    mean = sum(value * count for value, count in counts.items()) / total if total else (low + high) / 2
    threshold = float(np.log(2 / (1 - level)))

    def rejected(null: float, side: Side) -> bool:
        process = EProcess(null, low, high, side)
        process.update_counts(counts)
        return process.log_e >= threshold

    return Interval(_edge(rejected, "greater", low, mean), _edge(rejected, "less", high, mean))


def _edge(rejected: Callable[[float, Side], bool], side: Side, outer: float, inner: float) -> float:
    """Where rejection ends on the way from `outer` to the mean, on the outer side; `outer` if it never begins."""
    for _ in range(_HALVINGS):
        middle = (outer + inner) / 2
        if middle in (outer, inner):
            break
        if rejected(middle, side):
            outer = middle
        else:
            inner = middle
    return outer


def _log_mean_exp(logs: Floats) -> Floats:
    """Logarithm of the mean over the last axis."""
    top = logs.max(axis=-1)
    return np.asarray(top + np.log(np.exp(logs - top[..., None]).mean(axis=-1)))
