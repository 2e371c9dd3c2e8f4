"""What a merge method is: one class in one file, that says how one tensor of all models becomes one tensor.

    @merge("task-arithmetic", paper="arXiv:2212.04089")
    class TaskArithmetic:
        "base + lambda times the weighted sum of what each model changed."

        base = "required"
        parameters = (Parameter("weight", per_model=True), Parameter("lambda", 1.0))

        def combine(self, chunk, settings, prepared):
            ...

A tensor is handed out in chunks, so that memory is bounded by a chunk and not by a tensor. A method that needs
something of the whole tensor first (a norm, a quantile) looks at all chunks in `prepare`, as often as it likes.
Arithmetic is in float32, the result is cast once, by the engine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    import torch

Unit = Literal["element", "row", "tensor"]
Presence = Literal["required", "optional", "refused"]
REQUIRED: Any = object()
"""Default of a parameter that a recipe must set."""


@dataclass(frozen=True)
class Parameter:
    """A number or switch that a recipe may set, for the whole merge, a slice, a module or single tensors."""

    name: str
    """As recipes write it (`weight`, `density`, `lambda`, `t`)."""
    default: Any = REQUIRED
    """What holds where no recipe says anything; `REQUIRED` where one must."""
    per_model: bool = False
    """Whether each model has its own."""
    low: float = float("-inf")
    """Smallest value allowed."""
    high: float = float("inf")
    """Largest value allowed."""
    help: str = ""
    """What it does, for `uphold merge --help` and the docs."""


@dataclass(frozen=True)
class Settings:
    """The parameters of one tensor, resolved: gradients are at its layer, filters have found its name."""

    models: Sequence[Mapping[str, Any]]
    """One mapping per model other than the base, in the recipe's order."""
    options: Mapping[str, Any]
    """Parameters that are not per model."""
    base: Mapping[str, Any] = field(default_factory=dict)
    """Per-model parameters of the base, for the few methods in which it takes part as a model does."""

    def of(self, name: str) -> list[Any]:
        """One parameter of all models."""
        return [one[name] for one in self.models]


@dataclass(frozen=True)
class Chunk:
    """A contiguous part of one tensor, of all models."""

    start: int
    """Offset of its first element in the flattened tensor."""
    base: torch.Tensor | None
    """The base model's values, float32; None where the merge has no base."""
    models: Sequence[torch.Tensor]
    """Those of the other models, float32, of the same shape. Shape: (n,) for the unit `element`; whole rows
    (rows, columns) for `row`, where columns is the tensor's last dimension; the tensor's own shape for `tensor`."""

    @property
    def changes(self) -> list[torch.Tensor]:
        """What each model changed against the base.

        Raises:
            ValueError: the merge has no base.
        """
        if self.base is None:
            raise ValueError("this merge has no base")
        return [one - self.base for one in self.models]


class View(Protocol):
    """One tensor in all models, as a method's `prepare` sees it."""

    @property
    def name(self) -> str:
        """The tensor's name in the checkpoint."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole tensor."""

    def chunks(self) -> Iterator[Chunk]:
        """All of it, in order; every call starts anew."""

    def uniform(self, model: int, start: int, count: int) -> np.ndarray:
        """Numbers in [0, 1), float32, shape (count,), for elements `start` to `start + count` of one model.

        They depend on the recipe's seed, the tensor's name, the model's number and the element only: not on threads,
        chunks or the order in which tensors are merged.
        """


class MergeMethod(Protocol):
    """A merge method. One object serves a whole merge; it keeps no state of its own."""

    base: ClassVar[Presence]
    """Whether the recipe must, may or may not name a base model."""
    parameters: ClassVar[tuple[Parameter, ...]]

    unit: ClassVar[Unit] = "element"
    """What must not be torn apart by chunks."""
    at_least: ClassVar[int] = 1
    """Smallest number of models beside the base."""
    at_most: ClassVar[int | None] = None
    """Largest number of models beside the base; None for any."""

    def survey(self, views: Iterator[tuple[View, Settings]]) -> Any:
        """What the method must know of all tensors before the first is merged (a threshold over the whole model)."""
        return None

    def prepare(self, view: View, settings: Settings, surveyed: Any) -> Any:
        """What it must know of one tensor before its first chunk is merged (norms, cosines, thresholds)."""
        return None

    def combine(self, chunk: Chunk, settings: Settings, prepared: Any) -> torch.Tensor:
        """The merged values of one chunk, float32, of the chunk's shape."""
        raise NotImplementedError
