"""Progress as a callback: the library reports, the command line draws."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called as `progress(what, done, total, note)`; `done == total` ends the line for `what`."""

    def __call__(self, what: str, done: int, total: int, note: str = "") -> None:
        """Report that `done` of `total` units of `what` are finished."""
        ...


def silent(what: str, done: int, total: int, note: str = "") -> None:
    """Report nothing."""
