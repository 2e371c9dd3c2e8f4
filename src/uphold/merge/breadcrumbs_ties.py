"""Breadcrumbs with the sign consensus of TIES: see `breadcrumbs` and `ties`."""

from __future__ import annotations

from uphold.core.registry import merge
from uphold.merge.breadcrumbs import Breadcrumbs


@merge("breadcrumbs_ties", paper="arXiv:2312.06795")
class BreadcrumbsTies(Breadcrumbs):
    """Drop the largest and the smallest changes of each tensor, add up the rest where signs agree."""

    consensus = True
