"""Task arithmetic: the base plus a weighted sum of what each model changed.

Ilharco et al., "Editing models with task arithmetic", ICLR 2023, arXiv:2212.04089.

    theta = theta_0 + lambda sum_i w_i (theta_i - theta_0)

The authors tune lambda on validation; 0.3 to 0.5 is usual for several tasks (their notebook has 0.4).
"""

from __future__ import annotations

from uphold.core.registry import merge
from uphold.merge._sums import INT8_MASK, LAMBDA, WEIGHT
from uphold.merge._task_vectors import TaskVectors, normalize


@merge("task_arithmetic", paper="arXiv:2212.04089")
class TaskArithmetic(TaskVectors):
    """The base plus lambda times the weighted sum of what each model changed."""

    parameters = (WEIGHT, normalize(False), LAMBDA, INT8_MASK)
