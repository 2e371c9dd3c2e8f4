"""Writing weights tensor by tensor: the files have their final size first, every tensor is put in its place.

    with CheckpointWriter(folder, {"a.weight": (torch.float32, (2, 3))}) as writer:
        writer.write("a.weight", values)
        (writer.folder / "config.json").write_text(...)

Memory does not grow with the checkpoint, tensors may come in any order, in parts and from several threads. The folder
takes its place when the block ends; a reader sees the old folder or the new one, never half of one.
"""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import torch

from uphold.core.errors import UsageError
from uphold.core.storage import atomic_folder, write_json
from uphold.models.checkpoint import DTYPE_NAMES, INDEX
from uphold.models.fingerprint import bytes_of

SHARD_SIZE = 5_000_000_000
"""Bytes in one file, as the hub has them."""
METADATA = "__metadata__"
_ALIGN = 8


class _Place(NamedTuple):
    file: str
    start: int
    dtype: torch.dtype
    elements: int


class CheckpointWriter:
    """Writes safetensors shards named as transformers names them; to be used in a `with` block."""

    folder: Path
    """Where files go while the block runs; other files of the model may be written here too."""

    def __init__(
        self,
        out: Path,
        tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
        *,
        shard_size: int = SHARD_SIZE,
        metadata: Mapping[str, str] | None = None,
        stem: str = "model",
    ) -> None:
        """Plan the files; nothing is written yet.

        Args:
            out: the folder to make; replaced as a whole.
            tensors: element type and shape by name, in the order in which they are stored. A tied tensor is named once.
            shard_size: bytes of tensors in one file, > 0; a larger tensor gets a file of its own.
            metadata: free text for the headers.
            stem: start of the file names; `adapter_model` for an adapter.

        Raises:
            UsageError: there are no tensors, or an element type that safetensors does not have.
        """
        if not tensors:
            raise UsageError("there are no tensors to write")
        if shard_size <= 0:
            raise UsageError(f"a shard size of {shard_size} bytes: expected a positive number")
        for name, (dtype, _) in tensors.items():
            if dtype not in DTYPE_NAMES:
                raise UsageError(f"tensor {name!r} is of type {dtype}, which safetensors does not have")
            if name == METADATA:
                raise UsageError(f"a tensor may not be called {METADATA}, which safetensors keeps for itself")
        self._out, self._tensors = out, dict(tensors)
        self._metadata = {"format": "pt", **(metadata or {})}
        self._shards = _shards(self._tensors, shard_size, stem)
        self._stem = stem
        self._places: dict[str, _Place] = {}
        self._files: dict[str, int] = {}
        self._written = dict.fromkeys(self._tensors, 0)
        self._lock = threading.Lock()
        self._rename: AbstractContextManager[Path] | None = None

    @property
    def shards(self) -> int:
        """Number of files with weights."""
        return len(self._shards)

    def __enter__(self) -> CheckpointWriter:
        """Reserve the files on the disk.

        Raises:
            StorageError: there is no room for them.
        """
        self._rename = atomic_folder(self._out)
        self.folder = self._rename.__enter__()
        try:
            for file, names in self._shards.items():
                self._create(file, names)
        except BaseException as error:
            self._leave(error)
            raise
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Put the folder in its place, or remove it after an error."""
        if error is None:
            try:
                self._finish()
            except BaseException as failure:
                self._leave(failure)
                raise
        self._leave(error)

    def write(self, name: str, values: torch.Tensor, start: int = 0) -> None:
        """Write a tensor or a part of it. May be called from several threads; no element is to be written twice.

        Args:
            name: one of those that were announced.
            values: of the announced element type; any shape, stored in row-major order.
            start: the element with which `values` begin.

        Raises:
            ValueError: it has another element type, or ends behind the tensor's end.
        """
        place = self._places[name]
        if values.dtype != place.dtype or start < 0 or start + values.numel() > place.elements:
            given = f"{values.numel()} values of {values.dtype} at {start}"
            raise ValueError(f"{name}: {given} do not fit {place.elements} of {place.dtype}")
        _write_at(self._files[place.file], bytes_of(values), place.start + start * place.dtype.itemsize)
        with self._lock:
            self._written[name] += values.numel()

    def _create(self, file: str, names: list[str]) -> None:
        header, starts, size = _header({name: self._tensors[name] for name in names}, self._metadata)
        for name, start in starts.items():
            dtype, shape = self._tensors[name]
            self._places[name] = _Place(file, start, dtype, math.prod(shape))
        handle = os.open(self.folder / file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        self._files[file] = handle
        # A disk that is too small says so now, and not after an hour.
        reserve = getattr(os, "posix_fallocate", None)
        if reserve is not None:
            reserve(handle, 0, size)
        os.truncate(handle, size)
        _write_at(handle, memoryview(header), 0)

    def _finish(self) -> None:
        short = [name for name, place in self._places.items() if self._written[name] != place.elements]
        if short:
            raise ValueError(f"{len(short)} tensors were not written completely, the first is {short[0]}")
        for handle in self._files.values():
            os.fsync(handle)
        if len(self._shards) > 1:
            places = {name: file for file, names in self._shards.items() for name in names}
            total = sum(place.elements * place.dtype.itemsize for place in self._places.values())
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
            write_json(self.folder / INDEX.replace("model", self._stem, 1), index)

    def _leave(self, error: BaseException | None) -> None:
        while self._files:
            os.close(self._files.popitem()[1])
        rename, self._rename = self._rename, None
        if rename is not None:
            rename.__exit__(type(error) if error else None, error, error.__traceback__ if error else None)


def _shards(tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], limit: int, stem: str) -> dict[str, list[str]]:
    """Names of tensors by file, in order."""
    groups: list[list[str]] = []
    used = 0
    for name, (dtype, shape) in tensors.items():
        size = math.prod(shape) * dtype.itemsize
        if not groups or used + size > limit:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used += size
    if len(groups) == 1:
        return {f"{stem}.safetensors": groups[0]}
    return {
        f"{stem}-{number:05d}-of-{len(groups):05d}.safetensors": names for number, names in enumerate(groups, start=1)
    }


def _header(
    tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, int], int]:
    """The header's bytes, where every tensor starts in the file, and the file's size."""
    entries: dict[str, object] = {METADATA: dict(metadata)}
    offsets: dict[str, int] = {}
    end = 0
    # The widest elements first: every tensor is then aligned, as readers expect it.
    for name in sorted(tensors, key=lambda one: -tensors[one][0].itemsize):
        dtype, shape = tensors[name]
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        offsets[name] = begin
        entries[name] = {"dtype": DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGN)
    start = 8 + len(text)
    return len(text).to_bytes(8, "little") + text, {name: start + begin for name, begin in offsets.items()}, start + end


def _write_at(handle: int, data: memoryview, start: int) -> None:
    while data:
        done = os.pwrite(handle, data, start)
        data, start = data[done:], start + done
