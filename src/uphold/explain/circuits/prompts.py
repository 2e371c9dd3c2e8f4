"""Prompts with an answer, and the positions in them that have a part in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch

from uphold.core.errors import EmptyError, UsageError, unknown_name
from uphold.models.sites.layout import Layout
from uphold.models.sites.site import Site

OTHER = "other"
"""The role of all positions that have no role of their own."""
BATCH = 256
"""Prompts in one forward pass."""


@dataclass(frozen=True)
class Prompts:
    """Prompts of one task, one per row, padded on the right."""

    inputs: Mapping[str, torch.Tensor]
    """`input_ids`, and `attention_mask` where rows are padded, shape (rows, positions), int64."""
    at: torch.Tensor
    """The position whose logits answer, shape (rows,)."""
    answers: torch.Tensor
    """The right next token there, shape (rows,)."""
    foils: torch.Tensor
    """Wrong answers that could be thought of, shape (rows, k): what the logit difference is taken to."""
    roles: Mapping[str, torch.Tensor]
    """By role, its position in each row, shape (rows,)."""

    def __post_init__(self) -> None:
        rows, length = self.inputs["input_ids"].shape
        if not rows:
            raise EmptyError("no prompts: at least one is needed")
        if OTHER in self.roles:
            raise UsageError(f"the role '{OTHER}' stands for all positions without a role: give this one another name")
        for name, values in {"at": self.at, "answers": self.answers, **self.roles}.items():
            if values.shape != (rows,):
                raise UsageError(f"'{name}' of the prompts has shape {tuple(values.shape)}: expected ({rows},)")
        for name, values in {"at": self.at, **self.roles}.items():
            if not 0 <= int(values.min()) <= int(values.max()) < length:
                raise UsageError(f"'{name}' of the prompts names a position outside 0 to {length - 1}")
        if self.foils.dim() != 2 or len(self.foils) != rows:
            raise UsageError(f"'foils' of the prompts has shape {tuple(self.foils.shape)}: expected ({rows}, k)")

    def __len__(self) -> int:
        return len(self.at)

    @property
    def length(self) -> int:
        """Number of positions."""
        return self.inputs["input_ids"].shape[1]

    def rows(self, chosen: torch.Tensor | slice) -> Prompts:
        """The same for some rows, given by number, by a bool mask or by a slice."""
        return Prompts(
            {name: values[chosen] for name, values in self.inputs.items()},
            self.at[chosen],
            self.answers[chosen],
            self.foils[chosen],
            {name: positions[chosen] for name, positions in self.roles.items()},
        )

    def batches(self, size: int = BATCH) -> Iterator[Prompts]:
        """All rows in order, at most `size` at once."""
        for begin in range(0, len(self), size):
            yield self.rows(slice(begin, begin + size))

    def to(self, device: torch.device | str) -> Prompts:
        """The same on another device."""
        return Prompts(
            {name: values.to(device) for name, values in self.inputs.items()},
            self.at.to(device),
            self.answers.to(device),
            self.foils.to(device),
            {name: positions.to(device) for name, positions in self.roles.items()},
        )

    def mask(self, role: str) -> torch.Tensor:
        """Where a role is, bool, shape (rows, positions).

        Raises:
            UsageError: the prompts have no such role.
        """
        places = torch.arange(self.length, device=self.at.device)[None]
        if role == OTHER:
            taken = torch.zeros(len(self), self.length, dtype=torch.bool, device=self.at.device)
            for positions in self.roles.values():
                taken |= places == positions[:, None]
            return ~taken
        if role not in self.roles:
            raise unknown_name("role", role, [*self.roles, OTHER])
        return places == self.roles[role][:, None]


class Node(NamedTuple):
    """One attention head where one role is: at other roles it is another node."""

    layer: int
    head: int
    role: str

    @property
    def site(self) -> Site:
        """What it writes: the input of the output projection."""
        return Site("head", self.layer, self.head)

    def __str__(self) -> str:
        return f"{self.site}@{self.role}"


def nodes_of(layout: Layout, roles: Mapping[str, torch.Tensor] | list[str] | tuple[str, ...]) -> list[Node]:
    """Every head at each of these roles, by layer and head."""
    return [Node(layer, head, role) for layer in range(layout.layers) for head in range(layout.heads) for role in roles]


def halves(prompts: Prompts, seed: int) -> tuple[Prompts, Prompts]:
    """One random half of the prompts to choose with, and the other to measure on.

    Raises:
        EmptyError: there are fewer than two.
    """
    if len(prompts) < 2:
        raise EmptyError("one prompt cannot be split into one half to choose with and one to measure on")
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(seed)).to(prompts.at.device)
    middle = len(prompts) // 2
    return prompts.rows(order[:middle]), prompts.rows(order[middle:])
