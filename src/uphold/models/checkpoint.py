"""Weights on disk, tensor by tensor, without making a model of them.

    with open_checkpoint("my-model") as checkpoint:
        for name, info in checkpoint.infos.items():
            values = checkpoint.tensor(name)

Only headers are read at first; a tensor's values come from the memory-mapped file when they are looked at. Nothing is
ever unpickled beyond plain tensors.
"""

from __future__ import annotations

import json
import math
import mmap
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from uphold.core.errors import CorruptError, ModelError
from uphold.core.hashing import sha256_of, sha256_of_file, sha256_of_parts
from uphold.core.storage import read_json
from uphold.models.fingerprint import bytes_of, weights_hash

STAGING, JOURNAL = "uphold-patches.new", "journal.json"
"""Where patching prepares a change of a folder, and the file that is there while it takes place."""
INDEX = "model.safetensors.index.json"
DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}
"""What safetensors calls the element types."""
DTYPE_NAMES: Mapping[torch.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}
_HEADER_LIMIT = 100_000_000
_TORCH_SUFFIXES = (".pt", ".pth", ".bin")
_FOLDER_FILES = ("model.safetensors", "adapter_model.safetensors", "pytorch_model.bin", "adapter_model.bin")
_NO_RESERVE = 0x4000 if sys.platform == "linux" else 0
"""MAP_NORESERVE, which `mmap` has from Python 3.13 on."""


class TensorInfo(NamedTuple):
    """Where a tensor lies, and what it is."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    file: Path
    start: int
    """Byte offset of its first element in `file`; -1 in files that torch wrote."""

    @property
    def elements(self) -> int:
        """How many it has."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size of its values in bytes."""
        return self.elements * self.dtype.itemsize


class Checkpoint:
    """The tensors of one checkpoint; open one with `open_checkpoint`."""

    path: Path
    """The folder or file that was opened."""
    infos: Mapping[str, TensorInfo]
    """Every tensor once, in the order in which they are stored."""
    tied: Mapping[str, str]
    """Further names of tensors in `infos`, as files of torch may have them."""
    metadata: Mapping[str, str]
    """The free text of a safetensors header (the first shard's)."""

    def __init__(
        self,
        path: Path,
        infos: Mapping[str, TensorInfo],
        metadata: Mapping[str, str],
        loaded: Mapping[str, torch.Tensor] | None = None,
        tied: Mapping[str, str] | None = None,
    ) -> None:
        """Use `open_checkpoint`."""
        self.path, self.infos, self.metadata, self.tied = path, infos, metadata, tied or {}
        self._loaded = dict(loaded or {})
        self._maps: dict[Path, mmap.mmap] = {}

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor called `name`, on the memory-mapped file: no values are copied.

        It is not to be written to; who does changes a private copy, never the file.

        Raises:
            KeyError: there is none of that name.
            ModelError: the file is gone.
        """
        name = self.tied.get(name, name)
        if name in self._loaded:
            return self._loaded[name]
        info = self.infos[name]
        if not info.elements:
            return torch.empty(info.shape, dtype=info.dtype)
        mapped = self._map(info.file)
        if info.start % info.dtype.itemsize:
            values = bytearray(mapped[info.start : info.start + info.nbytes])
            return torch.frombuffer(values, dtype=info.dtype).reshape(info.shape)
        flat = torch.frombuffer(mapped, dtype=info.dtype, count=info.elements, offset=info.start)
        return flat.reshape(info.shape)

    def tensor_hash(self, name: str) -> str:
        """SHA-256 (64 hex digits) of a tensor's bytes, as `models.fingerprint` computes it."""
        return sha256_of_parts([bytes_of(self.tensor(name))])

    def content_hash(self) -> str:
        """Hash of all tensors under their names; for a model folder what `models.fingerprint.weights_hash` says.

        Neither sharding nor file names count, but for files that torch wrote: those are hashed as they are.
        """
        if self.path.is_dir():
            return weights_hash(self.path)
        if self._loaded:
            return sha256_of_file(self.path)
        return sha256_of(sorted([name, *kind_of(info), self.tensor_hash(name)] for name, info in self.infos.items()))

    def nbytes(self) -> int:
        """Size of all tensors in bytes."""
        return sum(info.nbytes for info in self.infos.values())

    def close(self) -> None:
        """Let go of the files. Tensors that are still in use stay valid."""
        self._maps.clear()
        self._loaded.clear()

    def __enter__(self) -> Checkpoint:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def _map(self, file: Path) -> mmap.mmap:
        found = self._maps.get(file)
        if found is None:
            try:
                with file.open("rb") as opened:
                    # Private and unreserved: a writer changes its own copy, and a file larger than the memory maps.
                    found = mmap.mmap(
                        opened.fileno(),
                        0,
                        flags=mmap.MAP_PRIVATE | _NO_RESERVE,
                        prot=mmap.PROT_READ | mmap.PROT_WRITE,
                    )
            except OSError as error:
                raise ModelError(f"cannot read {file}: {error.strerror or error}") from error
            found = self._maps.setdefault(file, found)
        return found


def kind_of(info: TensorInfo) -> tuple[str, list[int]]:
    """Element type (as safetensors calls it) and shape of a tensor, as hashes contain them."""
    return DTYPE_NAMES[info.dtype], list(info.shape)


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open the weights at `path`; only headers are read.

    Args:
        path: a model folder (safetensors, in one file or in shards with an index, or `pytorch_model*.bin`), an adapter
            folder, or one file: `.safetensors`, or a state dict of plain tensors in `.pt`, `.pth` or `.bin`.

    Raises:
        ModelError: there are no weights, or they are of a kind that is not read.
        CorruptError: a file is cut off, or does not hold what its header says.
    """
    path = Path(path)
    if path.is_file():
        return _open_files(path, [path])
    if not path.is_dir():
        raise ModelError(f"no weights at '{path}': expected a model folder or a .safetensors file")
    if (path / f".{STAGING}" / JOURNAL).is_file():
        raise ModelError(f"a change of {path} by patches was interrupted; run 'uphold patch show {path}' to finish it")
    for index in (path / INDEX, path / "pytorch_model.bin.index.json"):
        if index.is_file():
            return _open_index(path, index)
    for name in _FOLDER_FILES:
        if (path / name).is_file():
            return _open_files(path, [path / name])
    shards = sorted(path.glob("*.safetensors"))
    if not shards:
        raise ModelError(f"{path} has no weights: expected model.safetensors, or shards with {INDEX}")
    return _open_files(path, shards)


def _open_index(path: Path, index: Path) -> Checkpoint:
    content = read_json(index)
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not places:
        raise CorruptError(f"{index} has no weight_map; copy or download it again")
    names = sorted(set(map(str, places.values())))
    for name in names:
        if Path(name).name != name or name in (".", ".."):
            raise CorruptError(f"{index} names a shard outside its folder: {name!r}; expected plain file names")
        if not (path / name).is_file():
            raise CorruptError(f"{path} lacks the shard {name} that its index names; copy or download it again")
    checkpoint = _open_files(path, [path / name for name in names])
    for name, place in places.items():
        found = checkpoint.infos.get(checkpoint.tied.get(name, name))
        if found is None or (found.file.name != place and name not in checkpoint.tied):
            raise CorruptError(f"{path / str(place)} lacks {name!r}, which the index puts there; copy it again")
    return checkpoint


def _open_files(path: Path, files: list[Path]) -> Checkpoint:
    if files[0].suffix in _TORCH_SUFFIXES:
        return _open_torch(path, files)
    infos: dict[str, TensorInfo] = {}
    metadata: dict[str, str] = {}
    for file in files:
        if file.suffix != ".safetensors":
            raise ModelError(f"{file} is not read: expected .safetensors, .pt, .pth or .bin")
        found, text = read_header(file)
        metadata = metadata or text
        for name, info in found.items():
            if name in infos:
                raise CorruptError(f"{path}: the tensor {name!r} is in {infos[name].file.name} and in {file.name}")
            infos[name] = info
    if not infos:
        raise ModelError(f"{path} holds no tensors")
    return Checkpoint(path, infos, metadata)


def read_header(file: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """The tensors of a safetensors file in storage order, and its metadata.

    Raises:
        ModelError: it cannot be read, or has an element type that is not supported.
        CorruptError: it is cut off or no safetensors file.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if size < 8 or length > min(size - 8, _HEADER_LIMIT):
                raise ValueError(f"its header would be {length:,} bytes long")
            header = json.loads(opened.read(length), object_pairs_hook=_unique)
        metadata = header.pop("__metadata__", None) or {}
        if not isinstance(metadata, dict):
            raise ValueError("its metadata is no mapping")
        found = [(name, _info(file, name, entry, 8 + length, size)) for name, entry in header.items()]
    except OSError as error:
        raise ModelError(f"cannot read {file}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise CorruptError(f"{file} is not a whole safetensors file ({reason}); copy or download it again") from error
    found.sort(key=lambda entry: (entry[1].start, entry[0]))
    end, before = 0, ""
    for name, info in found:
        if info.elements and info.start < end:
            raise CorruptError(f"{file}: the tensors {before!r} and {name!r} overlap; copy or download it again")
        end, before = max(end, info.start + info.nbytes), name
    return dict(found), {str(key): str(value) for key, value in metadata.items()}


def _info(file: Path, name: str, entry: Any, data: int, size: int) -> TensorInfo:
    name.encode()  # half a surrogate could not be written back
    shape, (begin, end) = entry["shape"], entry["data_offsets"]
    if any(type(number) is not int or number < 0 for number in (*shape, begin, end)):
        raise ValueError(f"tensor {name!r} has an impossible shape or place")
    dtype = DTYPES.get(entry["dtype"])
    if dtype is None:
        raise ModelError(f"{file}: tensor {name!r} is of type {entry['dtype']!r}; supported: {', '.join(DTYPES)}")
    info = TensorInfo(dtype, tuple(shape), file, data + begin)
    if end - begin != info.nbytes:
        raise ValueError(f"tensor {name!r} has {end - begin:,} bytes where its shape needs {info.nbytes:,}")
    if data + end > size:
        raise ValueError(f"tensor {name!r} ends behind the end of the file")
    return info


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is there twice")
    return found


def _open_torch(path: Path, files: list[Path]) -> Checkpoint:
    infos: dict[str, TensorInfo] = {}
    loaded: dict[str, torch.Tensor] = {}
    tied: dict[str, str] = {}
    for file in files:
        first: dict[tuple[Any, ...], str] = {}
        for name, value in _load_torch(file):
            if name in loaded or name in tied:
                raise CorruptError(f"{path}: the tensor {name!r} is in two files")
            place = (value.data_ptr(), value.dtype, value.shape, value.stride())
            if value.numel() and place in first:
                tied[name] = first[place]
                continue
            first[place] = name
            infos[name] = TensorInfo(value.dtype, tuple(value.shape), file, -1)
            loaded[name] = value
    if not infos:
        raise ModelError(f"{path} holds no tensors")
    return Checkpoint(path, infos, {}, loaded, tied)


def _load_torch(file: Path) -> Iterator[tuple[str, torch.Tensor]]:
    try:
        try:
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            content = torch.load(file, map_location="cpu", weights_only=True)  # the format before torch 1.6
    except OSError as error:
        raise ModelError(f"cannot read {file}: {error.strerror or error}") from error
    except Exception as error:
        raise CorruptError(
            f"{file} is not a state dict of plain tensors ({type(error).__name__}); save it again as safetensors"
        ) from error
    if not isinstance(content, dict):
        raise ModelError(f"{file} holds a {type(content).__name__}: expected a state dict, names to tensors")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor) or value.dtype not in DTYPE_NAMES:
            raise ModelError(
                f"{file} is not a flat state dict: {str(name)!r} is a {type(value).__name__}; "
                "save names and plain tensors only"
            )
        yield name, value.detach()
