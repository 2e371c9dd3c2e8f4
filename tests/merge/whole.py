"""Merging tensors in memory, cut into any chunks, by the merge methods alone."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from uphold.core.registry import method
from uphold.merge.protocol import REQUIRED, Chunk, MergeMethod, Settings

NO_CHUNKS = 1 << 40


def random_numbers(seed: int, model: int, start: int, count: int) -> np.ndarray:
    """Numbers that depend on the place only."""
    return np.random.Generator(np.random.Philox([seed, model])).random(start + count, dtype=np.float32)[start:]


@dataclass(frozen=True)
class WholeView:
    """A tensor of all models, in memory."""

    base: torch.Tensor | None
    models: Sequence[torch.Tensor]
    unit: str
    size: int = NO_CHUNKS
    seed: int = 0
    name: str = "model.layers.0.weight"

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.models[0].shape)

    def chunks(self) -> Iterator[Chunk]:
        if self.unit == "tensor":
            yield Chunk(0, self.base, list(self.models))
            return
        columns = (self.shape[-1] if self.shape else 1) if self.unit == "row" else 1
        rows = self.models[0].numel() // columns if columns else 0

        def part(tensor: torch.Tensor, start: int) -> torch.Tensor:
            flat = tensor.reshape(-1, columns) if self.unit == "row" else tensor.reshape(-1)
            return flat[start : start + self.size]

        for start in range(0, rows, self.size):
            base = None if self.base is None else part(self.base, start)
            yield Chunk(start * columns, base, [part(one, start) for one in self.models])

    def uniform(self, model: int, start: int, count: int) -> np.ndarray:
        return random_numbers(self.seed, model, start, count)


@functools.cache
def instance(name: str) -> MergeMethod:
    """A merge method by its name."""
    made: MergeMethod = method("merge", name).function()
    return made


def settings(
    name: str, models: int, per_model: Mapping[str, Sequence[Any]], base: Mapping[str, Any], options: Mapping[str, Any]
) -> Settings:
    """Parameters, with their defaults where nothing is said."""
    known = {one.name: one for one in instance(name).parameters}
    assert set(known) >= {*per_model, *base, *options}, "a parameter that the method does not have"
    own = []
    for index in range(models):
        own.append({})
        for one in known.values():
            if one.per_model:
                values = per_model.get(one.name)
                own[-1][one.name] = options.get(one.name, one.default) if values is None else values[index]
    shared = {one.name: options.get(one.name, one.default) for one in known.values() if not one.per_model}
    assert REQUIRED not in [*shared.values(), *(value for one in own for value in one.values())]
    return Settings(own, shared, base)


def merged(
    name: str,
    models: Sequence[torch.Tensor],
    base: torch.Tensor | None = None,
    *,
    size: int = NO_CHUNKS,
    seed: int = 0,
    weights: Sequence[float] | None = None,
    per_model: Mapping[str, Sequence[Any]] | None = None,
    base_settings: Mapping[str, Any] | None = None,
    **options: Any,
) -> torch.Tensor:
    """One tensor merged; `options` holds for all models where a parameter is per model."""
    chosen = instance(name)
    by_model = dict(per_model or {}) | ({} if weights is None else {"weight": weights})
    resolved = settings(name, len(models), by_model, base_settings or {}, options)
    view = WholeView(base, models, chosen.unit, size, seed)
    surveyed = chosen.survey(iter([(view, resolved)]))
    prepared = chosen.prepare(view, resolved, surveyed)
    before = [one.clone() for one in (*models, *([] if base is None else [base]))]
    parts = [chosen.combine(chunk, resolved, prepared) for chunk in view.chunks()]
    for chunk, part in zip(view.chunks(), parts, strict=True):
        assert part.shape == chunk.models[0].shape
        assert part.dtype == torch.float32
    after = (*models, *([] if base is None else [base]))
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True)), "inputs were written to"
    whole = torch.cat([part.reshape(-1) for part in parts]) if parts else models[0].reshape(-1)
    return whole.reshape(models[0].shape)
