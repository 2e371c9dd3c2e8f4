"""Many tests at once: the false discovery rate and the family-wise error."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from uphold.core.stats.types import Floats


def benjamini_hochberg(p_values: ArrayLike) -> Floats:
    """Adjusted p-values q of Benjamini and Hochberg (JRSS B 1995), in the order given, shape (tests,).

    Calling every test with q <= x a discovery keeps the expected share of false ones among them at x or below, for
    independent tests and for positively dependent ones (Benjamini and Yekutieli, Annals of Statistics 2001).

    Raises:
        ValueError: a p-value is not in [0, 1].
    """
    p = _checked(p_values)
    order = np.argsort(-p, kind="stable")
    adjusted = np.minimum.accumulate(p[order] * p.size / np.arange(p.size, 0, -1))
    return _back(adjusted, order)


def holm(p_values: ArrayLike) -> Floats:
    """Adjusted p-values of Holm (Scandinavian Journal of Statistics 1979), in the order given, shape (tests,).

    Rejecting every test with an adjusted value <= x keeps the probability of a single false rejection at x or below,
    under any dependence.

    Raises:
        ValueError: a p-value is not in [0, 1].
    """
    p = _checked(p_values)
    order = np.argsort(p, kind="stable")
    adjusted = np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1))
    return _back(adjusted, order)


def _checked(p_values: ArrayLike) -> Floats:
    p = np.asarray(p_values, dtype=float).ravel()
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p-values lie between 0 and 1, not all of {p.tolist()[:5]}")
    return p


def _back(adjusted: Floats, order: NDArray[np.intp]) -> Floats:
    result = np.empty(adjusted.size)
    result[order] = np.minimum(adjusted, 1)
    return result
