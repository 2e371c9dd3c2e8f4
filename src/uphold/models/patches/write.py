"""Writing patched weights: a copy of each file with the bytes of the touched tensors exchanged, and nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from uphold.models.checkpoint import TensorInfo
from uphold.models.fingerprint import bytes_of
from uphold.models.patches.delta import CHUNK, Piece, fused, replaced
from uphold.models.patches.patch import Patch, terms_of

Touching = Callable[[str], Sequence[tuple[Patch, float, str]]]
"""The patches on a tensor, their strengths, and what they call it."""


@dataclass
class Tally:
    """What became of the changes that patches asked for, in elements."""

    asked: int = 0
    """How many were to change."""
    lost: int = 0
    """How many of those did not, since their dtype has no number that near."""


def pieces(name: str, pristine: torch.Tensor, touching: Sequence[tuple[Patch, float, str]]) -> Iterator[Piece]:
    """The patched tensor, piece by piece; the pristine one where no patch is on it.

    Raises:
        UsageError: the patches contradict each other, or overflow the tensor's dtype.
    """
    added, put = terms_of(touching)
    if added:
        yield from fused(name, pristine, added)
        return
    flat = (replaced(name, pristine, put) if put else pristine).reshape(-1)
    for start in range(0, flat.numel(), CHUNK):
        yield Piece(start, flat[start : start + CHUNK], 0, 0)


def write_patched(
    source: Path,
    target: Path,
    tensors: Sequence[tuple[str, TensorInfo, torch.Tensor]],
    touching: Touching,
    tally: Tally,
    step: Callable[[], None],
) -> None:
    """Copy the safetensors file `source` to `target` and write patched tensors over their old bytes.

    Args:
        source: a file.
        target: what is written; not yet brought to the disk.
        tensors: name, place in the file, and pristine values of each tensor that is written.
        touching: the patches on a tensor.
        tally: what is counted goes there.
        step: called after each tensor.
    """
    shutil.copyfile(source, target)
    shutil.copymode(source, target)
    with target.open("r+b") as file:
        for name, info, pristine in tensors:
            for piece in pieces(name, pristine, touching(name)):
                file.seek(info.start + piece.start * info.dtype.itemsize)
                file.write(bytes_of(piece.values))
                tally.asked, tally.lost = tally.asked + piece.asked, tally.lost + piece.lost
            step()
