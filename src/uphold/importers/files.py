"""Reading what others wrote: lines, JSON and hashes, with errors that name the place."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from uphold.core.errors import CorruptError, DataError, EmptyError
from uphold.core.hashing import sha256_of_file
from uphold.core.storage import unreadable
from uphold.importers.formats import Reading

M = TypeVar("M", bound=BaseModel)
Row = dict[str, Any]
HEAD = 1 << 16
_DEPTH = 3
_SIGN = re.compile(r'["{}\[\]]')
_OWN_FILES = ("adapter_config.json", "run.json", "comparison.json", "uphold.json")


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn the operating system's refusal to read `path`, and text that is not UTF-8, into errors of ours."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise CorruptError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); convert it") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def sha256_of_log(path: Path) -> str:
    """SHA-256 of a file's bytes.

    Raises:
        DataError: it cannot be read.
    """
    with reading(path):
        return sha256_of_file(path)


def parse_json(text: str | bytes, where: str) -> Any:
    """The JSON value in `text`; `NaN` and `Infinity` are read, and lone surrogates become U+FFFD.

    Raises:
        CorruptError: it is not JSON, or nested too deeply to be read.
    """
    try:
        return from_json(text, cache_strings="keys")
    except ValueError:  # not JSON, or JSON that only the standard library reads, e.g. lone surrogates
        pass
    try:
        return _repaired(json.loads(text))
    except json.JSONDecodeError as error:
        raise CorruptError(
            f"{where}: not valid JSON ({error.msg} at character {error.pos + 1}); the file is cut short or damaged: "
            "write or copy it again"
        ) from error
    except UnicodeDecodeError as error:
        raise CorruptError(f"{where}: not UTF-8 text ({error.reason} at byte {error.start}); convert it") from error
    except (RecursionError, ValueError) as error:
        raise CorruptError(f"{where}: JSON that cannot be read ({' '.join(str(error).split())})") from error


def _repaired(value: Any) -> Any:
    """`value` without half surrogate pairs, which tools write where they cut a text and no UTF-8 can hold."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_repaired(entry) for entry in value]
    if isinstance(value, dict):
        return {_repaired(key): _repaired(entry) for key, entry in value.items()}
    return value


def parse(model: type[M], value: Any, where: str) -> M:
    """`value` as a `model`.

    Raises:
        DataError: it does not have that shape; the message names the first field that is wrong.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(step) for step in first["loc"]) or "the value"
        raise DataError(f"{where}: {field}: {first['msg'][0].lower()}{first['msg'][1:]}") from error


def read_json_file(path: Path) -> Any:
    """The JSON value in a file, which is read whole.

    Raises:
        DataError: it cannot be read.
        CorruptError: it is not JSON.
    """
    with reading(path):
        data = path.read_bytes()
    if not data.strip():
        raise EmptyError(f"{path} is empty: there is no log in it")
    return parse_json(data.removeprefix(b"\xef\xbb\xbf"), str(path))


def rows(path: Path, progress: Reading | None = None) -> Iterator[tuple[str, Row]]:
    """The JSON objects of a JSONL file, or of a file that holds one JSON array, each with the place where it stands.

    Raises:
        DataError: the file cannot be read.
        CorruptError: a line is not a JSON object; the message names it.
    """
    progress = progress or Reading()
    if _starts_with(path, b"["):
        values = read_json_file(path)
        progress.total = len(values)
        for progress.done, value in enumerate(values, start=1):
            yield _object(value, f"{path} entry {progress.done}")
        return
    with reading(path):
        progress.total, name = path.stat().st_size, str(path)
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                progress.done += len(line)
                line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if line and not line.isspace():
                    where = f"{name} line {number}"
                    yield _object(parse_json(line, where), where)


def _object(value: Any, where: str) -> tuple[str, Row]:
    if not isinstance(value, dict):
        raise CorruptError(f"{where}: expected a JSON object, found {type(value).__name__}")
    return where, value


def head(path: Path, size: int = HEAD) -> bytes:
    """The first `size` bytes of a file without a byte-order mark; none where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(size).removeprefix(b"\xef\xbb\xbf")
    except OSError:
        return b""


def _starts_with(path: Path, sign: bytes) -> bool:
    return head(path, 256).lstrip().startswith(sign)


def first_row(path: Path) -> Row:
    """The first JSON object of a JSONL file or JSON array, to tell its format by; empty where there is none.

    It is never an error here: a file that cannot be understood is in no format.
    """
    for size in (HEAD, HEAD * 64):
        text = head(path, size).decode("utf-8", "replace").lstrip()
        text = text[1:].lstrip() if text.startswith("[") else text
        if not text.startswith("{"):
            break
        with contextlib.suppress(RecursionError, ValueError):
            value, _ = json.JSONDecoder().raw_decode(text)
            return value if isinstance(value, dict) else {}
    return {}


def keys_of_head(path: Path) -> set[str]:
    """The keys of the JSON object that a file begins with, as far as its first bytes show, nested ones as `a.b`.

    Only two levels are told; a file that begins with anything else has none.
    """
    text = head(path).decode("utf-8", "replace").lstrip()
    if not text.startswith("{"):
        return set()
    word, found, stack, position = json.JSONDecoder().raw_decode, set[str](), list[str | None](), 0
    while (sign := _SIGN.search(text, position)) is not None:
        position = sign.end()
        if sign[0] == '"':
            try:
                name, position = word(text, sign.start())
            except ValueError:
                break
            if stack and stack[-1] is not None and text[position : position + 20].lstrip().startswith(":"):
                stack[-1] = name
                if len(stack) <= 2 and None not in stack:
                    found.add(".".join(str(name) for name in stack))
        elif sign[0] in "{[":
            stack.append("" if sign[0] == "{" else None)
        elif stack:
            stack.pop()
    return found


def is_model_or_run(path: Path) -> bool:
    """Whether a folder is a model's, an adapter's or one of our own, whatever lies deeper in it."""
    if any((path / name).is_file() for name in _OWN_FILES):
        return True
    return bool(keys_of_head(path / "config.json") & {"model_type", "architectures"})


def files_below(path: Path, endings: Iterable[str]) -> list[Path]:
    """The files at most three folders below `path` whose names have one of the endings, sorted by path.

    Raises:
        DataError: a folder may not be read.
    """
    ends = tuple(endings)
    found = []
    for folder, inner, names in os.walk(path, onerror=unreadable):
        depth = len(Path(folder).relative_to(path).parts)
        inner[:] = [] if depth >= _DEPTH else sorted(name for name in inner if not name.startswith("."))
        found += [Path(folder) / name for name in names if name.endswith(ends) and not name.startswith(".")]
    return sorted(found)


def value_at(row: Mapping[str, Any], path: str) -> Any:
    """The value called `path` in `row`: a key, or keys and list positions joined by dots; None where there is none."""
    if path in row:
        return row[path]
    value: Any = row
    for step in path.split("."):
        if isinstance(value, Mapping) and step in value:
            value = value[step]
        elif isinstance(value, list) and step.isdigit() and int(step) < len(value):
            value = value[int(step)]
        else:
            return None
    return value


def as_text(value: Any) -> str:
    """`value` as text: a string as it is, nothing as "", anything else as compact JSON."""
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, ensure_ascii=False, sort_keys=True)


def tags_of(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, str]:
    """The tags that `columns` (name of the tag to path in `row`) names, without those that have no value here."""
    found = ((name, as_text(value_at(row, path))) for name, path in columns.items())
    return {name: value for name, value in found if value}
