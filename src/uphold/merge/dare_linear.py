"""DARE: keep each entry of a change with probability `density`, divide it by that, add up.

Yu et al., "Language models are super Mario: absorbing abilities from homologous models as a free lunch", ICML 2024,
arXiv:2311.03099.

    theta = theta_0 + lambda sum_i w_i m_i (theta_i - theta_0) / p,    m_i ~ Bernoulli(p), p = density

The division by p is the paper's, and makes the mean over masks the change itself. mergekit restores the L1 norm of each
tensor instead, which favours small entries and lessens large ones.
"""

from __future__ import annotations

from uphold.core.registry import merge
from uphold.merge._random import RandomMask


@merge("dare_linear", paper="arXiv:2311.03099")
class DareLinear(RandomMask):
    """Drop changes at random, rescale the rest, add up."""
