"""Merge: several models become one, tensor by tensor.

Names are loaded on first use: torch comes with the first merge, and not with the list of methods.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uphold.merge.engine.run import Estimate as Estimate
    from uphold.merge.engine.run import Merge as Merge
    from uphold.merge.engine.run import estimate as estimate
    from uphold.merge.engine.run import merge as merge
    from uphold.merge.engine.search import search as search
    from uphold.merge.engine.search_result import Search as Search
    from uphold.merge.engine.synergy import synergy as synergy
    from uphold.merge.engine.synergy_result import Synergy as Synergy
    from uphold.merge.engine.tensors import merge_tensors as merge_tensors

_HOMES = {
    "Estimate": "uphold.merge.engine.run",
    "Merge": "uphold.merge.engine.run",
    "estimate": "uphold.merge.engine.run",
    "merge": "uphold.merge.engine.run",
    "merge_tensors": "uphold.merge.engine.tensors",
    "search": "uphold.merge.engine.search",
    "Search": "uphold.merge.engine.search_result",
    "synergy": "uphold.merge.engine.synergy",
    "Synergy": "uphold.merge.engine.synergy_result",
}
__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'uphold.merge' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
