"""What goes from one stage to the next: captured, checked against the next stage, and played back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from uphold.core.errors import UsageError
from uphold.models.stages.split import evaluating, hooked, run, try_run
from uphold.models.stages.stages import Stages, compose, fill, layer_types

_ROUNDING = 1e-3
"""Of the largest output: what two runs of one model may differ by, in bfloat16 as well."""


class Replay(nn.Module):
    """Stands for all blocks in front of a stage: returns what it was given, whatever comes in."""

    def __init__(self, like: nn.Module) -> None:
        """Make it.

        Args:
            like: the block in whose place it stands, and whose attributes the model around it may read.
        """
        super().__init__()
        self.value: torch.Tensor | None = None
        """What to return: the input of the stage."""
        self.width = 0
        """The length of the tuple that blocks return; 0 for blocks that return a tensor."""
        # In a tuple, so that it does not become a part of this module.
        self._like = (like,)

    def forward(self, *_: Any, **__: Any) -> Any:
        """`value`, in the form in which blocks return."""
        return self.value if not self.width else (self.value, *[None] * (self.width - 1))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "_like":
                raise
            return getattr(self._like[0], name)


class _EnoughError(Exception):
    """Ends a forward pass of which no more is needed."""


def boundaries(stages: Stages, inputs: torch.Tensor, upto: int | None = None) -> list[torch.Tensor]:
    """What stages 1, 2, ... read of a batch, without gradients and in eval mode.

    Args:
        stages: a split model.
        inputs: a batch of its inputs.
        upto: stop in front of this stage; None goes through all.

    Returns:
        The input of stage 1 first, up to that of `upto`.

    Raises:
        UsageError: the model does not run on the batch, or a block returns no tensor.
    """
    last = stages.count - 1 if upto is None else upto
    if last < 1:
        return []
    with evaluating(stages.model), capturing(stages, last) as found, suppress(_EnoughError):
        try_run(stages.model, inputs)
    return [found[stage] for stage in range(1, last + 1)]


@contextmanager
def capturing(stages: Stages, last: int) -> Iterator[dict[int, torch.Tensor]]:
    """Collect the inputs of stages 1 to `last` during a forward pass, which ends when they are there."""
    found: dict[int, torch.Tensor] = {}
    blocks = list(stages.model.get_submodule(stages.blocks).children())
    before = {stage: stages.starts[stage] - 1 for stage in range(1, last + 1)}

    def keep(number: int, value: Any) -> None:
        for stage, block in before.items():
            if block == number:
                found[stage] = _tensor(value)
        if len(found) == last:
            raise _EnoughError

    def add() -> list[Any]:
        def entered(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            keep(-1, arguments[0] if arguments else next(iter(named.values())))

        handles: list[Any] = []
        if -1 in before.values():
            handles.append(blocks[0].register_forward_pre_hook(entered, with_kwargs=True))
        for number in set(before.values()) - {-1}:
            handles.append(blocks[number].register_forward_hook(lambda _, __, made, number=number: keep(number, made)))
        return handles

    with hooked(add):
        yield found


def tail(stages: Stages, stage: int, sample: torch.Tensor) -> tuple[nn.Module, Replay]:
    """The model from `stage` on, behind a `Replay` that takes the place of all blocks in front of it.

    The model is changed, not copied: hand over a composed one. What is in front of its blocks still runs, since masks
    and positions are made there; its output is not used.
    """
    blocks = stages.model.get_submodule(stages.blocks)
    members = list(blocks.named_children())
    start = stages.starts[stage]
    replay = Replay(members[0][1])
    replay.width = _width(stages, sample)
    kinds = layer_types(stages.model)
    fill(stages.model, stages.blocks, [("replay", replay), *members[start:]], [*kinds[:1], *kinds[start:]])
    return stages.model, replay


def check_fit(parts: Sequence[Stages], sample: torch.Tensor) -> None:
    """Refuse stages whose ends do not fit: what one gives must have the shape and dtype that the next one takes.

    Args:
        parts: one split model per stage, as `compose` takes them.
        sample: a batch of inputs.

    Raises:
        UsageError: two ends differ, or a model does not run.
    """
    seen = {id(part): part for part in parts}
    ends = {key: boundaries(part, sample) for key, part in seen.items()}
    for number, (one, other) in enumerate(pairwise(parts), 1):
        gives, takes = (_form(ends[id(part)][number - 1]) for part in (one, other))
        if gives != takes:
            raise UsageError(
                f"stage {number - 1} gives {gives} and stage {number} of the other model takes {takes} for inputs of "
                f"shape {tuple(sample.shape)}: make both with one width"
            )


def check_separable(stages: Stages, sample: torch.Tensor) -> None:
    """Refuse a model of which more than the boundary's activations goes from one stage to later ones.

    In front of each stage what it reads is played back while the stages before get other inputs: outputs must stay
    the same but for rounding, and no weight of an earlier stage but shared ones may get a gradient.

    Args:
        stages: a split model.
        sample: a batch of at least two different inputs.

    Raises:
        UsageError: a later stage depends on something else.
    """
    with evaluating(stages.model):
        expected = try_run(stages.model, sample)
    for stage, value in enumerate(boundaries(stages, sample), 1):
        whole = compose([stages] * stages.count)
        tied = {alias for one in whole.shared for alias in one.aliases}
        early = {
            name: parameter
            for name, parameter in whole.model.named_parameters()
            if whole.place(name)[0] < stage and name not in tied and parameter.is_floating_point()
        }
        model, replay = tail(whole, stage, sample)
        replay.value = value
        model.eval()
        for parameter in early.values():
            parameter.requires_grad_(True)
        made = run(model, sample.roll(1, 0))
        if not torch.allclose(made.float(), expected.float(), rtol=0, atol=_ROUNDING * float(expected.abs().max())):
            raise UsageError(
                f"stage {stage} reads more than stage {stage - 1} gives it (the inputs themselves, or a skip "
                "connection): cut the model where nothing goes past"
            )
        if made.requires_grad and early:
            grads = torch.autograd.grad(made.float().sum(), list(early.values()), allow_unused=True)
            used = [name for name, grad in zip(early, grads, strict=True) if grad is not None]
            if used:
                raise UsageError(f"'{used[0]}' of an earlier stage is used in stage {stage} too: give each its own")


def _form(value: torch.Tensor) -> str:
    return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"


def _tensor(value: Any) -> torch.Tensor:
    first = value[0] if isinstance(value, tuple) and value else value
    if not isinstance(first, torch.Tensor):
        raise UsageError(f"a block returns a {type(first).__name__}: expected a tensor")
    return first.detach()


def _width(stages: Stages, sample: torch.Tensor) -> int:
    """The length of the tuple that the first block returns; 0 for a tensor."""
    widths: list[int] = []

    def note(_: nn.Module, __: Any, made: Any) -> None:
        widths.append(len(made) if isinstance(made, tuple) else 0)
        raise _EnoughError

    block = next(iter(stages.model.get_submodule(stages.blocks).children()))
    with evaluating(stages.model), hooked(lambda: [block.register_forward_hook(note)]), suppress(_EnoughError):
        run(stages.model, sample)
    return widths[0]
