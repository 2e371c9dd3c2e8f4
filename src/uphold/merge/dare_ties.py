"""DARE with the sign consensus of TIES: see `dare_linear` and `ties`."""

from __future__ import annotations

from uphold.core.registry import merge
from uphold.merge._random import RandomMask


@merge("dare_ties", paper="arXiv:2311.03099")
class DareTies(RandomMask):
    """Drop changes at random, rescale the rest, add up where signs agree."""

    consensus = True
