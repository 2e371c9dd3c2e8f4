"""One maker to a folder: what a call finds in its output folder must be its own, so that nothing is written over."""

from __future__ import annotations

from pathlib import Path

from uphold.core.errors import UsageError
from uphold.core.storage import read_json
from uphold.repair.adapt import FILE as ADAPT_FILE
from uphold.repair.result import FILE as REPAIR_FILE
from uphold.repair.search_result import FILE as SEARCH_FILE
from uphold.repair.search_result import TRIALS

ADAPT, SEARCH = "adapt", "search"
"""Makers that are not repair methods."""


def check_out_folder(folder: Path, maker: str) -> None:
    """Refuse an output folder in which something else was made.

    Args:
        folder: what is to be written to; it need not exist.
        maker: the repair method that is to write there, `ADAPT` or `SEARCH`.

    Raises:
        UsageError: it holds a model, a task adapter, a search, or a repair by another method.
    """
    found = _holds(folder)
    if found and found[0] != maker:
        raise UsageError(f"{folder} holds {found[1]}, which would be written over: choose another --out folder")


def _holds(folder: Path) -> tuple[str, str] | None:
    if (folder / SEARCH_FILE).is_file() or (folder / TRIALS).is_dir():
        return SEARCH, "a search for a repair"
    if (folder / REPAIR_FILE).is_file():
        method = str(read_json(folder / REPAIR_FILE).get("method"))
        return method, f"a repair by {method}"
    if (folder / ADAPT_FILE).is_file():
        return ADAPT, "a task adapter"
    if (folder / "config.json").is_file():
        return "", "a model"
    return None
