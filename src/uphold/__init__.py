"""Uphold: ship model updates that keep their promises.

    import uphold

    comparison = uphold.compare("old-model", "new-model", "task.yaml")
    repaired = uphold.repair.muscle("old-model", "new-model", "task.yaml", out="repaired")

Names are loaded on first use, so that `import uphold` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uphold import explain as explain
    from uphold import merge as merge
    from uphold import patch as patch
    from uphold import repair as repair
    from uphold import stages as stages
    from uphold.core.errors import UpholdError as UpholdError
    from uphold.core.policy import load_policy as load_policy
    from uphold.core.runs import Run as Run
    from uphold.core.runs import load_run as load_run
    from uphold.core.runs import write_run as write_run
    from uphold.importers import import_log as import_log
    from uphold.measure.compare import compare as compare
    from uphold.measure.compare import compare_all as compare_all
    from uphold.measure.comparison import load_comparison as load_comparison
    from uphold.measure.evaluate import evaluate as evaluate
    from uphold.measure.gate import gate as gate
    from uphold.measure.history import history as history
    from uphold.measure.pass_at_k import pass_at_k as pass_at_k
    from uphold.models.load import load as load
    from uphold.repair.adapt import adapt as adapt
    from uphold.repair.result import load_repair as load_repair
    from uphold.report import write_report as write_report
    from uphold.tasks.load import load_task as load_task

_HOMES = {
    "UpholdError": "uphold.core.errors",
    "Run": "uphold.core.runs",
    "load_run": "uphold.core.runs",
    "write_run": "uphold.core.runs",
    "import_log": "uphold.importers",
    "compare": "uphold.measure.compare",
    "compare_all": "uphold.measure.compare",
    "load_comparison": "uphold.measure.comparison",
    "evaluate": "uphold.measure.evaluate",
    "gate": "uphold.measure.gate",
    "history": "uphold.measure.history",
    "pass_at_k": "uphold.measure.pass_at_k",
    "load_policy": "uphold.core.policy",
    "load": "uphold.models.load",
    "adapt": "uphold.repair.adapt",
    "load_repair": "uphold.repair.result",
    "write_report": "uphold.report",
    "load_task": "uphold.tasks.load",
}
_ROOMS = ("measure", "explain", "repair", "merge", "patch", "stages", "report")

__all__ = ["__version__", *_HOMES, *_ROOMS]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("uphold")
    if name in _ROOMS:
        return importlib.import_module(f"uphold.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'uphold' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
