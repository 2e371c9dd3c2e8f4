"""Going on from a run in the middle: from a block, and from a position.

What a patch at block l and position p changes lies behind both. The residual stream at the input of block l and the
keys and values of earlier positions are those of the run without it, which is kept once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicCache

from uphold.core.errors import ModelError
from uphold.models.attention import PrefixLayer, accepted_arguments
from uphold.models.sites.hooks import Edit, reading, writing, written
from uphold.models.sites.layout import Layout
from uphold.models.sites.run import logits_of, ready
from uphold.models.sites.site import Site


@dataclass(frozen=True)
class Kept:
    """A run of a decoder without edits, to go on from."""

    inputs: Mapping[str, torch.Tensor]
    """`input_ids` and maybe `attention_mask`, shape (rows, positions)."""
    at: torch.Tensor
    """The position that counts in each row, shape (rows,)."""
    residual: tuple[torch.Tensor, ...]
    """The input of every block and the output of the last, shape (rows, positions, hidden)."""
    keys: tuple[torch.Tensor, ...]
    """Of every block, shape (rows, key-value heads, positions, width); empty where the model keeps none so."""
    values: tuple[torch.Tensor, ...]
    logits: torch.Tensor
    """At the position that counts, shape (rows, V)."""
    alone: bool
    """Whether a block returns its output itself, and not in a tuple."""


def kept_bytes(layout: Layout, inputs: Mapping[str, torch.Tensor]) -> int:
    """Memory that `keep` of these inputs takes, the logits apart."""
    width = int(layout.model.config.get_text_config().hidden_size)
    numbers = (layout.layers + 1) * width + 2 * layout.layers * layout.key_heads * layout.head_width
    size: int = next(layout.model.parameters()).element_size()
    return inputs["input_ids"].numel() * numbers * size


def keep(layout: Layout, inputs: Mapping[str, torch.Tensor], at: torch.Tensor) -> Kept:
    """Run a decoder once and keep what `resume` goes on from.

    Args:
        layout: of the model.
        inputs: `input_ids`, and `attention_mask` where rows are padded (on the right).
        at: the position that counts in each row, shape (rows,).
    """
    model = layout.model
    sites = [Site("residual", layer) for layer in range(-1, layout.layers)]
    cache = DynamicCache() if {"past_key_values", "position_ids"} <= accepted_arguments(model) else None
    named = {**inputs, "past_key_values": cache, "use_cache": True} if cache is not None else dict(inputs)
    kinds: list[bool] = []
    with ExitStack() as stack:
        for block in layout.blocks:
            hook = block.register_forward_hook(lambda *call: kinds.append(isinstance(call[-1], torch.Tensor)))
            stack.callback(hook.remove)
        stack.enter_context(ready(model))
        found = stack.enter_context(reading(layout, sites))
        logits = logits_of(model, named, at)
    keys, values = _states(cache, inputs["input_ids"].shape)
    return Kept(dict(inputs), at, tuple(found[site] for site in sites), keys, values, logits, all(kinds))


def resume(
    layout: Layout,
    kept: Kept,
    edits: Sequence[Edit],
    *,
    layer: int,
    start: int = 0,
    rows: torch.Tensor | None = None,
    grad: bool = False,
) -> torch.Tensor:
    """Logits at the position that counts, after edits at or behind block `layer` and position `start`.

    Args:
        layout: of the model that `kept` is of.
        kept: the run to go on from.
        edits: with values and masks for all positions and for the chosen rows; those before `start` are left out.
        layer: the block to begin with, `layers` for what comes after the last one; edits of `residual.{layer - 1}`
            count as well.
        start: the position to begin with.
        rows: rows of `kept`, any number of times each; all where None.
        grad: whether to keep the graph.

    Returns:
        Shape (rows, V); of rows whose position that counts lies before `start`, it is of no meaning.
    """
    chosen = torch.arange(len(kept.at), device=kept.at.device) if rows is None else rows
    if not kept.keys:
        start = 0
    at = (kept.at[chosen] - start).clamp(min=0)  # what comes after a row's end does not count in it
    named = _arguments(kept, chosen, range(layer, layout.layers), start)
    entering = kept.residual[layer][chosen, start:]
    later = []
    for edit in (_behind(edit, start) for edit in edits):
        if edit.site == Site("residual", layer - 1):
            entering = written(entering, edit)  # indexing has made it a copy
        else:
            later.append(edit)
    with ready(layout.model, grad), _beginning(layout, layer, entering, kept.alone), writing(layout, later):
        return logits_of(layout.model, named, at)


def one_position(
    layout: Layout, kept: Kept, edits: Sequence[Edit], *, layer: int, position: int, rows: torch.Tensor
) -> torch.Tensor:
    """What a block returns at a position after edits inside it that change it nowhere else.

    Args:
        layout: of the model that `kept` is of, which has kept keys and values.
        kept: the run to go on from.
        edits: as for `resume`; of keys and values there are none, as other positions read those.
        layer: the block.
        position: the only one that is run.
        rows: rows of `kept`, any number of times each.

    Returns:
        Shape (rows, hidden).
    """
    stop = position + 1
    named = _arguments(kept, rows, range(layer, layer + 1), position, stop)
    inside = [_behind(edit, position, stop) for edit in edits]
    entering = kept.residual[layer][rows, position:stop]

    def leave(_: Any, __: Any, output: Any) -> None:
        raise _DoneError(output if isinstance(output, torch.Tensor) else output[0])

    with ready(layout.model), _beginning(layout, layer, entering, kept.alone), writing(layout, inside):
        hook = layout.blocks[layer].register_forward_hook(leave)
        try:
            logits_of(layout.model, named, None)
        except _DoneError as done:
            return done.output[:, 0]
        finally:
            hook.remove()
    raise ModelError(f"the model did not call block {layer} in one forward pass")


class _DoneError(Exception):
    """Ends a forward pass once a block has returned."""

    def __init__(self, output: torch.Tensor) -> None:
        super().__init__()
        self.output = output


def _arguments(
    kept: Kept, rows: torch.Tensor, used: range, start: int, stop: int | None = None
) -> dict[str, torch.Tensor]:
    """What the model is called with for positions from `start` to `stop`, with keys and values of the `used` blocks."""
    named = {name: value[rows, :stop] for name, value in kept.inputs.items()}
    named["input_ids"] = named["input_ids"][:, start:]
    if start:
        end = start + named["input_ids"].shape[1]
        named["position_ids"] = torch.arange(start, end, device=rows.device).expand(len(rows), -1)
        # A block that is passed over is asked for the number of its keys only.
        prefix = [
            (one[rows, :, :start] if number in used else one[:1, :, :start])
            for number, pair in enumerate(zip(kept.keys, kept.values, strict=True))
            for one in pair
        ]
        named["past_key_values"] = Cache(
            layers=[PrefixLayer(*pair) for pair in zip(prefix[::2], prefix[1::2], strict=True)]
        )
        named["use_cache"] = True  # type: ignore[assignment]
    return named


def _states(cache: Any, shape: torch.Size) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    """Keys and values of every block; none where the model keeps something else (recurrent states, a window)."""
    layers: list[Any] = [] if cache is None else list(cache.layers)
    keys = tuple(getattr(layer, "keys", None) for layer in layers)
    values = tuple(getattr(layer, "values", None) for layer in layers)
    for one in (*keys, *values):
        if one is None or one.dim() != 4 or (len(one), one.shape[2]) != tuple(shape):
            return (), ()
    return keys, values  # type: ignore[return-value]


def _behind(edit: Edit, start: int, stop: int | None = None) -> Edit:
    """The same edit for positions from `start` to `stop`."""
    value, where = edit.value, edit.where
    if isinstance(value, torch.Tensor) and value.dim() > 1 and value.shape[-2] > 1:
        value = value[..., start:stop, :]
    if where is not None and where.shape[-1] > 1:
        where = where[..., start:stop]
    return replace(edit, value=value, where=where)


class _Passed(nn.Module):
    """Stands where a block stood: hands on what came in, or something else."""

    def __init__(self, block: nn.Module, result: torch.Tensor | None, alone: bool) -> None:
        super().__init__()
        object.__setattr__(self, "_block", block)
        self._result, self._alone = result, alone

    def __getattr__(self, name: str) -> Any:
        # Models ask their blocks for facts, such as which mask they take.
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(object.__getattribute__(self, "_block"), name)

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        result = hidden_states if self._result is None else self._result.to(hidden_states.device)
        return result if self._alone else (result,)


@contextmanager
def _beginning(layout: Layout, layer: int, entering: torch.Tensor, alone: bool) -> Iterator[None]:
    """Let a forward pass begin with block `layer` and its input."""
    blocks: Any = layout.model.get_submodule(layout.block_path)
    first = layout.blocks[layer] if layer < layout.layers else None
    hook = None
    try:
        for number in range(min(layer, layout.layers)):
            blocks[number] = _Passed(layout.blocks[number], entering if number == layer - 1 else None, alone)
        if first is not None and layer == 0:
            hook = first.register_forward_pre_hook(lambda _, inputs: (entering.to(inputs[0].device), *inputs[1:]))
        yield
    finally:
        if hook is not None:
            hook.remove()
        for number in range(min(layer, layout.layers)):
            blocks[number] = layout.blocks[number]
