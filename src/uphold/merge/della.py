"""DELLA: drop changes at random, small ones more often, and average what agrees in sign.

arXiv:2406.11617; see `della_linear` for the probabilities and `ties` for the consensus.
"""

from __future__ import annotations

from uphold.core.registry import merge
from uphold.merge._random import RESCALE
from uphold.merge._task_vectors import selecting
from uphold.merge.della_linear import DellaLinear, epsilon


@merge("della", paper="arXiv:2406.11617")
class Della(DellaLinear):
    """Drop changes at random, small ones of a row more often; rescale the rest, average what agrees in sign."""

    consensus = True
    parameters = selecting(True, RESCALE, epsilon(0.15))
