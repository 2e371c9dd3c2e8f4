"""An exact bound of a paired difference of shares: right at every sample size, for every share of flips."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from uphold.core.stats.proportions import proportion_interval
from uphold.core.stats.tango import tango_bounds, tango_score
from uphold.core.stats.types import Floats, Ints

_SPENT = 1 / 500
"""Part of the allowed error that goes into where the nuisance parameter is looked for (gamma / alpha)."""
_GRID, _MANY, _GRID_OF_MANY = 41, 2000, 9
"""Values of the nuisance parameter tried, and fewer with many discordant pairs, which tell it more closely."""
_TIE = 1e-7


@dataclass(frozen=True)
class ExactBound:
    """One-sided exact inference about D = accuracy(new) - accuracy(old) from one table.

    The unconditional test of Hsueh, Liu and Chen (Biometrics 2001) in the form of a Buehler bound: tables are
    ordered by Tango's score bound of the same level, and for every D the p-value is the largest probability, over
    the unknown share of discordant pairs psi, of a table ordered as high as the one seen. psi is looked for in its
    exact interval of confidence 1 - gamma, and gamma is added to the p-value (Berger and Boos, JASA 1994), which
    keeps the test exact. `p` never falls as D grows, so that the bound and the test always agree.

    The largest value is taken over a grid of psi, so exact up to its spacing.
    """

    negative: int
    positive: int
    trials: int
    level: float

    def p(self, difference: float) -> float:
        """P-value of the null hypothesis that D is at most `difference`."""
        low = max(float(self._nuisance[0]), -difference)
        high = float(self._nuisance[1])
        if low > high:
            return self._gamma
        tried = _GRID if self.negative + self.positive < _MANY else _GRID_OF_MANY
        angles = np.linspace(np.arcsin(np.sqrt(low)), np.arcsin(np.sqrt(high)), tried)
        psi = np.clip(np.sin(angles) ** 2, max(1e-300, -difference), 1.0)
        return min(1.0, float(self._tail(psi, difference).max()) + self._gamma)

    @cached_property
    def low(self) -> float:
        """The smallest D that the test does not reject at 1 - level; D lies above it with confidence `level`."""
        alpha = 1 - self.level
        return _root(lambda difference: self.p(difference) - alpha, self._ordering)

    @cached_property
    def _gamma(self) -> float:
        return (1 - self.level) * _SPENT

    @cached_property
    def _nuisance(self) -> tuple[float, float]:
        return proportion_interval(self.negative + self.positive, self.trials, 1 - self._gamma)

    @cached_property
    def _ordering(self) -> float:
        """Tango's bound of this table: tables whose own is at least as high are ordered as high."""
        return float(tango_bounds(self.negative, self.positive, self.trials, 2 * self.level - 1)[0])

    @cached_property
    def _window(self) -> tuple[Ints, Ints]:
        """Numbers of discordant pairs worth a look, and the fewest positive flips of each that are ordered as high."""
        low, high = (
            self.trials * share + sign * (8 * np.sqrt(self.trials * share * (1 - share)) + 40)
            for share, sign in zip(self._nuisance, (-1, 1), strict=True)
        )
        discordant = np.arange(max(0, int(low)), min(self.trials, int(np.ceil(high))) + 1)
        z = float(tango_score(self.negative, self.positive, self.trials, self._ordering)) - _TIE
        fewest, beyond = np.zeros_like(discordant), discordant + 1
        while (fewest < beyond).any():
            middle = (fewest + beyond) // 2
            score = tango_score(np.maximum(discordant - middle, 0), middle, self.trials, self._ordering)
            enough = (middle > discordant) | (score >= z)
            beyond = np.where(enough, middle, beyond)
            fewest = np.where(enough, fewest, np.minimum(middle + 1, beyond))
        return discordant, fewest

    def _tail(self, psi: Floats, difference: float) -> Floats:
        """P(ordered as high) for each psi, with D = min(difference, psi)."""
        from scipy.special import bdtrc, gammaln, xlog1py, xlogy

        discordant, fewest = self._window
        upwards = np.clip((psi + np.minimum(difference, psi)) / (2 * psi), 0, 1)[:, None]
        n, m = self.trials, discordant
        logs = gammaln(n + 1) - gammaln(m + 1) - gammaln(n - m + 1)
        share = np.exp(logs + xlogy(m, psi[:, None]) + xlog1py(n - m, -psi[:, None]))
        # No more than m positive flips among m; none of them is needed where `fewest` is 0.
        tails = np.where(fewest > 0, bdtrc(np.minimum(fewest - 1.0, m), m, upwards), 1.0)
        tails = np.where(fewest > m, 0.0, tails)
        outside = np.maximum(0, 1 - share.sum(axis=1))
        return np.asarray((share * tails).sum(axis=1) + outside)


def exact_lower_bound(negative: int, positive: int, trials: int, level: float = 0.95) -> ExactBound:
    """The exact one-sided lower bound of accuracy(new) - accuracy(old) and its test; see `ExactBound`.

    Swap the two kinds of flips and the sign for the upper bound.

    Raises:
        ValueError: the counts are not those of a table, or `level` is not in (0.5, 1).
    """
    if not 0.5 < level < 1:
        raise ValueError(f"need a level between 0.5 and 1, such as 0.95, not {level}")
    if min(negative, positive) < 0 or trials < max(1, negative + positive):
        raise ValueError(f"need flips that fit into the pairs, not {negative} and {positive} of {trials}")
    return ExactBound(negative, positive, trials, level)


def _root(rising: Callable[[float], float], guess: float) -> float:
    """Where a function that rises on [-1, 1] crosses zero, on the side where it is below, to 1e-9.

    -1 where it never is below. Widens from `guess`, then closes in by false position (Illinois form).
    """
    step = 1e-3
    low, below = guess, rising(guess)
    high, above = low, below
    while below > 0:
        if low <= -1:
            return -1.0
        high, above = low, below
        low, step = max(-1.0, low - step), 4 * step
        below = rising(low)
    while above <= 0:
        if high >= 1:
            return 1.0
        low, below = high, above
        high, step = min(1.0, high + step), 4 * step
        above = rising(high)
    kept = 0
    while high - low > 1e-9:
        middle = low + (high - low) * (below / (below - above) if abs(kept) < 4 else 0.5)
        middle = min(max(middle, low + 4e-10), high - 4e-10)
        value = rising(middle)
        if value > 0:
            kept = max(kept, 0) + 1
            high, above = middle, value
            below /= 2 if kept > 1 else 1
        else:
            kept = min(kept, 0) - 1
            low, below = middle, value
            above /= 2 if kept < -1 else 1
    return low
