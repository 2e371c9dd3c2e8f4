"""How many instances it takes: exact binomial power, never the normal approximation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from uphold.core.stats.types import Floats, Ints, check_level

Bools = NDArray[np.bool_]

_MOST = 10**9
"""Beyond so many instances the answer is "too many"."""


def instances_needed(rate: float, limit: float, level: float = 0.95, power: float = 0.8) -> int:
    """Instances so that an update whose true NFR is `rate` is shown to keep `limit`.

    That is: the smallest n at which, and at every larger number of instances, the exact one-sided upper bound
    (`proportion_upper_bound` at `level`) is at most `limit` with a probability of at least `power`. The power saws up
    and down with n, so the first n that has it is not enough. Assumes independent instances.

    Raises:
        ValueError: not 0 <= rate < limit < 1, `level` or `power` is not in (0, 1), or more than 10^9 instances.
    """
    _check(level, power)
    if not 0 <= rate < limit < 1:
        raise ValueError(f"need 0 <= rate < limit < 1, not rate {rate} and limit {limit}: no number of instances does")
    from scipy.special import bdtr

    def first(flips: Ints) -> Ints:
        """The smallest n at which so many flips pass."""
        return _search(lambda n: np.asarray(bdtr(flips.astype(float), n, limit)) <= 1 - level, flips + 1)

    def holds(flips: Ints) -> Bools:
        """Whether the power is kept up to the last n at which one flip more does not pass."""
        return np.asarray(bdtr(flips.astype(float), first(flips + 1) - 1, rate) >= power)

    return _bounded(int(first(np.array([_from_then_on(holds, 0, rate, limit)]))[0]), rate, limit)


def instances_to_see(rate: float, level: float = 0.95, power: float = 0.8, floor: float = 0.0) -> int:
    """Instances so that a true NFR of `rate` is told from a floor.

    That is: the smallest n at which, and at every larger number of instances, the exact one-sided lower bound
    (`proportion_lower_bound` at `level`) is above `floor` with a probability of at least `power`. With a floor of
    zero one flip suffices to tell, whatever the level. Assumes independent instances, and a floor that is known.

    Raises:
        ValueError: not 0 <= floor < rate < 1, `level` or `power` is not in (0, 1), or more than 10^9 instances.
    """
    _check(level, power)
    if not 0 <= floor < rate < 1:
        raise ValueError(f"need 0 <= floor < rate < 1, not floor {floor} and rate {rate}: no number of instances does")
    from scipy.special import bdtrc

    if floor == 0:
        return _bounded(int(np.ceil(np.log1p(-power) / np.log1p(-rate))), floor, rate)

    def beyond(flips: Ints) -> Ints:
        """The smallest n at which so many flips no longer tell."""
        return _search(lambda n: np.asarray(_at_least(flips, n, floor)) > 1 - level, np.maximum(flips, 1))

    def holds(flips: Ints) -> Bools:
        """Whether the power is there from the first n at which one flip less does not tell."""
        return np.asarray(_at_least(flips, beyond(flips - 1), rate) >= power)

    fewest = _from_then_on(holds, 1, rate, floor)
    if fewest == 1:
        return int(beyond(np.array([0]))[0])
    # Every larger critical number is good enough throughout; with the one before, the power rises with n.
    before = np.array([fewest - 1])
    start = beyond(before - 1)
    enough = _search(lambda n: np.asarray(bdtrc(before - 1.0, n, rate)) >= power, start)
    return _bounded(int(min(enough[0], beyond(before)[0])), floor, rate)


def smallest_visible_rate(trials: int, level: float = 0.95, power: float = 0.8, floor: float = 0.0) -> float:
    """The smallest true NFR that so many instances tell from a floor, with that power; see `instances_to_see`.

    Infinite where even flips everywhere would not tell, as with very few instances and a high floor.

    Raises:
        ValueError: `trials` is not positive, `floor` is not in [0, 1), or `level` or `power` is not in (0, 1).
    """
    from scipy.special import betaincinv

    _check(level, power)
    if trials < 1 or not 0 <= floor < 1:
        raise ValueError(f"need trials >= 1 and 0 <= floor < 1, not {trials} and {floor}")
    told = _search(lambda flips: np.asarray(_at_least(flips, np.array([trials]), floor)) <= 1 - level, np.array([1]))
    flips = int(told[0])
    return float("inf") if flips > trials else float(betaincinv(flips, trials - flips + 1, power))


def _check(level: float, power: float) -> None:
    check_level(level)
    if not 0 < power < 1:
        raise ValueError(f"need a power between 0 and 1, such as 0.8, not {power}")


def _bounded(instances: int, one: float, other: float) -> int:
    if instances > _MOST:
        raise ValueError(f"telling {one} from {other} takes more than {_MOST} instances")
    return instances


def _at_least(flips: Ints, n: Ints, rate: float) -> Floats:
    """P(X >= flips) among n instances."""
    from scipy.special import bdtrc

    return np.where(flips > n, 0.0, bdtrc(np.minimum(flips, n) - 1.0, n, rate))


def _search(reached: Callable[[Ints], Bools], start: Ints) -> Ints:
    """The smallest number from `start` on at which a condition holds that then goes on holding, elementwise."""
    low, high, step = start - 1, start, np.ones_like(start)
    while not (done := reached(high) | (high > _MOST)).all():
        low, high, step = np.where(done, low, high), np.where(done, high, high + step), 2 * step
    while (high - low > 1).any():
        # Rounded up, so that what is found already is asked again and stays.
        middle = (low + high + 1) // 2
        good = reached(middle)
        low, high = np.where(good, low, middle), np.where(good, middle, high)
    return high


def _from_then_on(holds: Callable[[Ints], Bools], start: int, rate: float, limit: float) -> int:
    """The smallest number of flips from which on a condition keeps holding. It rises, but for a small sawtooth."""
    most = int(_MOST * max(rate, limit))
    low, high = start - 1, start
    while high <= most and not holds(np.array([high]))[0]:
        low, high = high, 2 * high + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(np.array([middle]))[0] else (middle, high)
    if high > most:
        return high
    # A whole instance more or less shifts the power as much as so many flips more raise it.
    teeth = 64 + int(4 * rate * limit / abs(limit - rate))
    around = np.arange(max(start, high - teeth), high + teeth)
    fails = np.flatnonzero(~holds(around))
    return start if fails.size == 0 else int(around[fails[-1]]) + 1
