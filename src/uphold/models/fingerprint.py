"""Hashes of weights, adapters and tokenizers: a model is called by its content, not by its path.

Weights are hashed tensor by tensor under their names on disk, so neither sharding nor file names count.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uphold.core.errors import CorruptError, ModelError
from uphold.core.hashing import sha256_of, sha256_of_file, sha256_of_parts
from uphold.core.storage import read_json
from uphold.models.pair_file import GATE, read_pair
from uphold.models.reference import ModelFiles, PairFiles

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "merges.txt")
_VOLATILE = ("transformers_version", "_name_or_path", "name_or_path", "torch_dtype", "dtype")


def files_fingerprint(files: ModelFiles) -> dict[str, Any]:
    """`name`, `weights`, `config`, `tokenizer` and `adapter` hashes of a model on disk, without loading it.

    Raises:
        ModelError: there are no weights, or a model of a pair is not the one that the pair was made of.
        CorruptError: a file does not hold what was written to it.
    """
    if files.pair is not None:
        return _pair_fingerprint(files.name, files.pair)
    fingerprint: dict[str, Any] = {"name": files.name, "adapter": None}
    if files.is_gguf:
        fingerprint |= {"weights": _file_hash(files.base, *_stamp(files.base)), "config": "gguf", "tokenizer": "gguf"}
    else:
        fingerprint |= {
            "weights": weights_hash(files.base),
            "config": _config_hash(files.base / "config.json"),
            "tokenizer": sha256_of(
                [sha256_of_file(path) for name in _TOKENIZER_FILES if (path := files.base / name).is_file()]
            ),
        }
    if files.adapter is not None:
        fingerprint["adapter"] = sha256_of(
            [weights_hash(files.adapter), _config_hash(files.adapter / "adapter_config.json")]
        )
    return fingerprint


def nameless(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """What a model or a task is, without what it is called: the same under two names is one."""
    return {key: value for key, value in fingerprint.items() if key != "name"}


def _pair_fingerprint(name: str, pair: PairFiles) -> dict[str, Any]:
    saved = read_pair(pair.folder)
    path = pair.folder / GATE
    gate = path.read_bytes() if saved.gate is not None and path.is_file() else None
    saved.check(name, files_fingerprint(pair.old), files_fingerprint(pair.new), gate)
    return saved.fingerprint(name)


def weights_hash(folder: Path) -> str:
    """Hash of all tensors in a folder's weight files.

    Raises:
        ModelError: the folder has no weight files.
        CorruptError: a safetensors file is cut off or is none.
    """
    shards = sorted(folder.glob("*.safetensors"))
    if shards:
        return _tensors_hash(tuple((path, *_stamp(path)) for path in shards))
    others = sorted(folder.glob("*.bin"))
    if not others:
        raise ModelError(f"{folder} has no weights: expected *.safetensors")
    return sha256_of([_file_hash(path, *_stamp(path)) for path in others])


def module_fingerprint(model: torch.nn.Module, name: str) -> dict[str, Any]:
    """The fingerprint of a model that was handed over loaded."""
    config = getattr(model, "config", None)
    return {
        "name": name,
        "weights": tensors_hash(model.state_dict()),
        "config": sha256_of(_stable(config.to_dict())) if config is not None else "",
        "adapter": None,
    }


def tensors_hash(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of names, dtypes, shapes and bytes of tensors in memory; the order does not matter."""

    def parts() -> Iterator[bytes | memoryview]:
        for name, tensor in sorted(tensors.items()):
            yield f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()
            yield bytes_of(tensor)

    return sha256_of_parts(parts())


def bytes_of(values: torch.Tensor) -> memoryview:
    """The bytes of a tensor in row-major order; a copy only where they do not lie so, or not in main memory."""
    import torch

    flat = values.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of a tokenizer's token-id map."""
    return sha256_of(sorted(tokenizer.get_vocab().items()))


@lru_cache(maxsize=64)
def _tensors_hash(shards: tuple[tuple[Path, int, int], ...]) -> str:
    """Cached by path, size and modification time within one process."""
    entries = sorted(entry for path, _, _ in shards for entry in _safetensors_entries(path))
    return sha256_of(entries)


def _safetensors_entries(path: Path) -> Iterator[tuple[str, str, list[int], str]]:
    """(name, dtype, shape, hash of the bytes) of every tensor in a safetensors file."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            length = int.from_bytes(data[:8], "little")
            header = json.loads(data[8 : 8 + length])
            with memoryview(data) as view:
                for name, entry in header.items():
                    if name == "__metadata__":
                        continue
                    begin, end = (8 + length + offset for offset in entry["data_offsets"])
                    if end > len(view):
                        raise ValueError(f"tensor {name} ends behind the end of the file")
                    with view[begin:end] as tensor:
                        yield name, entry["dtype"], entry["shape"], sha256_of_parts([tensor])
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptError(f"{path} is not a whole safetensors file ({error}); copy or download it again") from error
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error


@lru_cache(maxsize=64)
def _file_hash(path: Path, size: int, modified: int) -> str:
    return sha256_of_file(path)


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _config_hash(path: Path) -> str:
    return sha256_of(_stable(read_json(path)))


def _stable(config: Any) -> Any:
    if not isinstance(config, dict):
        return config
    kept = {
        # PEFT writes its sets of module names in an order that changes from process to process.
        key: sorted(value) if isinstance(value, list) and all(isinstance(item, str) for item in value) else value
        for key, value in config.items()
        if key not in _VOLATILE and not key.startswith("base_model")
    }
    return json.loads(json.dumps(kept, default=str, sort_keys=True))
