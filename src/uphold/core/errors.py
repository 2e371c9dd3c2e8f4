"""Every exception that Uphold raises on purpose.

    UpholdError                     exit code 2
    ├── UsageError                  a name, option or combination that cannot work
    ├── DataError                   task files, records or runs that cannot be used
    │   ├── EmptyError              nothing to work on
    │   └── CorruptError            a stored file that does not hold what was written
    ├── ModelError                  a model or adapter that cannot be loaded or used
    │   └── TokenizerMismatchError  two models that do not share a token-id map
    ├── StorageError                the disk refused a write
    └── NotComparableError          exit code 4: two runs that did not answer the same questions

A message is one line: what was found, what was expected, what to type next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar


class UpholdError(Exception):
    """Base of every deliberate error; `exit_code` is what the command line returns for it."""

    exit_code: ClassVar[int] = 2


class UsageError(UpholdError):
    """A name, option or combination of options that cannot work."""


class DataError(UpholdError):
    """Task files, records or runs that cannot be used as they are."""


class EmptyError(DataError):
    """There is nothing to measure or train on."""


class CorruptError(DataError):
    """A stored file does not hold what was written to it."""


class ModelError(UpholdError):
    """A model or adapter that cannot be loaded or used."""


class TokenizerMismatchError(ModelError):
    """Two models whose token-id maps differ where the method needs them equal."""


class StorageError(UpholdError):
    """The disk refused a write."""


class NotComparableError(UpholdError):
    """Two runs that did not answer the same questions, or are one and the same run."""

    exit_code: ClassVar[int] = 4


_NAMES = 20
"""Known names that a message lists."""


def unknown_name(kind: str, name: str, known: Iterable[str], hint: str = "") -> UsageError:
    """A `UsageError` that names the nearest known spelling of `name`."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    more = f" and {len(names) - _NAMES:,} more" if len(names) > _NAMES else ""
    suggestion = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(names[:_NAMES]) or 'none'}{more}."
    return UsageError(f"unknown {kind} '{name}': {suggestion}" + (f" {hint}" if hint else ""))
