"""The upper tail of the hypergeometric distribution (the one-sided Fisher test), for many tables at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from uphold.core.stats import Floats, Ints

_NEGLIGIBLE = 1e-17


def log_mass(hits: Ints, population: int, marked: int, drawn: Ints) -> Floats:
    """Log-probability of exactly `hits` marked ones among `drawn` of a population without replacement.

    Arguments as in `upper_tail`; every `hits` must be possible.
    """
    from scipy.special import gammaln

    def log_choose(n: ArrayLike, k: ArrayLike) -> Floats:
        wanted, chosen = np.asarray(n, float), np.asarray(k, float)
        values: Floats = gammaln(wanted + 1) - gammaln(chosen + 1) - gammaln(wanted - chosen + 1)
        return values

    result: Floats = (
        log_choose(marked, hits) + log_choose(population - marked, drawn - hits) - log_choose(population, drawn)
    )
    return result


def upper_tail(hits: ArrayLike, population: int, marked: int, drawn: ArrayLike) -> Floats:
    """P(X >= hits) for X marked ones among `drawn` of a population: the one-sided p-value of Fisher's exact test.

    Args:
        hits: marked ones seen among those drawn, shape (n,).
        population: size of the population.
        marked: marked ones in the whole population.
        drawn: how many are drawn, shape (n,).

    Returns:
        Shape (n,), in [0, 1]. Exact up to rounding: terms are summed away from the mode until they no longer count,
        so a call takes some standard deviations of X steps, each over all n.

    Raises:
        ValueError: a count is negative or more than there are.
    """
    hits, drawn = np.broadcast_arrays(np.atleast_1d(np.asarray(hits, np.int64)), np.asarray(drawn, np.int64))
    if not 0 <= marked <= population or (drawn < 0).any() or (drawn > population).any():
        raise ValueError(f"need 0 <= marked <= population and 0 <= drawn <= population = {population}")
    least, most = np.maximum(0, drawn - (population - marked)), np.minimum(marked, drawn)
    if (hits < least).any() or (hits > most).any():
        raise ValueError("need hits that are possible with the given numbers of marked and drawn")
    mode = (marked + 1.0) * (drawn + 1.0) / (population + 2.0)
    above = hits >= mode
    # Below the mode the smaller, lower tail is summed, from hits - 1 downwards.
    start = np.where(above, hits, hits - 1)
    possible = start >= least
    at = np.where(possible, start, least)
    total = np.exp(log_mass(at, population, marked, drawn)) * _ratio_sum(at, population, marked, drawn, above)
    total = np.where(possible, total, 0.0)
    tail: Floats = np.clip(np.where(above, total, 1.0 - total), 0.0, 1.0)
    return tail


def _ratio_sum(start: Ints, population: int, marked: int, drawn: Ints, upwards: NDArray[np.bool_]) -> Floats:
    """The sum of P(X = x) / P(X = start) over x from `start` on, upwards or downwards."""
    sums = np.ones(start.shape)
    term = np.ones(start.shape)
    active = np.arange(start.size)
    at = start.astype(float)
    others = population - marked - drawn.astype(float)
    while active.size:
        here, draws, up, rest = at[active], drawn[active], upwards[active], others[active]
        rise = (marked - here) * (draws - here) / ((here + 1) * np.maximum(rest + here + 1, 1))
        fall = here * (rest + here) / ((marked - here + 1) * (draws - here + 1))
        term[active] *= np.where(up, rise, fall)
        sums[active] += term[active]
        at[active] += np.where(up, 1, -1)
        active = active[term[active] > _NEGLIGIBLE * sums[active]]
    return sums
