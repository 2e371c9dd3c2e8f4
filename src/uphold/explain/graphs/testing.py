"""Which units are causes: one-sided tests that the outcome falls when a unit is cut."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uphold.core.errors import EmptyError
from uphold.core.stats import benjamini_hochberg
from uphold.core.stats.types import Floats
from uphold.explain.graphs.config import GraphConfig

AUTHORS_Z = 1.65
AUTHORS_SINGLE = 0.05
"""Upper bound of the relative effect with one image; positive, as in the authors' code: it keeps units that raise the
logit a little."""
AUTHORS_FALLBACK = -0.001
AUTHORS_SHARE = 0.05


@dataclass(frozen=True)
class Tested:
    """The units of a layer after the test; arrays of shape (units,)."""

    effect: Floats
    """Mean change of the outcome when the unit is cut."""
    p: Floats
    """One-sided p-value."""
    q: Floats
    """The same, adjusted over the layer; with the authors' test the p-value."""
    causes: tuple[int, ...]
    """Units whose cut lowers the outcome."""
    fallback: str = ""
    """How causes were chosen where the authors' test finds none: `relative` or `lowest`."""


def paired_p(differences: Floats, two_sided: bool = False) -> Floats:
    """p-values of the paired t test, (units, n) -> (units,): is the mean below 0, or other than 0?

    Where all images have the same difference, p is 0 for one below 0 (other than 0) and 1 otherwise.

    Raises:
        EmptyError: fewer than two images.
    """
    from scipy.special import stdtr

    n = differences.shape[1]
    if n < 2:
        raise EmptyError(f"a paired test needs at least 2 images that the model gets right, not {n}; give more images")
    mean, spread = differences.mean(1), differences.std(1, ddof=1)
    # Equal numbers may have a spread of rounding; t is then as large as it should be.
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(spread > 0, mean / (spread / np.sqrt(n)), np.sign(mean) * np.inf)
    t = np.where((spread == 0) & (mean == 0), np.inf if not two_sided else 0.0, t)
    p = stdtr(n - 1, t) if not two_sided else 2 * stdtr(n - 1, -np.abs(t))
    return np.asarray(np.minimum(p, 1.0), dtype=float)


def unpaired_z(cut: Floats, clean: Floats) -> Floats:
    """The authors' statistic, (units, n) and (n,) -> (units,): difference of means in two-sample standard errors."""
    n = clean.size
    spread = np.sqrt((cut.var(1, ddof=1) + clean.var(ddof=1)) / n) if n > 1 else np.zeros(len(cut))
    gap = cut.mean(1) - clean.mean()
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(spread > 0, gap / spread, np.where(gap == 0, 0.0, np.sign(gap) * np.inf)))


def select(
    cut: Floats, clean: Floats, scale: float, config: GraphConfig, tested: NDArray[np.bool_] | None = None
) -> Tested:
    """The causes among the units of a layer.

    Args:
        cut: outcome of each image with each unit cut, shape (units, n).
        clean: outcome with nothing cut, shape (n,).
        scale: mean centred logit of the class, which `config.min_effect` is a share of.
        config: the options.
        tested: bool of shape (units,): which units were cut; the others have p = 1. All where None.
    """
    known = np.ones(len(cut), dtype=np.bool_) if tested is None else tested
    if config.compat == "authors":
        return _authors(cut, clean, known)
    effect = (cut - clean).mean(1)
    p = np.where(known, paired_p(cut - clean), 1.0)
    q = benjamini_hochberg(p)
    chosen = (q <= config.alpha) & (effect < 0) & (effect <= -config.min_effect * scale)
    return Tested(effect, p, q, tuple(np.flatnonzero(chosen).tolist()))


def _authors(cut: Floats, clean: Floats, known: NDArray[np.bool_]) -> Tested:
    from scipy.special import ndtr

    effect = (cut - clean).mean(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.nan_to_num((cut / clean - 1).mean(1))
    relative = np.where(known, relative, np.inf)
    z = np.where(known, unpaired_z(cut, clean), np.inf)
    p, fallback = np.asarray(ndtr(z), dtype=float), ""
    chosen = relative < AUTHORS_SINGLE if clean.size == 1 else z < -AUTHORS_Z
    if not chosen.any():
        chosen, fallback = relative < AUTHORS_FALLBACK, "relative"
    if not chosen.any():
        lowest = np.argsort(relative, kind="stable")[: max(1, round(AUTHORS_SHARE * known.sum()))]
        chosen, fallback = np.isin(np.arange(len(cut)), lowest), "lowest"
    return Tested(effect, p, p, tuple(np.flatnonzero(chosen).tolist()), fallback)
