"""Where a patch's weights come from: a reference, an open checkpoint, a state dict or a model in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from uphold.core.errors import UsageError
from uphold.core.hashing import sha256_of, sha256_of_parts
from uphold.models.checkpoint import DTYPE_NAMES, Checkpoint, open_checkpoint
from uphold.models.fingerprint import bytes_of
from uphold.models.reference import find_model

WeightsLike = Any
"""A model reference or file (`str` or `Path`), a `Checkpoint`, a state dict, or a module."""


class Weights:
    """Named tensors of one model, read only when they are asked for."""

    name: str
    """How its user named it; "" for one in memory."""
    names: tuple[str, ...]
    """Every tensor once: of tied ones, the first."""

    def __init__(self, name: str, tensors: Checkpoint | Mapping[str, torch.Tensor]) -> None:
        """Use `open_weights`."""
        self.name = name
        self._tensors = tensors
        self.names = tuple(tensors.infos) if isinstance(tensors, Checkpoint) else tuple(_untied(tensors))

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor called `name`; not to be written to.

        Raises:
            KeyError: there is none.
        """
        return self._tensors.tensor(name) if isinstance(self._tensors, Checkpoint) else self._tensors[name].detach()

    @cached_property
    def hash(self) -> str:
        """Hash of all tensors; that of a folder and of the state dict that it holds are equal."""
        if isinstance(self._tensors, Checkpoint):
            return self._tensors.content_hash()
        return sha256_of(sorted(_entry(name, self.tensor(name)) for name in self.names))


def weights_path(reference: str | Path) -> Path:
    """The model folder, adapter folder or weights file that `reference` names.

    Raises:
        UsageError: it names several models or a GGUF file.
        ModelError: it names nothing.
    """
    path = Path(reference).expanduser()
    if str(reference).strip() and path.suffix != ".gguf" and not (path / "pair.json").is_file() and path.exists():
        return path
    files = find_model(reference)
    if files.pair is not None:
        raise UsageError(f"'{reference}' is a pair of models: name one of the two")
    if files.adapter is not None:
        raise UsageError(f"'{reference}' is a model and its adapter: name the folder of one of the two")
    if files.is_gguf:
        raise UsageError(f"'{reference}' is a GGUF file, which cannot be patched: save it as a model folder first")
    return files.base


@contextmanager
def open_weights(source: WeightsLike) -> Iterator[Weights]:
    """The weights of `source`, for the time of the block.

    Raises:
        UsageError: it is nothing that has weights.
        ModelError: there are none at that place.
        CorruptError: a file does not hold what was written to it.
    """
    if isinstance(source, str | Path):
        with open_checkpoint(weights_path(source)) as checkpoint:
            yield Weights(str(source), checkpoint)
    elif isinstance(source, Checkpoint):
        yield Weights(str(source.path), source)
    else:
        yield Weights("", state_of(source))


def state_of(source: Any) -> Mapping[str, torch.Tensor]:
    """The tensors of a state dict or module by name: the very tensors, not copies.

    Raises:
        UsageError: it is neither.
    """
    module = getattr(source, "model", source) if not isinstance(source, torch.nn.Module) else source
    if isinstance(module, torch.nn.Module):
        named = dict(module.named_parameters(remove_duplicate=False))
        return {**named, **dict(module.named_buffers(remove_duplicate=False))}
    if isinstance(source, Mapping) and source and all(isinstance(one, torch.Tensor) for one in source.values()):
        return source
    raise UsageError(
        f"expected a model reference, a module or a state dict of tensors, not {type(source).__name__}: "
        "pass model.state_dict() or the model itself"
    )


def place_of(tensor: torch.Tensor) -> tuple[Any, ...]:
    """What is equal for two tensors exactly where they are one and the same memory."""
    return (tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())


def _untied(tensors: Mapping[str, torch.Tensor]) -> Iterator[str]:
    seen = set()
    for name, tensor in tensors.items():
        place = place_of(tensor)
        if not tensor.numel() or place not in seen:
            yield name
        seen.add(place)


def _entry(name: str, tensor: torch.Tensor) -> list[Any]:
    data = sha256_of_parts([bytes_of(tensor)])
    return [name, DTYPE_NAMES.get(tensor.dtype, str(tensor.dtype)), list(tensor.shape), data]
