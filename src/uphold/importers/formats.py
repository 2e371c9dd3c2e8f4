"""The formats of logs that can be read. A format is a file: it registers itself, and nothing else knows of it.

    @log_format("lm-eval", detect=is_lm_eval, uses=("filter", "metric"))
    def lm_eval(path: Path, choice: Choice) -> list[LoggedTask]: ...

Formats of this package are found by importing its modules. Third parties name a module in the entry-point group
`uphold.importers`; importing it runs its decorator.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from uphold.core.errors import DataError, UsageError, unknown_name
from uphold.core.records import Record
from uphold.core.registry import import_plugins

ENTRY_POINTS = "uphold.importers"
OPTIONS = ("columns", "filter", "metric", "model")


@dataclass(frozen=True)
class Choice:
    """What a user picks of a log that holds more than one thing."""

    columns: Mapping[str, str] = field(default_factory=dict)
    """Which column of a table, or field of an instance, is what; a name that is no part of a record is a tag."""
    filter: str | None = None
    """Which of lm-eval's filters."""
    metric: str | None = None
    """Which metric or scorer decides what is right."""
    model: str | None = None
    """Which of several models: what stands behind `#` in the path."""


@dataclass
class Reading:
    """What a reader finds out while it goes through a log."""

    facts: dict[str, Any] = field(default_factory=dict)
    """Settings of the task that are known only when the log was read."""
    counts: dict[str, int] = field(default_factory=dict)
    """How often something happened that is told in a note."""
    done: int = 0
    """How much of the log was read, in bytes, samples or rows."""
    total: int = 0

    def count(self, what: str) -> None:
        """Count one more of `what`."""
        self.counts[what] = self.counts.get(what, 0) + 1

    def notes(self) -> list[str]:
        """What was counted, in words."""
        return [f"{what}: {count}" for what, count in self.counts.items()]


@dataclass(frozen=True)
class LoggedTask:
    """One model's answers to one task as a log holds them; nothing but its head was read so far."""

    task: str
    model: str
    content: str
    """Hash of all that decides the records and the facts: equal contents are one and the same run."""
    records: Callable[[Reading], Iterator[Record]]
    """Reads the log, and fills in what it finds on the way."""
    task_facts: Mapping[str, Any] = field(default_factory=dict)
    """Settings that must agree between two comparable logs, as plain JSON."""
    model_facts: Mapping[str, Any] = field(default_factory=dict)
    batching: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """Remarks on which part of the log this is."""


Detector = Callable[[Path], bool]
Reader = Callable[[Path, Choice], list[LoggedTask]]


@dataclass(frozen=True)
class LogFormat:
    """A registered format."""

    name: str
    """What a user types, in kebab case."""
    detect: Detector
    """Whether an existing file or folder is in this format; cheap, and decided by content."""
    read: Reader
    """The tasks of a log. It reads heads only; records are read when they are asked for."""
    uses: tuple[str, ...]
    """The fields of `Choice` that mean something here."""
    fallback: bool
    """Whether it is tried only where no other format fits."""

    @property
    def summary(self) -> str:
        """The first line of the reader's docstring."""
        return (inspect.getdoc(self.read) or "").partition("\n")[0]


_formats: dict[str, LogFormat] = {}


def log_format(
    name: str, *, detect: Detector, uses: Sequence[str] = (), fallback: bool = False
) -> Callable[[Reader], Reader]:
    """Register the decorated reader as the format `name`; see `LogFormat` for the arguments.

    Raises:
        UsageError: another module registered the name, or `uses` names no field of `Choice`.
    """
    for option in uses:
        if option not in OPTIONS:
            raise unknown_name("choice", option, OPTIONS)

    def decorate(read: Reader) -> Reader:
        known = _formats.get(name)
        if known is not None and known.read.__module__ != read.__module__:
            raise UsageError(
                f"log format '{name}' of {read.__module__} is already registered by {known.read.__module__}: "
                "give one of them another name"
            )
        _formats[name] = LogFormat(name, detect, read, tuple(uses), fallback)
        return read

    return decorate


def log_formats() -> list[LogFormat]:
    """All registered formats by name, those that are tried last behind the others."""
    _discover()
    return sorted(_formats.values(), key=lambda known: (known.fallback, known.name))


def format_called(name: str) -> LogFormat:
    """The format called `name`.

    Raises:
        UsageError: there is none; the message suggests the nearest name.
    """
    found = {known.name: known for known in log_formats()}
    if name not in found:
        raise unknown_name("log format", name, found)
    return found[name]


def model_called(name: str, models: Iterable[str]) -> str | None:
    """The model that a user means by `name`: its name in the log, or the last part of it; None where that is none."""
    known = sorted(set(models))
    short = [model for model in known if model.rstrip("/").rpartition("/")[2] == name]
    return name if name in known else short[0] if len(short) == 1 else None


def detected(path: Path) -> list[LogFormat]:
    """The formats that `path` may be in; those that are tried last only where no other fits.

    Raises:
        DataError: the file or folder cannot be read.
    """
    known = log_formats()
    try:
        found = [one for one in known if not one.fallback and one.detect(path)]
        return found or [one for one in known if one.fallback and one.detect(path)]
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def _discover() -> None:
    """Import every module of this package, then every entry point; repeated calls cost a dictionary look-up each."""
    package = importlib.import_module(__package__)
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    import_plugins(ENTRY_POINTS)
