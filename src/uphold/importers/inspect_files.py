"""The files of inspect_ai: `.eval` (a zip whose members are compressed with zstd) and `.json`.

    header.json                            the whole log but its samples; missing where the evaluation was killed
    _journal/start.json                    version, evaluation and plan, written first
    samples/<id>_epoch_<n>.json            a sample
    samples/<id>_epoch_<n>/sample.json     a large sample, whose other parts lie beside it in chunks

Ids may hold any character, so that id and epoch are taken from the content, never from the name.
"""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from uphold.core.errors import CorruptError, DataError
from uphold.importers.files import Row, head, keys_of_head, parse_json, read_json_file, reading

LARGEST = 1 << 30
"""Bytes that a member may unpack to; a sample with a gigabyte of text is a damaged or a hostile file."""
_ZSTD = 93
_LOCAL_HEADER = 30
_SAMPLE = re.compile(r"samples/.+_epoch_\d+(\.json|/sample\.json)", re.DOTALL)


def is_inspect_file(path: Path) -> bool:
    """Whether a file is a log of inspect_ai."""
    if head(path, 4) == b"PK\x03\x04":
        try:
            with zipfile.ZipFile(path) as archive:
                return bool({"header.json", "_journal/start.json"} & set(archive.namelist()))
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
            return path.suffix == ".eval"
    keys = keys_of_head(path)
    return keys >= {"version", "status", "eval"} or keys >= {"eval", "eval.task", "eval.model"}


@dataclass(frozen=True)
class InspectFile:
    """One log; `header` is read at once, samples when they are asked for."""

    path: Path
    header: Row
    count: int
    """How many samples it holds."""
    samples: Callable[[], Iterator[tuple[str, Row]]]
    """Every sample with the place where it stands."""


def read_inspect(path: Path) -> InspectFile:
    """The log in a file.

    Raises:
        DataError: it cannot be read, or a member is too large.
        CorruptError: it is damaged.
    """
    if head(path, 4) == b"PK\x03\x04":
        return _read_archive(path)
    header = _mapping(read_json_file(path), str(path))
    count = len(_sample_list(header.pop("samples", None), path))

    def samples() -> Iterator[tuple[str, Row]]:  # read again, so that a folder of logs is not held in memory
        found = _sample_list(_mapping(read_json_file(path), str(path)).get("samples"), path)
        for number, sample in enumerate(found, start=1):
            where = f"{path} sample {number}"
            yield where, _mapping(sample, where)

    return InspectFile(path, header, count, samples)


def _sample_list(value: Any, path: Path) -> list[Any]:
    if not isinstance(value, list | None):
        raise CorruptError(f"{path}: samples: expected a list, found {type(value).__name__}")
    return value or []


def _read_archive(path: Path) -> InspectFile:
    archive = _Archive(path)
    names = [name for name in archive.members if _SAMPLE.fullmatch(name)]
    first = next((name for name in ("header.json", "_journal/start.json") if name in archive.members), None)
    if first is None:
        raise CorruptError(f"{path}: neither header.json nor _journal/start.json in it: no log of inspect_ai")
    header = {"status": "started", **_mapping(archive.json(first), f"{path}: {first}")}

    def samples() -> Iterator[tuple[str, Row]]:
        for name in names:
            where = f"{path}: {name}"
            sample = _mapping(archive.json(name), where)
            if name.endswith("/sample.json"):
                sample = archive.joined(sample, name.removesuffix("/sample.json"))
            yield where, sample

    return InspectFile(path, header, len(names), samples)


def _mapping(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise CorruptError(f"{where}: expected a JSON object, found {type(value).__name__}")
    return value


class _Archive:
    """Members of a zip file, unpacked one at a time and never beyond `LARGEST` bytes.

    The standard library knows zstd from Python 3.14 on; before, its `zipfile` gives the place of a member and pyarrow
    unpacks it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def members(self) -> dict[str, zipfile.ZipInfo]:
        """The directory; of members with one name the last counts, as for every reader of zip files."""
        with reading(self.path):
            try:
                with zipfile.ZipFile(self.path) as archive:
                    return {member.filename: member for member in archive.infolist()}
            except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
                raise CorruptError(
                    f"{self.path} is no complete zip file ({error}); the evaluation was killed or the copy cut short"
                ) from error

    def json(self, name: str) -> Any:
        """The JSON value in a member."""
        return parse_json(self.read(name), f"{self.path}: {name}")

    def read(self, name: str) -> bytes:
        """The bytes of a member.

        Raises:
            DataError: it is too large, encrypted, or packed in a way that is not known.
            CorruptError: it does not hold what the directory says.
        """
        member = self.members[name]
        where = f"{self.path}: {name}"
        if member.file_size > LARGEST or member.compress_size > LARGEST:
            raise DataError(f"{where} unpacks to {member.file_size:,} bytes, more than the {LARGEST:,} that are read")
        if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, _ZSTD):
            raise DataError(f"{where} is encrypted or packed by method {member.compress_type}, which cannot be read")
        with reading(self.path), self.path.open("rb") as file:
            packed = _packed(file, member)
        data = _unpacked(packed, member, where)
        if len(data) != member.file_size or zlib.crc32(data) != member.CRC:
            raise CorruptError(f"{where} is damaged (its checksum differs); copy the log again")
        return data

    def joined(self, sample: Row, folder: str) -> Row:
        """A large sample with its metadata, and with the attachments that its texts name by number."""
        if f"{folder}/metadata.json" in self.members:
            sample["metadata"] = self.json(f"{folder}/metadata.json")
        prefix = f"{folder}/attachments/"
        chunks = {
            int(name[len(prefix) : -len(".json")]): name
            for name in self.members
            if name.startswith(prefix) and name[len(prefix) :].removesuffix(".json").isdecimal()
        }
        sample["attachments"] = {
            str(start + offset): text
            for start in sorted(chunks)
            for offset, text in enumerate(self._list(chunks[start]))
        }
        return sample

    def _list(self, name: str) -> list[Any]:
        value = self.json(name)
        if not isinstance(value, list):
            raise CorruptError(f"{self.path}: {name}: expected a JSON list, found {type(value).__name__}")
        return value


def _packed(file: IO[bytes], member: zipfile.ZipInfo) -> bytes:
    file.seek(member.header_offset)
    start = file.read(_LOCAL_HEADER)
    if len(start) < _LOCAL_HEADER or not start.startswith(b"PK\x03\x04"):
        return b""
    skipped = int.from_bytes(start[26:28], "little") + int.from_bytes(start[28:30], "little")
    file.seek(skipped, io.SEEK_CUR)
    return file.read(member.compress_size)


def _unpacked(packed: bytes, member: zipfile.ZipInfo, where: str) -> bytes:
    """What `packed` unpacks to, up to one byte more than the directory promises."""
    try:
        if member.compress_type == zipfile.ZIP_STORED:
            return packed
        if member.compress_type == zipfile.ZIP_DEFLATED:
            return zlib.decompressobj(-15).decompress(packed, member.file_size + 1)
        import pyarrow as pa

        with pa.CompressedInputStream(pa.BufferReader(packed), "zstd") as stream:
            return bytes(stream.read(member.file_size + 1))
    except (zlib.error, OSError, ValueError) as error:
        raise CorruptError(f"{where} is damaged ({' '.join(str(error).split())}); copy the log again") from error
