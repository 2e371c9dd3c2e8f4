"""Changing several files of a model folder so that a reader finds the old ones or the new ones, never some of each.

All new files are first written beside the old ones and brought to the disk. A journal, written in one rename, is the
point of no return: without it the next call throws the new files away, with it the next call finishes the change.
Where several weight files change, the index that loaders look for is put aside first and the old files next, so that
there is no moment at which old and new weights lie together.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from uphold.core.errors import CorruptError, StorageError, UsageError
from uphold.core.storage import disk_errors, read_json, write_json
from uphold.models.checkpoint import INDEX, JOURNAL, STAGING

_NEW, _STATE, _HELD = "new", "state", "held"


@dataclass(frozen=True)
class Place:
    """A model folder, adapter folder or weights file that is patched where it lies."""

    path: Path
    """The folder or the file."""

    @property
    def folder(self) -> Path:
        """What the files lie in."""
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def state(self) -> Path:
        """What is needed to take patches off again. No file in it is one that loaders of weights find."""
        return self.folder / f"{self._prefix}uphold-patches"

    @property
    def staging(self) -> Path:
        """New files until they take their places."""
        return self.folder / f".{self._prefix}{STAGING}"

    @property
    def _prefix(self) -> str:
        return "" if self.path.is_dir() else f"{self.path.name}."


@dataclass(frozen=True)
class Staging:
    """A change that is being prepared."""

    place: Place

    @property
    def state(self) -> Path:
        """The folder that is to become `Place.state`; whoever wants one makes it."""
        return self.place.staging / _STATE

    def file(self, name: str) -> Path:
        """Where the new version of the file `name` is to be written."""
        return self.place.staging / _NEW / name

    def commit(self, names: Sequence[str]) -> None:
        """Put the new files and the new state in their places; where no state was made, the old one goes.

        Args:
            names: the files that change.
        """
        for folder, _, files in os.walk(self.place.staging):
            for name in files:
                sync(Path(folder) / name)
            sync(Path(folder))
        journal = {"files": sorted(names), "state": self.state.is_dir()}
        write_json(self.place.staging / JOURNAL, journal)
        sync(self.place.staging)
        sync(self.place.folder)
        recover(self.place)


@contextmanager
def changing(place: Place) -> Iterator[Staging]:
    """Prepare a change of `place`, alone; what was left by a killed call is finished or cleared away first.

    Raises:
        StorageError: another process is at it, or the disk refuses.
        CorruptError: a journal is there that cannot be one of ours.
    """
    with _alone(place.folder):
        recover(place)
        with disk_errors(place.folder):
            place.staging.mkdir()
            (place.staging / _NEW).mkdir()
            try:
                yield Staging(place)
            finally:
                # A journal is left for the next call, which then finishes what this one could not.
                if not (place.staging / JOURNAL).exists():
                    shutil.rmtree(place.staging, ignore_errors=True)


def settle(place: Place) -> None:
    """Finish or clear away what a killed call left; nothing where there is nothing.

    Raises:
        StorageError: another process is at it, or the disk refuses.
        CorruptError: a journal is there that cannot be one of ours.
    """
    if place.staging.exists():
        with _alone(place.folder), disk_errors(place.folder):
            recover(place)


def recover(place: Place) -> None:
    """What `settle` does, for who is alone already. Every step may be done again after a kill."""
    journal = place.staging / JOURNAL
    if journal.is_file():
        names, state = _read(journal)
        _switch_files(place, names)
        _switch_state(place, state)
        held = place.staging / _HELD / INDEX
        if held.is_file():
            os.replace(held, place.folder / INDEX)
        sync(place.folder)
        journal.unlink()
        sync(place.staging)
    if place.staging.exists():
        shutil.rmtree(place.staging)


def sync(path: Path) -> None:
    """Bring a file, or a folder's list of files, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _switch_files(place: Place, names: Sequence[str]) -> None:
    new, held = place.staging / _NEW, place.staging / _HELD
    waiting = [name for name in names if (new / name).is_file()]
    if len(names) > 1 and waiting:
        held.mkdir(exist_ok=True)
        for name in (INDEX, *waiting):
            if (place.folder / name).is_file() and not (held / name).exists():
                os.replace(place.folder / name, held / name)
        sync(place.folder)
    for name in waiting:
        os.replace(new / name, place.folder / name)
    sync(place.folder)


def _switch_state(place: Place, wanted: bool) -> None:
    staged = place.staging / _STATE
    if staged.is_dir() or not wanted:
        if place.state.is_dir():
            shutil.rmtree(place.state)
        if staged.is_dir():
            os.replace(staged, place.state)
    sync(place.folder)


def _read(journal: Path) -> tuple[list[str], bool]:
    content = read_json(journal)
    names = content.get("files") if isinstance(content, dict) else None
    state = content.get("state") if isinstance(content, dict) else None
    if not isinstance(names, list) or not all(map(is_plain, names)) or not isinstance(state, bool):
        raise CorruptError(f"{journal} is not a journal of Uphold's: look into that folder before you remove it")
    return names, state


def is_plain(name: object) -> bool:
    """Whether `name` names a file in the folder itself, and no other place."""
    return (
        isinstance(name, str)
        and bool(name)
        and Path(name).name == name
        and name not in (".", "..")
        and "\0" not in name
    )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Only one process at a time changes what is in `folder`."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise UsageError(f"cannot patch in {folder}: {error.strerror}; name a folder that is there") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise StorageError(f"another process is patching in {folder}: wait until it has ended") from error
    else:
        yield
    finally:
        os.close(handle)
