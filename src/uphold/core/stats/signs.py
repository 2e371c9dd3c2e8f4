"""The distribution of a sum under random signs, shared by the sign-flip tests: counted where possible, else drawn."""

from __future__ import annotations

import numpy as np

from uphold.core.stats.types import Floats, Ints

ENUMERATED = 16
"""Up to so many values all sign patterns are listed."""
LATTICE = 20_000
"""Up to this sum of whole numbers the distribution of the sum is computed, at a cost that grows with its square."""
_CHUNK = 4_000_000


def sign_flip_p(values: Floats, draws: int, seed: int) -> float:
    """P(|sum of randomly signed values| >= |sum of values|); sums that differ by rounding only count as equal."""
    sizes = np.abs(values[values != 0])
    if sizes.size == 0:
        return 1.0
    total = sizes.sum()
    observed = abs(float(values.sum())) - 1e-12 * total
    if (sizes == np.rint(sizes)).all() and total <= LATTICE:
        weights = sign_sums(sizes.astype(np.int64))
        sums = np.arange(-int(total), int(total) + 1)
        return min(1.0, float(weights[np.abs(sums) >= observed].sum()))
    if sizes.size <= ENUMERATED:
        patterns = (np.arange(2 ** (sizes.size - 1))[:, None] >> np.arange(sizes.size)) & 1
        # The last sign stays: each pattern's mirror image is exactly as far from zero.
        return float((np.abs((1 - 2 * patterns) @ sizes) >= observed).mean())
    extreme = int((np.abs(_drawn_sums(sizes, draws, seed)) >= observed).sum())
    return (extreme + 1) / (draws + 1)


def sign_sums(sizes: Ints) -> Floats:
    """Probability of each sum from -sizes.sum() to sizes.sum() when every size takes a random sign."""
    from scipy.special import bdtr

    weights = np.ones(1)
    for size, count in zip(*np.unique(sizes, return_counts=True), strict=True):
        upwards = np.diff(bdtr(np.arange(count + 1), int(count), 0.5), prepend=0.0)
        spread = np.zeros(2 * int(size) * int(count) + 1)
        spread[:: 2 * int(size)] = upwards
        weights = np.convolve(weights, spread)
    return weights


def _drawn_sums(sizes: Floats, draws: int, seed: int) -> Floats:
    """Sums of `sizes` with random signs, shape (draws,). Equal sizes share one binomial draw."""
    generator = np.random.default_rng(seed)
    distinct, counts = np.unique(sizes, return_counts=True)
    per_chunk = max(1, _CHUNK // distinct.size)
    parts = []
    for start in range(0, draws, per_chunk):
        shape = (min(per_chunk, draws - start), distinct.size)
        parts.append((2 * generator.binomial(counts, 0.5, size=shape) - counts) @ distinct)
    return np.concatenate(parts)
