"""All tables of a number of pairs, and their probabilities, by brute force."""

from __future__ import annotations

import numpy as np
from scipy.special import gammaln, xlogy

from uphold.core.stats import Floats, Ints


def all_tables(trials: int) -> tuple[Ints, Ints]:
    """Negative and positive flips of every table of so many pairs."""
    negative, positive = np.array([(c, b) for c in range(trials + 1) for b in range(trials + 1 - c)]).T
    return negative, positive


def chances(trials: int, psi: float, difference: float) -> Floats:
    """Probability of each of `all_tables` with a share psi of flips, and positive - negative = difference."""
    negative, positive = all_tables(trials)
    kept = trials - negative - positive
    logs = gammaln(trials + 1) - gammaln(negative + 1) - gammaln(positive + 1) - gammaln(kept + 1)
    up, down = (psi + difference) / 2, (psi - difference) / 2
    return np.asarray(np.exp(logs + xlogy(negative, down) + xlogy(positive, up) + xlogy(kept, 1 - psi)))
