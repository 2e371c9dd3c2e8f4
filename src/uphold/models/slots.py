"""Decoding in slots: a row that ends makes room for the next one at once.

Every slot holds the keys and values of one row from position 0 on, so rows of any length stand side by side without
padding between them; a mask shows each row its own tokens only. Prompts are read apart, many in a forward pass, and
what they begin with alike is read once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

from uphold.models.attention import mask_for, max_length, predictions, read_header
from uphold.models.decoding import Answer, Ending, Sampling
from uphold.models.token_tree import rounded

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from uphold.models.engine import Meter

FEWEST = 8
"""Rows and lengths are padded to a multiple of this, so that CPU kernels do the same sums for a row whatever stands
beside it."""
VISIBLE = 64
"""The number of keys that a decoding step looks at is padded to a multiple of this, for the same reason."""


@dataclass(frozen=True)
class Prompt:
    """A row that waits for a slot."""

    index: int
    """Where it stands among the prompts that were given."""
    tokens: Sequence[int]
    generator: torch.Generator | None
    most: int | None = None
    """Tokens that the model has room for behind it; None for as many as are asked for."""


class SlotLayer(CacheLayerMixin):  # type: ignore[misc]  # transformers is not typed
    """Keys and values of all slots in one layer, shape (slots, heads, capacity, width)."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, at: SlotPositions) -> None:
        super().__init__()
        self.keys, self.values, self._at = keys, values, at
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """There is nothing to prepare."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store one new token per slot; returns what the longest row sees."""
        rows, positions = self._at.cells(self.keys.device)
        self.keys[rows, :, positions] = key_states[:, :, 0]
        self.values[rows, :, positions] = value_states[:, :, 0]
        return self.keys[:, :, : self._at.visible], self.values[:, :, : self._at.visible]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys that a step sees."""
        return self._at.visible, 0

    def get_seq_length(self) -> int:
        """Tokens before the step, in the longest row."""
        return self._at.visible - 1

    def get_max_length(self) -> int:
        """No maximum that the model should know of."""
        return -1


class SlotPositions:
    """Where each slot stands; shared by all layers."""

    def __init__(self, slots: int, capacity: int) -> None:
        self.lengths = torch.zeros(slots, dtype=torch.long)
        """Tokens stored per slot."""
        self.capacity = capacity
        """The most tokens in a slot."""
        self.visible = 0
        """Keys that the present step looks at."""
        self._cells: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}

    def begin_step(self) -> None:
        """Fix for one step what all layers look at."""
        self.visible = min(rounded(int(self.lengths.max()) + 1, VISIBLE), self.capacity)
        self._cells = {}

    def cells(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """(slot, position) of the tokens of this step, moved to a device once a step."""
        if device not in self._cells:
            self._cells[device] = (torch.arange(len(self.lengths), device=device), self.lengths.to(device))
        return self._cells[device]


class SlotDecoder:
    """Decodes a queue of prompts in a fixed number of slots."""

    def __init__(
        self, model: PreTrainedModel, ending: Ending, sampling: Sampling, slots: int, capacity: int, meter: Meter
    ) -> None:
        """Prepare slots.

        Args:
            model: a causal language model that takes masks (`attention.reads_masks`).
            ending: when answers end.
            sampling: how tokens are chosen.
            slots: rows that are decoded side by side.
            capacity: the most tokens a row may have, prompt and answer.
            meter: counts tokens, empty slots included.
        """
        self.model, self.ending, self.sampling, self.meter = model, ending, sampling, meter
        self._at = SlotPositions(rounded(slots, FEWEST), rounded(capacity, VISIBLE))
        self._cache: Cache | None = None
        self._rows: list[tuple[Prompt, Answer] | None] = [None] * len(self._at.lengths)
        self._next = torch.zeros(len(self._rows), dtype=torch.long)

    def run(self, prompts: Sequence[Prompt], header: Sequence[int] = ()) -> Iterator[tuple[Prompt, Answer]]:
        """Yield each prompt with its answer as it ends; all prompts begin with `header`, which is read once."""
        shared = read_header(self.model, header) if header else None
        if header:
            self.meter.add(len(header))
        queue = list(reversed(prompts))
        while True:
            free = [slot for slot, row in enumerate(self._rows) if row is None]
            # A few rows at a time are as cheap to read as one, but slots should not stand empty for long.
            if queue and (len(free) >= max(1, len(self._rows) // 8) or len(free) == len(self._rows)):
                new = {slot: queue.pop() for slot in free[: len(queue)]}
                yield from self._fill(new, shared, len(header))
            elif all(row is None for row in self._rows):
                return
            else:
                self._shrink(len(free))
                yield from self._step()

    def _fill(self, new: dict[int, Prompt], header: Cache | None, skip: int) -> Iterator[tuple[Prompt, Answer]]:
        """Read prompts into free slots and choose their first tokens."""
        buckets: dict[int, list[int]] = {}
        for slot, prompt in new.items():
            buckets.setdefault(rounded(len(prompt.tokens) - skip, FEWEST), []).append(slot)
        for length, slots in sorted(buckets.items()):
            logits = self._read([new[slot].tokens[skip:] for slot in slots], slots, length, header, skip)
            tokens = self.sampling.choose(logits, [new[slot].generator for slot in slots])
            for slot, token in zip(slots, tokens, strict=True):
                row = (new[slot], Answer(self.ending, new[slot].most))
                if row[1].add(token):
                    yield row
                else:
                    self._rows[slot] = row
                    self._at.lengths[slot] = len(new[slot].tokens)
                    self._next[slot] = token

    def _read(
        self, rows: Sequence[Sequence[int]], slots: Sequence[int], length: int, header: Cache | None, skip: int
    ) -> torch.Tensor:
        """Read rows of up to `length` tokens after the header, keep their states, and predict what follows."""
        most = max_length(self.model) or skip + length
        if header is None:
            # Without positions of ours, padding must not stand behind the model's last one.
            length = min(length, most)
        self.meter.add(length * len(rows))
        input_ids = torch.zeros(len(rows), length, dtype=torch.long)
        for index, row in enumerate(rows):
            input_ids[index, : len(row)] = torch.tensor(row)
        cache = DynamicCache()
        arguments: dict[str, Any] = {"input_ids": input_ids.to(self.model.device), "use_cache": True}
        if header is not None:
            seen = torch.ones(len(rows), length, skip + length, dtype=torch.bool).tril(skip)
            positions = torch.arange(skip, skip + length).clamp(max=most - 1).expand(len(rows), -1)
            arguments |= {
                "attention_mask": mask_for(self.model, seen),
                "position_ids": positions.to(self.model.device),
            }
            cache = DynamicCache()
            for index, layer in enumerate(header.layers):
                states = (layer.keys, layer.values)
                cache.update(*(state.expand(len(rows), -1, -1, -1) for state in states), index)
        at = torch.arange(rounded(len(rows), FEWEST)).clamp(max=len(rows) - 1)
        last = torch.tensor([len(row) - 1 for row in rows])[at]
        logits = predictions(self.model, arguments | {"past_key_values": cache}, at, last)
        self._keep(cache, slots)
        return logits[: len(rows)]

    def _keep(self, cache: DynamicCache, slots: Sequence[int]) -> None:
        if self._cache is None:
            self._cache = Cache(
                layers=[
                    SlotLayer(self._empty(layer.keys), self._empty(layer.values), self._at) for layer in cache.layers
                ]
            )
        for own, layer in zip(self._cache.layers, cache.layers, strict=True):
            length = layer.keys.shape[2]
            own.keys[list(slots), :, :length] = layer.keys
            own.values[list(slots), :, :length] = layer.values

    def _empty(self, state: torch.Tensor) -> torch.Tensor:
        return state.new_zeros(len(self._rows), state.shape[1], self._at.capacity, state.shape[3])

    def _step(self) -> Iterator[tuple[Prompt, Answer]]:
        """One more token for every row."""
        self.meter.add(len(self._rows))
        self._at.begin_step()
        slots = torch.arange(len(self._rows))
        seen = torch.arange(self._at.visible) <= self._at.lengths[:, None]
        arguments = {
            "input_ids": self._next[:, None].to(self.model.device),
            "position_ids": self._at.lengths[:, None].to(self.model.device),
            "attention_mask": mask_for(self.model, seen[:, None]),
            "past_key_values": self._cache,
            "use_cache": True,
        }
        logits = predictions(self.model, arguments, slots, torch.zeros_like(slots))
        live = [slot for slot, row in enumerate(self._rows) if row is not None]
        rows = [row for row in self._rows if row is not None]
        tokens = self.sampling.choose(logits[live], [prompt.generator for prompt, _ in rows])
        for slot, token, (prompt, answer) in zip(live, tokens, rows, strict=True):
            self._at.lengths[slot] += 1
            self._next[slot] = token
            if answer.add(token):
                # An empty slot goes on at position 0: it must neither run over the end nor decide what others look at.
                self._rows[slot], self._at.lengths[slot] = None, 0
                yield prompt, answer

    def _shrink(self, free: int) -> None:
        """Give up half of the slots and more when they stand empty: near the end, when nothing waits."""
        live = [slot for slot, row in enumerate(self._rows) if row is not None]
        kept = rounded(len(live), FEWEST)
        if free < len(self._rows) / 2 or kept == len(self._rows) or self._cache is None:
            return
        empty = [slot for slot, row in enumerate(self._rows) if row is None]
        chosen = live + empty[: kept - len(live)]
        self._rows = [self._rows[slot] for slot in chosen]
        self._next, self._at.lengths = self._next[chosen], self._at.lengths[chosen]
        for layer in self._cache.layers:
            layer.keys, layer.values = layer.keys[chosen], layer.values[chosen]
