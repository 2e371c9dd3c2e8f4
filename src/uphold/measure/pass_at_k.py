"""pass@k: would one of k sampled answers to a problem be right? (Chen et al. 2021, arXiv:2107.03374)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from uphold.core import stats
from uphold.core.errors import DataError, EmptyError, UsageError
from uphold.core.records import Record
from uphold.core.runs import Run

PROBLEM = "task_id"
"""The tag by which answers to the same problem are known."""


@dataclass(frozen=True)
class PassAtK:
    """pass@k of one model, with its interval over problems."""

    k: int
    value: float
    """In [0, 1]."""
    low: float
    """Lower end of the confidence interval."""
    high: float
    """Upper end of the confidence interval."""
    problems: int
    samples: int
    """Scored answers to all problems together."""
    unscored: int = 0
    """Answers without a verdict, which count as not sampled."""

    def __str__(self) -> str:
        return (
            f"pass@{self.k} {100 * self.value:.2f}% [{100 * self.low:.2f}%, {100 * self.high:.2f}%] "
            f"({self.problems} problems, {self.samples} samples)"
        )


def pass_at_k(run: Run | Iterable[Record], k: int, *, draws: int = 2000, level: float = 0.95, seed: int = 0) -> PassAtK:
    """Unbiased pass@k, averaged over problems (Chen et al. 2021, eq. 1), with a bootstrap interval over problems.

    The answers to a problem are those with the same tag `task_id`. Problems may have different numbers of answers.

    Args:
        run: a run of a task with several samples per problem (`humaneval:samples=10,temperature=0.8`), or its records.
        k: how many answers the user would look at, >= 1 and at most the samples of every problem.
        draws: bootstrap draws.
        level: of the confidence interval.
        seed: of the bootstrap.

    Raises:
        EmptyError: no answer is scored as right or wrong.
        DataError: a record has no tag `task_id`.
        UsageError: `k` is less than 1, or more than the samples of a problem.
    """
    if k < 1:
        raise UsageError(f"k is {k}: pass@k needs k >= 1")
    sampled, right, unscored = _count(run.records() if isinstance(run, Run) else run)
    if not sampled.total():
        raise EmptyError(
            f"none of the {unscored} answers is scored as right or wrong: evaluate with a scorer that does"
        )
    fewest, problem = min((count, name) for name, count in sampled.items())
    if k > fewest:
        raise UsageError(
            f"pass@{k} needs {k} scored samples of every problem, but '{problem}' has {fewest}: "
            f"ask for k <= {fewest}, or sample more (humaneval:samples={k},temperature=0.8)"
        )
    values = np.array([estimate(count, right[name], k) for name, count in sorted(sampled.items())])
    low, high = _interval(values, draws, level, seed)
    return PassAtK(k, float(values.mean()), low, high, len(values), sampled.total(), unscored)


def estimate(n: int, c: int, k: int) -> float:
    """1 - C(n-c, k) / C(n, k): the chance that k of n samples, c of them right, hold a right one (eq. 1).

    The quotient of binomials is the product over i in (n-c, n] of 1 - k/i, which does not overflow.
    """
    if n - c < k:
        return 1.0
    return float(1 - np.prod(1 - k / np.arange(n - c + 1, n + 1)))


def _count(records: Iterable[Record]) -> tuple[Counter[str], Counter[str], int]:
    """Scored and right answers of each problem, and how many answers are not scored."""
    sampled: Counter[str] = Counter()
    right: Counter[str] = Counter()
    unscored = 0
    for record in records:
        problem = record.tags.get(PROBLEM)
        if problem is None:
            raise DataError(
                f"the record '{record.id}' has no tag '{PROBLEM}' that says which problem it answers: "
                "pass@k is for tasks such as humaneval"
            )
        # A problem without a scored answer is kept, with 0 samples, to be complained of.
        sampled[problem] += record.correct is not None
        right[problem] += record.correct is True
        unscored += record.correct is None
    return sampled, right, unscored


def _interval(values: stats.Floats, draws: int, level: float, seed: int) -> stats.Interval:
    """Percentile interval over problems.

    Where every problem has the value 0, or every one 1, so has every draw. Then the exact binomial interval bounds
    the share of problems with another value, and with it their mean, which lies nearer.
    """
    n = len(values)
    if (values == 0).all() or (values == 1).all():
        return stats.proportion_interval(int(values.sum()), n, level)
    resampled = stats.bootstrap_rows(values[:, None], lambda rows: rows.mean(axis=1), draws, seed)
    interval = stats.percentile_interval(resampled[:, 0], level)
    assert interval is not None
    return interval
