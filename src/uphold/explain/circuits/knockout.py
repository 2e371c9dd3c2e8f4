"""Attention knockout: positions that may no longer look at others, from some block on.

Geva et al., arXiv:2304.14767; used by Prakash et al., arXiv:2402.14811. The score before the softmax is set to the
smallest number of its type.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from uphold.core.errors import ModelError
from uphold.core.progress import Progress, silent
from uphold.explain.circuits.measures import Measure, of_all
from uphold.explain.circuits.prompts import BATCH, Prompts
from uphold.models.sites.layout import Layout
from uphold.models.sites.run import run
from uphold.models.sites.site import Site


def knockout(
    layout: Layout,
    prompts: Prompts,
    reader: str,
    read: str,
    *,
    starts: Sequence[int] | None = None,
    measure: Measure = "correct",
    batch: int = BATCH,
    progress: Progress = silent,
) -> dict[int, torch.Tensor]:
    """Keep one role from attending to another in all blocks from each start on.

    Args:
        layout: of the model.
        prompts: what it is run on.
        reader: the role that attends.
        read: the role that it may not attend to.
        starts: first blocks, each tried by itself; the number of blocks blocks nothing. All where None.
        measure: what to measure.
        batch: prompts in one forward pass.
        progress: called after every pass.

    Returns:
        By first block, the measure in each prompt, shape (rows,).

    Raises:
        ModelError: the model's attention takes no mask that is added to its scores.
    """
    chosen = list(range(layout.layers + 1)) if starts is None else list(starts)
    found: dict[int, list[torch.Tensor]] = {start: [] for start in chosen}
    parts = list(prompts.batches(batch))
    for number, part in enumerate(parts):
        pairs = part.mask(reader)[:, :, None] & part.mask(read)[:, None]
        for start in chosen:
            with _blocked(layout, range(start, layout.layers), pairs):
                logits = run(layout, part.inputs, at=part.at)
            found[start].append(of_all(measure, part)(logits).float().cpu())
        progress("attention knockout", number + 1, len(parts))
    return {start: torch.cat(values) for start, values in found.items()}


@contextmanager
def _blocked(layout: Layout, layers: Sequence[int], pairs: torch.Tensor) -> Iterator[None]:
    """Block pairs of positions, bool, shape (rows, queries, keys), in some blocks."""
    calls: list[str] = []

    def before(module: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        calls.append(type(module).__name__)
        if "attention_mask" not in named:
            raise ModelError(f"{type(module).__name__} is given no attention_mask by name: knockout does not know it")
        hidden = named["hidden_states"] if "hidden_states" in named else inputs[0]
        return inputs, {**named, "attention_mask": _with(named["attention_mask"], pairs, hidden.dtype)}

    with ExitStack() as stack:
        for layer in layers:
            path = layout.place(Site("attention", layer)).path.rpartition(".")[0]
            attention = layout.model.get_submodule(path)
            stack.callback(attention.register_forward_pre_hook(before, with_kwargs=True).remove)
        yield
    if len(calls) != len(layers):
        raise ModelError(
            f"{len(calls)} of {len(layers)} attention modules were called: the knockout did not take place"
        )


def _with(mask: torch.Tensor | None, pairs: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The mask with these pairs blocked, shape (rows, 1, queries, keys)."""
    if mask is None:
        length = pairs.shape[-1]
        mask = torch.ones(length, length, dtype=torch.bool, device=pairs.device).tril()[None, None]
    if mask.dim() != 4:
        raise ModelError(f"the attention mask has shape {tuple(mask.shape)}: expected (rows, 1, queries, keys)")
    blocked = pairs[:, None].to(mask.device)
    if mask.dtype == torch.bool:
        return mask & ~blocked
    return torch.where(blocked, torch.finfo(dtype).min, mask)
