"""Where the answers of two models to one question part: the first token in which they differ."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from uphold.core.records import Record
from uphold.measure.answer import questions
from uphold.models.encode import Encoder
from uphold.tasks.base import Instance, Task


class Fork(NamedTuple):
    """One instance that two models answer differently."""

    id: str
    """Of the instance."""
    tokens: tuple[int, ...]
    """The question, and what both answers begin with."""
    old: int
    """The token with which the old model's answer goes on."""
    new: int
    """The new model's."""


@dataclass(frozen=True)
class Forks:
    """Forks of one kind."""

    rows: tuple[Fork, ...]
    left_out: int
    """Instances whose answers are the same tokens, or are asked for after different texts."""

    def batches(self, tokens: int) -> list[tuple[Fork, ...]]:
        """Rows of like length together, at most `tokens` padded tokens at once (a longer row is alone)."""
        ordered = sorted(self.rows, key=lambda row: (len(row.tokens), row.id))
        found: list[list[Fork]] = []
        for row in ordered:
            if not found or (len(found[-1]) + 1) * len(row.tokens) > tokens:
                found.append([])
            found[-1].append(row)
        return [tuple(batch) for batch in found]


def forks(task: Task, pairs: Iterable[tuple[Instance, Record, Record]], encoder: Encoder, end: int | None) -> Forks:
    """Where the answers of each pair of records part.

    Args:
        task: that was asked.
        pairs: an instance, the old model's record, and the new model's.
        encoder: of the tokenizer that both models share.
        end: the token that ends a written answer.
    """
    found: list[Fork] = []
    left_out = 0
    for instance, old, new in pairs:
        fork = _fork(task, instance, old.output, new.output, encoder, end)
        if fork is None:
            left_out += 1
        else:
            found.append(fork)
    return Forks(tuple(found), left_out)


def padded(rows: Sequence[Fork], device: torch.device) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Rows as a batch, padded on the right, and the position of each row's last token."""
    length = max(len(row.tokens) for row in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, : len(row.tokens)] = torch.tensor(row.tokens)
        mask[index, : len(row.tokens)] = 1
    at = mask.sum(1) - 1
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}, at.to(device)


def _fork(task: Task, instance: Instance, old: str, new: str, encoder: Encoder, end: int | None) -> Fork | None:
    if task.kind == "choice":
        asked = dict(zip(instance.options, questions(task, [instance])[0], strict=False))
        if old not in asked or new not in asked or asked[old][0] != asked[new][0]:
            return None
        pairs = [asked[old], asked[new]]
    else:
        # A written answer is what came after the prompt, the space before it included.
        pairs = [(instance.prompt, text) for text in (old, new)]
        if not all(text.strip() for _, text in pairs):
            return None
    ours, theirs = encoder.pairs(pairs)
    last = [end] if task.kind == "generate" and end is not None else []
    mine, other = [*ours.prompt, *ours.answer, *last], [*theirs.prompt, *theirs.answer, *last]
    shared = next((place for place, (a, b) in enumerate(zip(mine, other, strict=False)) if a != b), None)
    if not shared:
        return None
    return Fork(instance.id, tuple(mine[:shared]), mine[shared], other[shared])
