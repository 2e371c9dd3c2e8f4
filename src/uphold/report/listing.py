"""What lies in a folder of results: comparisons, repairs and histories, as far as their small JSON files tell.

Everything read here was written by somebody: values are checked one by one, links are not followed, and a folder that
cannot be read becomes an entry that says why.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

COMPARISON, REPAIR, HISTORY, GATE = "comparison.json", "repair.json", "history.json", "gate.json"
MOST_BYTES = 64 * 2**20
"""Larger JSON files are not read for the list."""
MOST_ENTRIES = 5000
VERDICTS = ("pass", "fail", "inconclusive")
REPORTS = (
    *("report.html", "report.md", "report.json"),
    *("history.html", "history.md", "history.json"),
    *("search.html", "search.md"),
)
"""The files of a folder that may be served."""
_LAST_SECOND = 253_402_300_799.0  # of the year 9999


class UnreadableError(Exception):
    """A file is not what its name promises; the message is for the list."""


@dataclass(frozen=True)
class Entry:
    """One line of the list."""

    key: str
    """Names the folder in addresses: 16 hex digits of the hash of its path."""
    folder: str
    """Path below the served folder; `.` for that itself."""
    kind: str
    """`comparison`, `repair` or `history`."""
    written: float
    """When its JSON was last written, in seconds since 1970."""
    problem: str | None = None
    """Why it cannot be read; then what follows is empty."""
    task: str = ""
    old: str = ""
    """The old version, or the first of a history."""
    new: str = ""
    """The new version, or the last of a history."""
    instances: int | None = None
    continuous: bool = False
    scores: tuple[float, float] | None = None
    """Accuracy or mean score of `old` and of `new` (of a repair: of the repaired version)."""
    nfr: float | None = None
    nfr_after: float | None = None
    """Of a repair: the repaired version's NFR."""
    verdict: str | None = None
    """The gate's, where there is one."""
    files: tuple[str, ...] = field(default=())
    """Which reports lie in the folder."""

    @property
    def when(self) -> str:
        """The time of writing as people read it, in UTC."""
        return datetime.fromtimestamp(min(max(self.written, 0.0), _LAST_SECOND), UTC).strftime("%Y-%m-%d %H:%M")


@dataclass(frozen=True)
class Found:
    """What a look at the served folder shows."""

    entries: tuple[Entry, ...]
    """The newest `MOST_ENTRIES`, newest first."""
    total: int
    """How many there are."""
    closed: tuple[str, ...]
    """Folders that could not be looked into."""


class Listing:
    """The entries below a folder; files are read again only where they changed."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self._cache: dict[Path, tuple[Any, Any]] = {}
        self._seen: set[Path] = set()
        self._folders: dict[str, str] = {}
        self._lock = threading.Lock()

    def look(self) -> Found:
        """Look through the folder and everything below it; links are not followed, stored runs not entered."""
        found: list[Entry] = []
        closed: list[str] = []
        with self._lock:
            self._seen = set()
            for folder, below, names in os.walk(self.root, onerror=lambda error: closed.append(str(error.filename))):
                below[:] = sorted(name for name in below if not _hidden(name))
                if "run.json" in names:
                    below.clear()
                for kind, file in (("repair", REPAIR), ("comparison", COMPARISON), ("history", HISTORY)):
                    if file in names and not (kind == "comparison" and REPAIR in names):
                        found.append(self._entry(Path(folder), kind, file, names))
            self._cache = {path: known for path, known in self._cache.items() if path in self._seen}
            self._folders = {entry.key: entry.folder for entry in found}
        found.sort(key=lambda entry: (-entry.written, entry.folder, entry.kind))
        return Found(tuple(found[:MOST_ENTRIES]), len(found), tuple(closed))

    def folder(self, key: str) -> Path | None:
        """The folder that `key` names, if there is such an entry."""
        if key not in self._folders:
            self.look()
        place = self._folders.get(key)
        return None if place is None else self.root / place

    def _entry(self, folder: Path, kind: str, file: str, names: list[str]) -> Entry:
        place = folder.relative_to(self.root).as_posix()
        written = _written(folder / file)
        about: dict[str, Any]
        try:
            values = self._json(folder / file)
            if kind == "history":
                about = _history(values)
            else:
                about = _comparison(self._json(folder / COMPARISON) if kind == "repair" else values)
                if kind == "repair":
                    about |= _repair(values, about)
                about["verdict"] = self._verdict(folder, about["task"])
        except UnreadableError as error:
            about = {"problem": str(error)}
        files = tuple(name for name in REPORTS if name in names)
        return Entry(hashlib.sha256(os.fsencode(place)).hexdigest()[:16], place, kind, written, files=files, **about)

    def _verdict(self, folder: Path, task: str) -> str | None:
        """The verdict of the nearest gate on this task: in the folder, or above it where several tasks were gated."""
        for above in (folder, *folder.parents):
            if not above.is_relative_to(self.root):
                return None
            if (above / GATE).is_file():
                return _gate(self._json(above / GATE), task, whole=above == folder)
        return None

    def _json(self, path: Path) -> Any:
        """The JSON in `path`, kept for as long as the file stays as it is."""
        self._seen.add(path)
        try:
            status = os.lstat(path)
        except OSError as error:
            raise UnreadableError(f"{path.name} cannot be read: {error.strerror}") from error
        stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
        known = self._cache.get(path)
        if known is None or known[0] != stamp:
            try:
                value: Any = _small(json.loads(read_regular(path, MOST_BYTES)), path.name)
            except (UnicodeDecodeError, json.JSONDecodeError, RecursionError, ValueError):
                value = UnreadableError(f"{path.name} is not valid JSON")
            except UnreadableError as error:
                value = error
            known = self._cache[path] = (stamp, value)
        if isinstance(known[1], UnreadableError):
            raise known[1]
        return known[1]


def read_regular(path: Path, most: int) -> bytes:
    """The bytes of a regular file of at most `most` bytes; neither links nor pipes or devices are opened.

    Raises:
        UnreadableError: it is not such a file.
    """
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        if path.is_symlink():
            raise UnreadableError(f"{path.name} is a link, which is not followed")
        handle = os.open(path, flags)
    except OSError as error:
        raise UnreadableError(f"{path.name} cannot be read: {error.strerror}") from error
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise UnreadableError(f"{path.name} is no ordinary file")
        if status.st_size > most:
            raise UnreadableError(f"{path.name} is larger than {most // 2**20} MiB")
        return file.read(most + 1)


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "node_modules"


def _written(path: Path) -> float:
    try:
        return os.lstat(path).st_mtime
    except OSError:
        return 0.0


def _small(value: Any, name: str) -> Any:
    """What the list needs of a file, so that records and fingerprints are not kept in memory."""
    if not isinstance(value, Mapping):
        raise UnreadableError(f"{name} holds no JSON object")
    kept = {key: value.get(key) for key in ("count", "rates", "task", "verdict", "checks", "judged")}
    for role in ("old", "new"):
        kept[role] = _run(value.get(role))
    if name == REPAIR:
        arms = value.get("arms")
        first = arms[0] if isinstance(arms, list) and arms else None
        comparison = first.get("comparison") if isinstance(first, Mapping) else None
        kept["arm"] = comparison.get("rates") if isinstance(comparison, Mapping) else None
    if name == HISTORY:
        versions = value.get("versions")
        kept["versions"] = [
            {key: version.get(key) for key in ("label", "score", "first")} if isinstance(version, Mapping) else None
            for version in (versions if isinstance(versions, list) else [])
        ]
    return kept


def _run(value: Any) -> dict[str, str]:
    print_ = value.get("fingerprint") if isinstance(value, Mapping) else None
    task = print_.get("task") if isinstance(print_, Mapping) else None
    return {
        "name": _text(value.get("name")) if isinstance(value, Mapping) else "",
        "task": _text(task.get("name")) if isinstance(task, Mapping) else "",
    }


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _rates(value: Any, where: str) -> dict[str, float | None]:
    if not isinstance(value, list):
        raise UnreadableError(f"{where} holds no rates")
    return {_text(rate.get("name")): _number(rate.get("value")) for rate in value if isinstance(rate, Mapping)}


def _comparison(values: Mapping[str, Any]) -> dict[str, Any]:
    rates = _rates(values["rates"], COMPARISON)
    names = values["old"]["name"], values["new"]["name"]
    if not all(names):
        raise UnreadableError(f"{COMPARISON} names no old and new run")
    continuous = "accuracy_old" not in rates
    scores = [rates.get(f"{'score' if continuous else 'accuracy'}_{role}") for role in ("old", "new")]
    count = _number(values["count"])
    return {
        "task": values["old"]["task"] or "task",
        "old": names[0],
        "new": names[1],
        "instances": None if count is None else int(count),
        "continuous": continuous,
        "scores": None if scores[0] is None or scores[1] is None else (scores[0], scores[1]),
        "nfr": rates.get("nfr_score" if continuous else "nfr"),
    }


def _repair(values: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    rates = _rates(values["arm"], REPAIR)
    continuous = before["continuous"]
    score = rates.get("score_new" if continuous else "accuracy_new")
    scores = before["scores"]
    return {
        "scores": (scores[0], score) if scores and score is not None else None,
        "nfr_after": rates.get("nfr_score" if continuous else "nfr"),
    }


def _history(values: Mapping[str, Any]) -> dict[str, Any]:
    versions = values["versions"]
    if len(versions) < 2 or not all(isinstance(version, Mapping) for version in versions):
        raise UnreadableError(f"{HISTORY} holds no versions")
    first, last = versions[0], versions[-1]
    scores = _number(first["score"]), _number(last["score"])
    count = _number(values["count"])
    return {
        "task": _text(values["task"]) or "task",
        "old": _text(first["label"]),
        "new": _text(last["label"]),
        "instances": None if count is None else int(count),
        "continuous": values["judged"] is False,
        "scores": None if scores[0] is None or scores[1] is None else (scores[0], scores[1]),
        "nfr": _number(last["first"].get("nfr")) if isinstance(last["first"], Mapping) else None,
    }


def _gate(values: Mapping[str, Any], task: str, whole: bool) -> str | None:
    """The verdict on `task`: that of the whole gate where it judged one folder, else the worst of the task's checks."""
    if whole:
        return values["verdict"] if values["verdict"] in VERDICTS else None
    checks = values["checks"] if isinstance(values["checks"], list) else []
    said = [check.get("verdict") for check in checks if isinstance(check, Mapping) and check.get("task") == task]
    return next((verdict for verdict in ("fail", "inconclusive", "pass") if verdict in said), None)
