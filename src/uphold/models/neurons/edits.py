"""Edits of single neurons that can be taken back bit for bit."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType

import torch

from uphold.models.neurons.config import Mode
from uphold.models.neurons.neurons import Down


def patched(neuron: torch.Tensor, direction: torch.Tensor, strength: float, mode: Mode) -> torch.Tensor:
    """What an edit makes of a neuron, shape (d,), in float32.

    Args:
        neuron: w, as it is.
        direction: p.
        strength: f: 0 leaves w as it is, `mix` ends at p for f to infinity.
        mode: `mix` is (w + f p) / (1 + f), `add` is w + f p.
    """
    if strength == 0:
        return neuron.float()
    w, p = neuron.float(), direction.to(neuron.device, torch.float32)
    return w + strength * p if mode == "add" else (w + strength * p) / (1 + strength)


def added(pristine: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    """`pristine` with a float32 delta, of its own dtype, as `uphold.models.patches.delta` adds: bit for bit."""
    wide = torch.promote_types(pristine.dtype, torch.float32)
    made = (pristine.to(wide) + delta.to(pristine.device)).to(pristine.dtype)
    return torch.where(delta.to(pristine.device) != 0, made, pristine)


@dataclass(frozen=True)
class Edit:
    """One neuron, before and after."""

    down: Down
    index: int
    strength: float
    before: torch.Tensor
    """Shape (d,), in the weight's dtype; a copy."""
    after: torch.Tensor
    """The same after the edit."""
    delta: torch.Tensor
    """What was added to the neuron as it was before any edit, in float32: `after` is `added(pristine, delta)`."""
    number: int
    """Which failure it was made for."""
    position: int
    """Which token of its target it was made for."""
    wrong: int
    """The token that was predicted there."""
    target: int
    """The right token."""


class Ledger:
    """Everything that was written to a model, so that it can be undone, the last edit first.

    As a context manager it undoes all of it where the block ends by an exception, an interruption included.
    """

    def __init__(self) -> None:
        self.edits: list[Edit] = []

    def settled(self, down: Down, index: int, column: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the weight will hold where `column` is asked for, and its float32 delta from the pristine neuron.

        Args:
            down: the layer.
            index: the neuron.
            column: what it is to become, shape (d,), float32.
        """
        mine = (edit.before for edit in self.edits if edit.down is down and edit.index == index)
        pristine = next(mine, down.neuron(index))
        delta = column - pristine.float()
        return added(pristine, delta), delta

    def write(self, edit: Edit) -> None:
        """Note an edit, then make it: an interruption between the two is undone like any other."""
        self.edits.append(edit)
        with torch.no_grad():
            edit.down.neuron(edit.index).copy_(edit.after)

    def mark(self) -> int:
        """A point to come back to."""
        return len(self.edits)

    def rollback(self, mark: int = 0) -> None:
        """Undo all edits after `mark`, the last one first: the originals are put back, nothing is subtracted."""
        with torch.no_grad():
            while len(self.edits) > mark:
                edit = self.edits[-1]
                edit.down.neuron(edit.index).copy_(edit.before)
                self.edits.pop()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.rollback()
