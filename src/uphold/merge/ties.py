"""TIES: trim small changes, elect a sign for every entry, average what agrees with it.

Yadav et al., "TIES-Merging: resolving interference when merging models", NeurIPS 2023, arXiv:2306.01708.

    theta = theta_0 + lambda sum_i w_i d_i a_i / sum_i w_i a_i

d_i is the change with all but the `density` largest of a tensor set to zero, a_i is 1 where d_i has the sign of
sum_i w_i d_i. This is mergekit's form; `ties_paper` trims over the whole model as the authors' code does.
"""

from __future__ import annotations

from uphold.core.registry import merge
from uphold.merge._task_vectors import selecting
from uphold.merge._trim import RESCALE, Trimmed


@merge("ties", paper="arXiv:2306.01708")
class Ties(Trimmed):
    """Trim each change to its largest entries, elect a sign per entry, average what agrees."""

    consensus = True
    parameters = selecting(True, RESCALE)
