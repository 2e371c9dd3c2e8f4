"""Writing files so that a reader sees the old content or the new, never half of it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from uphold.core.errors import CorruptError, DataError, StorageError

_YOUNG = 2.0
"""Seconds."""


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusal to write at `path` into a `StorageError`.

    Libraries that write for us (safetensors, pyarrow) wrap the system's words in their own
    exception types, so a full disk is also recognised by its message.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(_disk_message(path, error)) from error
    except Exception as error:
        if os.strerror(errno.ENOSPC) in str(error):
            raise StorageError(_disk_message(path, OSError(errno.ENOSPC, ""))) from error
        raise


def _disk_message(path: Path, error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return (
            f"no space left on the disk while writing {path}; what was finished before is kept: "
            "free some room and type the same command again to go on"
        )
    return f"cannot write {path}: {error.strerror or error}; choose another place"


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary file path beside `path`; it replaces `path` when the block succeeds.

    Raises:
        StorageError: the disk refused the write; `path` is as it was.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            # Some libraries replace the file by one of their own that only its owner may read.
            temporary.chmod(0o644)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; it takes the place of `path` when the block succeeds.

    What a killed process left of an earlier try is removed first.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear_abandoned(path)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=_prefix(path)))
        os.chmod(temporary, 0o755)
        try:
            with contextlib.ExitStack() as lock:
                # Where a file system has no locks, what a killed process leaves is left.
                with contextlib.suppress(OSError):
                    lock.enter_context(_locked(temporary))
                yield temporary
                if path.exists():
                    previous = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old."))
                    os.replace(path, previous / path.name)
                    os.replace(temporary, path)
                    shutil.rmtree(previous, ignore_errors=True)
                else:
                    os.replace(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _prefix(path: Path) -> str:
    return f".{path.name}.unfinished."


def _clear_abandoned(path: Path) -> None:
    for left in path.parent.glob(f"{glob.escape(_prefix(path))}*"):
        # A folder that was made a moment ago may not be locked yet.
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _YOUNG:
                with _locked(left):
                    shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """A lock that ends with the process. Raises `OSError` where another process has it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def unreadable(error: OSError) -> None:
    """For `os.walk(..., onerror=unreadable)`: a folder that is silently passed over could hold what matters.

    Raises:
        DataError: a folder is there and may not be read.
    """
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise DataError(f"cannot read {error.filename}: {error.strerror}") from error


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` as indented JSON, atomically. NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The JSON value in `path`.

    Raises:
        DataError: the file is not there or may not be read.
        CorruptError: it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise CorruptError(f"{path} is not valid JSON ({error}); remove it and make it again") from error


def writable_folder(path: Path) -> Path:
    """`path` as an existing folder that can be written to.

    Raises:
        StorageError: it is a file, or may not be written.
    """
    if path.exists() and not path.is_dir():
        raise StorageError(f"{path} is a file, but a folder is needed; choose another place")
    with disk_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    return path
