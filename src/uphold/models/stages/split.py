"""Where a model can be cut: its list of blocks, and what its forward pass calls before and after them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import torch
from torch import nn

from uphold.core.errors import UsageError


def find_blocks(model: nn.Module) -> str:
    """Path of the `nn.Sequential` or `nn.ModuleList` with the longest run of children of one class.

    Raises:
        UsageError: there is none, or two runs are equally long.
    """
    runs = {
        path: _run(module)[1]
        for path, module in model.named_modules()
        if isinstance(module, nn.Sequential | nn.ModuleList) and len(module)
    }
    longest = max(runs.values(), default=0)
    found = [path for path, length in runs.items() if length == longest]
    if longest < 2 and "" not in found:
        raise UsageError(
            f"{type(model).__name__} has no list of blocks: expected an nn.Sequential, or a module that calls the "
            "members of an nn.ModuleList in order; wrap its parts into nn.Sequential(stem, ..., head)"
        )
    # Of a list and what lies inside its members, the list is meant.
    found = [path for path in found if not any(path != other and part_of(path, other) for other in found)]
    if len(found) > 1:
        raise UsageError(f"blocks could be {found[0]!r} or {found[1]!r}: name one (blocks=...)")
    return str(found[0])


def block_run(model: nn.Module, path: str) -> tuple[int, int]:
    """First and one past the last of the blocks in the list at `path`: its longest run of one class.

    Raises:
        UsageError: there is no list at `path`.
    """
    module = dict(model.named_modules()).get(path)
    if not isinstance(module, nn.Sequential | nn.ModuleList) or not len(module):
        raise UsageError(f"'{path}' is no list of blocks: expected the path of an nn.Sequential or nn.ModuleList")
    first, length = _run(module)
    return first, first + length


def counts_of_ratios(ratios: Sequence[float], total: int) -> list[int]:
    """Whole numbers in proportion to `ratios` that add up to `total`: largest remainders, each at least 1.

    Raises:
        UsageError: a ratio is not a positive number, or `total` is smaller than their number.
    """
    if not ratios or not all(math.isfinite(ratio) and ratio > 0 for ratio in ratios) or total < len(ratios):
        raise UsageError(f"cannot cut {total} blocks by {list(ratios)}: expected positive ratios, no more than blocks")
    rest = total - len(ratios)
    exact = [rest * ratio / sum(ratios) for ratio in ratios]
    counts = [math.floor(share) for share in exact]
    order = sorted(range(len(ratios)), key=lambda index: counts[index] - exact[index])
    for index in order[: rest - sum(counts)]:
        counts[index] += 1
    return [1 + count for count in counts]


def shell_parts(model: nn.Module, path: str) -> list[str]:
    """Paths of the modules around the list at `path`: what stands beside it and beside the modules that hold it."""
    parts: list[str] = []
    module, prefix = model, ""
    for step in path.split(".") if path else ():
        parts += [f"{prefix}{name}" for name, _ in module.named_children() if name != step]
        module, prefix = module.get_submodule(step), f"{prefix}{step}."
    return parts


def late_parts(model: nn.Module, path: str, sample: torch.Tensor | None) -> tuple[str, ...]:
    """Those of the modules around the blocks that are called after them, in the order of their calls.

    Raises:
        UsageError: a module is called on both sides of the blocks or between them, is never called, or no sample is
            given where one is needed.
    """
    parts = {part: model.get_submodule(part) for part in shell_parts(model, path)}
    holding = {part: module for part, module in parts.items() if module.state_dict()}
    if not holding:
        return ()
    calls = _calls(model, path, holding, _sample(model) if sample is None else sample)
    at = [number for number, name in enumerate(calls) if name == path]
    late: dict[str, int] = {}
    for part in holding:
        where = [number for number, name in enumerate(calls) if name == part]
        if not where:
            raise UsageError(f"'{part}' has weights and is never called: remove it from the model before it is cut")
        sides = {"before" if one < at[0] else "after" if one > at[-1] else "between" for one in where}
        if len(sides) > 1 or sides == {"between"}:
            raise UsageError(f"'{part}' is called {' and '.join(sorted(sides))} the blocks: such a model cannot be cut")
        if sides == {"after"}:
            late[part] = where[0]
    return tuple(sorted(late, key=late.__getitem__))


def run(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """The model's outputs: what it returns, or the `logits` of a transformers model, read without a cache.

    Raises:
        UsageError: it returns neither.
    """
    device = next((parameter.device for parameter in model.parameters()), inputs.device)
    inputs = inputs.to(device)
    if hasattr(getattr(model, "config", None), "use_cache"):
        # Rows are padded on the right, where causal models do not look; without a mask some would warn of padding.
        made: Any = model(inputs, attention_mask=torch.ones_like(inputs), use_cache=False)
    else:
        made = model(inputs)
    made = getattr(made, "logits", made)
    if not isinstance(made, torch.Tensor):
        raise UsageError(f"{type(model).__name__} returns a {type(made).__name__}: expected a tensor, or logits")
    return made


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """In eval mode, without gradients; afterwards every module is in the mode that it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def hooked(add: Callable[[], Sequence[Any]]) -> Iterator[None]:
    """With the hooks that `add` returns handles of."""
    handles = add()
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def part_of(name: str, path: str) -> bool:
    """Whether the module or tensor `name` is, or lies in, the module at `path`."""
    return not path or name == path or name.startswith(f"{path}.")


def _run(module: Any) -> tuple[int, int]:
    """Start and length of the longest run of children of one class, the first of equals."""
    best, start = (0, 0), 0
    for _, group in groupby(module, key=type):
        length = len(list(group))
        if length > best[1]:
            best = (start, length)
        start += length
    return best


def _sample(model: nn.Module) -> torch.Tensor:
    made = getattr(model, "dummy_inputs", None)
    if not isinstance(made, dict) or not isinstance(made.get("input_ids"), torch.Tensor):
        raise UsageError(
            f"{type(model).__name__} has modules around its blocks: give a batch of inputs (sample=...) to see what is "
            "called before and what after them"
        )
    ids: torch.Tensor = made["input_ids"]
    return ids


def _calls(model: nn.Module, path: str, parts: dict[str, nn.Module], sample: torch.Tensor) -> list[str]:
    """What is called when: the paths of `parts`, and `path` for every block."""
    calls: list[str] = []

    def note(name: str) -> Callable[..., None]:
        return lambda *_: calls.append(name)

    def add() -> list[Any]:
        blocks = [block.register_forward_pre_hook(note(path)) for block in model.get_submodule(path).children()]
        return blocks + [
            inner.register_forward_pre_hook(note(name)) for name, part in parts.items() for inner in part.modules()
        ]

    with evaluating(model), hooked(add):
        try_run(model, sample)
    if path not in calls:
        raise UsageError(f"the forward pass calls none of the blocks in '{path}': name the list that it goes through")
    return calls


def try_run(model: nn.Module, sample: torch.Tensor) -> torch.Tensor:
    """`run`, with what torch says of inputs or stages that do not fit as an error of ours.

    Raises:
        UsageError: the forward pass fails.
    """
    try:
        return run(model, sample)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(
            f"{type(model).__name__} does not run on a batch of shape {tuple(sample.shape)} ({reason}): expected "
            "inputs that it takes, and stages whose ends fit"
        ) from error
