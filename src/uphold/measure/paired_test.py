"""One test per comparison: is the new version better or worse than the old one beyond chance?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from uphold.core import stats
from uphold.core.stats import Floats, Ints
from uphold.measure.flips import flip_matrix
from uphold.measure.intervals import MANY
from uphold.measure.pairs import SUMS, TIE, Pairs


@dataclass(frozen=True)
class PairedTest:
    """A two-sided test of no difference between old and new on the same instances."""

    name: str
    """As a table calls it, e.g. `exact McNemar`."""
    p: float
    clusters: int | None = None
    """How many clusters were taken as independent; None where instances are."""
    p_midp: float | None = None
    """The mid-p version: closer to what it says than the exact one, without its guarantee. None for other tests."""

    def __str__(self) -> str:
        return f"{self.name} p = {self.p:.3g}"


def paired_test(pairs: Pairs, seed: int = 0) -> PairedTest:
    """The test that fits: by answers where they are right or wrong, else by scores; by clusters where there are some.

    - right or wrong: exact McNemar (`stats.mcnemar_exact`), with clusters `stats.mcnemar_clustered`;
    - scores: sign-flip permutation (`stats.paired_permutation_test`), with clusters
      `stats.cluster_permutation_test`; beyond 20,000 instances, or clusters, a paired t test.

    Args:
        pairs: two runs, joined.
        seed: of the permutations.
    """
    matrix = flip_matrix(pairs)
    if matrix is not None and pairs.cluster_cells is not None:
        return _clustered_mcnemar(pairs.cluster_cells)
    if matrix is not None:
        flips = (matrix.negative_flips, matrix.positive_flips)
        return PairedTest("exact McNemar", stats.mcnemar_exact(*flips), p_midp=stats.mcnemar_midp(*flips))
    if pairs.cluster_sums is not None:
        return _clustered_scores(pairs.cluster_sums, seed)
    if len(pairs) > MANY:
        moment = pairs.moments["difference"]
        return PairedTest("paired t test", _t_test(moment.mean, moment.variance / moment.n, moment.n - 1))
    differences = pairs.new_score - pairs.old_score
    differences[np.abs(differences) <= TIE] = 0
    p = stats.paired_permutation_test(differences, _draws(len(pairs)), seed)
    return PairedTest("sign-flip permutation test", p)


def _clustered_mcnemar(cells: Ints) -> PairedTest:
    _, positive, negative, _ = cells.reshape(-1, 4, 2).sum(axis=2).T
    return PairedTest("clustered McNemar", stats.mcnemar_clustered(negative, positive), len(cells))


def _clustered_scores(sums: Floats, seed: int) -> PairedTest:
    differences, sizes = sums[:, SUMS.index("difference")], sums[:, SUMS.index("count")]
    differences = np.where(np.abs(differences) <= TIE * sizes, 0, differences)
    if len(sums) > MANY:
        estimate = stats.clustered_mean(differences, sizes)
        p = _t_test(estimate.value, estimate.standard_error**2, len(sums) - 1)
        return PairedTest("clustered t test", p, len(sums))
    p = stats.cluster_permutation_test(differences, _draws(len(sums)), seed)
    return PairedTest("cluster sign-flip permutation test", p, len(sums))


def _draws(units: int) -> int:
    """As many random sign patterns as take about a second, 1,000 to 10,000."""
    return max(1000, min(10_000, 20_000_000 // units))


def _t_test(mean: float, variance: float, degrees: int) -> float:
    """Two-sided p-value of a mean that is zero under the null hypothesis, from the variance of its estimate."""
    from scipy.special import stdtr

    if variance == 0:
        return 1.0 if mean == 0 else 0.0
    return min(1.0, 2 * float(stdtr(degrees, -abs(mean) / np.sqrt(variance))))
