"""DELLA with the defaults of its authors' code: equal weights, and a narrow band of probabilities.

arXiv:2406.11617. Their `window_size` is twice the epsilon here. `della` divides by each entry's own probability as
well, so the two differ in defaults only.
"""

from __future__ import annotations

from dataclasses import replace

from uphold.core.registry import merge
from uphold.merge._random import RESCALE
from uphold.merge._sums import WEIGHT
from uphold.merge._task_vectors import selecting
from uphold.merge.della import Della
from uphold.merge.della_linear import epsilon


@merge("della_paper", paper="arXiv:2406.11617")
class DellaPaper(Della):
    """DELLA as its authors run it: equal weights, epsilon 0.05."""

    parameters = (replace(WEIGHT, default=1.0), *selecting(True, RESCALE, epsilon(0.05))[1:])
