"""What the command line prints: results to stdout, progress and errors to stderr."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from uphold.core.progress import Progress, silent

PLAIN_EVERY_S = 10.0


def print_result(text: str, values: dict[str, Any], as_json: bool) -> None:
    """The result on stdout: `values` as JSON for programs, else `text`.

    A reader that went away does not change how the command ends: a gate that fails must not pass because of `| head`.
    """
    shown = json.dumps(values, indent=2, allow_nan=False) if as_json else _safe(text)
    try:
        print(shown, flush=True)
    except BrokenPipeError:
        discard_stdout()


def discard_stdout() -> None:
    """Send what is still to be printed nowhere; otherwise Python complains once more at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say(text: str) -> None:
    """A remark on stderr."""
    print(_safe(text), file=sys.stderr, flush=True)


def _safe(text: str) -> str:
    """`text` with what would drive the terminal or hide in it written out: names are other people's."""
    if all(char.isprintable() or char in "\n\t" for char in text):
        return text
    from uphold.report.text import visible

    return visible(text)


@contextmanager
def progress_to_stderr(quiet: bool = False) -> Iterator[Progress]:
    """A progress callback: bars on a terminal, a line every few seconds elsewhere, nothing when quiet."""
    if quiet:
        yield silent
    elif sys.stderr.isatty():
        with _bars() as progress:
            yield progress
    else:
        yield _PlainProgress()


class _PlainProgress:
    """Lines for logs: when something ends, and at most every `PLAIN_EVERY_S` seconds on the way."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._started: dict[str, float] = {}

    def __call__(self, what: str, done: int, total: int, note: str = "") -> None:
        now = time.monotonic()
        self._started.setdefault(what, now)
        if done < total and now - self._last < PLAIN_EVERY_S:
            return
        self._last = now
        spent = f", {now - self._started[what]:.0f} s" if done >= total else ""
        say(f"{what}: {done}/{total}{spent}{f' ({note})' if note else ''}")


@contextmanager
def _bars() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    with RichProgress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=Console(stderr=True),
    ) as bars:
        rows: dict[str, Any] = {}

        def progress(what: str, done: int, total: int, note: str = "") -> None:
            if what not in rows:
                rows[what] = bars.add_task(_safe(what), total=total, note="")
            bars.update(rows[what], completed=done, total=total, note=_safe(note))

        yield progress
