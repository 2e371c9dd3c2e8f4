"""Patches as files: one safetensors file, its manifest in the header. Nothing is ever unpickled.

    values/NAME, codes/NAME    the numbers of a delta, float32 or quantised
    indices/NAME               where they belong, unless to all elements
    replacement/NAME           a tensor that is replaced

The header's `uphold-patch` holds the manifest and the shape, dimension and quantiser of each delta as JSON.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from uphold.core.errors import CorruptError, DataError, UpholdError, UsageError
from uphold.core.hashing import canonical_json
from uphold.core.storage import atomic_path
from uphold.models.checkpoint import open_checkpoint, read_header
from uphold.models.patches.delta import Delta, place_dtype
from uphold.models.patches.patch import Manifest, Patch, manifest_json, parts_of
from uphold.models.patches.quantise import Quantised, scheme

KEY = "uphold-patch"
_FORMAT = 1
_PARTS = ("values", "codes", "indices", "replacement")


def save_patch(patch: Patch, path: str | Path) -> Path:
    """Write `patch` as one safetensors file, atomically; equal patches give equal bytes.

    Raises:
        UsageError: the file would not end in `.safetensors`, would replace something else than a patch, or a number is
            not finite.
        StorageError: the disk refused.
    """
    from safetensors.torch import save_file

    path = patch_path(path)
    for name, delta in patch.deltas.items():
        try:
            delta.check()
        except ValueError as error:
            raise UsageError(f"the delta of '{name}' cannot be saved: {error}") from error
    tensors, layout = parts_of(patch)
    text = canonical_json({"format": _FORMAT, "manifest": manifest_json(patch.manifest), "deltas": layout})
    with atomic_path(path) as temporary:
        save_file(tensors, str(temporary), metadata={KEY: text})
    return path


def patch_path(path: str | Path) -> Path:
    """Where a patch is to be saved: ask before the work of making one.

    Raises:
        UsageError: the file would not end in `.safetensors`, or something else than a patch would be lost.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise UsageError(f"a patch is saved as a .safetensors file, not as '{path}'")
    if path.exists() and not is_patch(path):
        raise UsageError(f"{path} is there already and is no patch, so it is not replaced: name another file")
    return path


def is_patch(path: str | Path) -> bool:
    """Whether `path` is a safetensors file that calls itself a patch."""
    path = Path(path)
    try:
        return path.is_file() and path.suffix == ".safetensors" and KEY in read_header(path)[1]
    except UpholdError:
        return False


def load_patch(path: str | Path) -> Patch:
    """The patch in a file. Its numbers stay on the memory-mapped file until they are used.

    Raises:
        DataError: there is no such file.
        CorruptError: it is no patch, or not a whole one.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"no patch at '{path}': expected a .safetensors file that 'uphold patch make' wrote")
    if path.suffix != ".safetensors":
        raise CorruptError(f"{path} is no patch: expected a .safetensors file that 'uphold patch make' wrote")
    _, metadata = read_header(path)
    if KEY not in metadata:
        raise CorruptError(f"{path} is no patch: a safetensors file without '{KEY}' in its header; name a patch")
    try:
        content = json.loads(metadata[KEY], parse_constant=_no_constant)
        if content["format"] != _FORMAT:
            raise ValueError(f"format {content['format']!r}, this version of Uphold reads {_FORMAT}")
        with open_checkpoint(path) as checkpoint:
            tensors = {name: checkpoint.tensor(name) for name in checkpoint.infos}
        return _patch(content, tensors)
    except CorruptError as error:
        raise CorruptError(f"{path} is not a whole patch: {error}; copy or make it again") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, UsageError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CorruptError(f"{path} is not a whole patch ({reason}); copy or make it again") from error


def _patch(content: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Patch:
    found: dict[str, dict[str, torch.Tensor]] = {part: {} for part in _PARTS}
    for full, tensor in tensors.items():
        part, _, name = full.partition("/")
        found[part][name] = tensor
    deltas = {}
    for name, facts in content["deltas"].items():
        deltas[name] = _delta(name, facts, found)
    left = sorted(name for part in ("values", "codes", "indices") for name in found[part])
    if left:
        raise ValueError(f"numbers for '{left[0]}', which it does not describe")
    return Patch(deltas, _manifest(content["manifest"], [*deltas, *found["replacement"]]), found["replacement"])


def _delta(name: str, facts: Mapping[str, Any], found: Mapping[str, dict[str, torch.Tensor]]) -> Delta:
    shape, dim = facts["shape"], facts.get("dim")
    if not isinstance(shape, list) or any(type(size) is not int or not 0 <= size < 2**48 for size in shape):
        raise ValueError(f"'{name}' has an impossible shape")
    if math.prod(shape) >= 2**60 or not (dim is None or type(dim) is int):
        raise ValueError(f"'{name}' has an impossible shape or dimension")
    values: torch.Tensor | Quantised
    if "quantiser" in facts:
        low, high, count, zero = facts["low"], facts["high"], facts["count"], facts["zero"]
        if type(low) is not float or type(high) is not float or type(count) is not int or type(zero) is not bool:
            raise ValueError(f"'{name}' has impossible levels")
        values = Quantised(scheme(facts["quantiser"]), found["codes"].pop(name), count, low, high, zero).check()
    else:
        values = found["values"].pop(name)
        if values.dtype != torch.float32 or values.dim() != 1:
            raise ValueError(f"the values of '{name}' are no flat float32 numbers")
    indices = found["indices"].pop(name, None)
    delta = Delta(tuple(shape), values, indices, dim)
    if indices is None:
        if dim is not None:
            raise ValueError(f"'{name}' has a dimension, but no indices")
    elif indices.dtype != place_dtype(delta) or indices.dim() != 1:
        raise ValueError(f"the indices of '{name}' are no flat integers")
    else:
        delta = Delta(tuple(shape), values, indices.long(), dim)
    try:
        return delta.check()
    except ValueError as error:
        raise ValueError(f"'{name}': {error}") from error


def _manifest(values: Mapping[str, Any], names: list[str]) -> Manifest:
    known = {entry.name: entry for entry in fields(Manifest)}
    strange = sorted(values.keys() - known.keys())
    if strange:
        raise ValueError(f"its manifest has an unknown entry {strange[0]!r}")
    for name, value in values.items():
        expected: Any = dict if "Mapping" in str(known[name].type) else str
        if not isinstance(value, (float, int) if name == "scale" else expected) or isinstance(value, bool):
            raise ValueError(f"its manifest's {name!r} is {type(value).__name__}")
    manifest = Manifest(**values)
    pristine = manifest.pristine
    if pristine.keys() != set(names) or not all(isinstance(one, str) for one in pristine.values()):
        raise ValueError("its manifest does not say what each of its tensors was made from")
    manifest_json(manifest)
    return manifest


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is no number")
