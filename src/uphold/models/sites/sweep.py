"""Many patches, each by itself: packed into few forward passes that begin where the patch does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from uphold.core.progress import Progress, silent
from uphold.models.sites.hooks import Edit
from uphold.models.sites.layout import Layout
from uphold.models.sites.resume import Kept, one_position, resume
from uphold.models.sites.site import Site

Metric = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Logits (n, V) and the rows that they are of, shape (n,), to a number for each, shape (n,)."""
TOKENS = 4096
_INSIDE = ("head", "query", "attention", "mlp", "hidden")
"""What changes at one position there changes the output of the block at that position alone."""


def sweep(
    layout: Layout,
    kept: Kept,
    candidates: Sequence[Sequence[Edit]],
    metric: Metric,
    *,
    tokens: int = TOKENS,
    progress: Progress = silent,
) -> torch.Tensor:
    """What the metric becomes under each candidate alone.

    Args:
        layout: of the model.
        kept: the run that is patched.
        candidates: edits that are made together, with values and masks of all rows and positions; none for the run
            as it is. Their sites are those of blocks.
        metric: what is measured at the position that counts.
        tokens: positions in one forward pass, over all rows and candidates.
        progress: called after every pass.

    Returns:
        Shape (candidates, rows), float32.
    """
    rows, length = kept.inputs["input_ids"].shape
    every = torch.arange(rows, device=kept.at.device)
    clean = metric(kept.logits, every).float()
    found = clean.expand(len(candidates), -1).clone()
    groups: dict[tuple[int, int, bool], list[int]] = {}
    for number, edits in enumerate(candidates):
        if edits:
            start = _start(edits, length)
            inside = bool(kept.keys) and _is_inside(edits, start, length)
            groups.setdefault((_layer(edits), start, inside), []).append(number)
    done = 0
    for (layer, start, inside), numbers in sorted(groups.items()):
        # Behind the last block a position goes on to its own logits only.
        last = inside and layer == layout.layers - 1
        reached = every[kept.at == start if last else kept.at >= start]
        at_once = max(1, tokens // (length - start))
        for some in torch.split(reached, at_once) if len(reached) else ():
            packed = max(1, at_once // len(some))
            for begin in range(0, len(numbers), packed):
                pack = numbers[begin : begin + packed]
                edits = _packed([candidates[number] for number in pack], some, rows)
                copies = some.repeat(len(pack))
                if inside:
                    output = one_position(layout, kept, edits, layer=layer, position=start, rows=copies)
                    edits = [Edit(Site("residual", layer), output[:, None], _where(edits, len(copies), length))]
                logits = resume(layout, kept, edits, layer=layer + inside, start=start, rows=copies)
                values = metric(logits, copies).float()
                found[torch.tensor(pack)[:, None], some.cpu()] = values.view(len(pack), len(some))
        done += len(numbers)
        progress("patching", done, len(candidates))
    return found


def mask_at(shape: tuple[int, int], positions: int | Sequence[int] | torch.Tensor) -> torch.Tensor:
    """A mask of one position in each row: the same one, or one for each, negative ones counted from the end.

    Args:
        shape: (rows, positions).
        positions: an index, or one per row.
    """
    index = torch.as_tensor(positions).expand(shape[0]) % shape[1]
    return torch.arange(shape[1])[None] == index.cpu()[:, None]


def _layer(edits: Sequence[Edit]) -> int:
    """The block that a forward pass has to begin with."""
    return min(max(edit.site.layer + (edit.site.kind == "residual"), 0) for edit in edits)


def _start(edits: Sequence[Edit], length: int) -> int:
    """The first position that is overwritten in any row."""
    starts = []
    for edit in edits:
        if edit.where is None or edit.where.shape[-1] != length:
            return 0
        columns = edit.where.reshape(-1, length).any(0).nonzero()
        starts.append(int(columns[0]) if len(columns) else length - 1)
    return min(starts)


def _is_inside(edits: Sequence[Edit], start: int, length: int) -> bool:
    """Whether all are in one block and at one position, and nothing else in the block reads what they change."""
    return len({edit.site.layer for edit in edits}) == 1 and all(
        edit.site.kind in _INSIDE
        and edit.where is not None
        and edit.where.shape[-1] == length
        and not bool(edit.where[..., start + 1 :].any())
        for edit in edits
    )


def _where(edits: Sequence[Edit], rows: int, length: int) -> torch.Tensor:
    """Where packed edits overwrite anything, shape (rows, positions)."""
    found = torch.zeros(rows, length, dtype=torch.bool)
    for edit in edits:
        if edit.where is not None and edit.rows is not None:
            found[edit.rows] |= edit.where.cpu()
    return found


def _packed(candidates: Sequence[Sequence[Edit]], rows: torch.Tensor, of: int) -> list[Edit]:
    """One list of edits, each for its candidate's copy of the rows."""
    edits = []
    for number, candidate in enumerate(candidates):
        for edit in candidate:
            value, where = edit.value, edit.where
            if isinstance(value, torch.Tensor) and value.dim() > 2 and len(value) == of:
                value = value[rows.to(value.device)]
            if where is not None and where.dim() > 1 and len(where) == of:
                where = where[rows.to(where.device)]
            span = slice(number * len(rows), (number + 1) * len(rows))
            edits.append(replace(edit, value=value, where=where, rows=span))
    return edits
