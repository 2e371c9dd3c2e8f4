"""How the models of a merge agree, tensor by tensor, and what the merge did to their changes.

With a base, a model's change is delta_i = theta_i - theta_0; without one, the weights themselves are compared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import torch

from uphold.merge.engine.plan import Planned
from uphold.merge.protocol import Chunk

_SHOWN = 20


@dataclass(frozen=True)
class TensorDiagnosis:
    """One tensor."""

    elements: int
    cosines: tuple[float | None, ...]
    """Cosine of the changes of each pair of models, (0, 1), (0, 2), ..., (1, 2), ...; None where one has none."""
    conflicts: float
    """Percentage of the elements that at least two models changed, in which they changed them in both directions."""
    shares: tuple[float | None, ...]
    """Norm of each model's change, relative to the base's; None without a base."""
    norm_change: float | None
    """Percentage by which the result's norm differs from the base's, or from the mean of the models' norms."""
    kept: float | None
    """Norm of the result's change relative to the mean norm of the models' changes; None without a base."""

    @property
    def cosine(self) -> float | None:
        """Mean over the pairs."""
        known = [value for value in self.cosines if value is not None]
        return sum(known) / len(known) if known else None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {**asdict(self), "cosines": list(self.cosines), "shares": list(self.shares)}


class Observer:
    """Adds up what a diagnosis needs, chunk by chunk."""

    def __init__(self, tensor: Planned) -> None:
        """Start with nothing seen of `tensor`."""
        count = len(tensor.models)
        self._elements = tensor.elements
        self._dots = torch.zeros(count, count, dtype=torch.float64)
        self._norms = torch.zeros(count, dtype=torch.float64)
        self._base = self._result = self._moved = 0.0
        self._has_base = tensor.base is not None
        self._shared = self._torn = 0

    def see(self, chunk: Chunk, merged: torch.Tensor) -> None:
        """One chunk, and what became of it."""
        changes = list(chunk.changes if self._has_base else chunk.models)
        flat = [change.reshape(-1) for change in changes]
        for one, two in combinations(range(len(flat)), 2):
            self._dots[one, two] += _dot(flat[one], flat[two])
        for index, change in enumerate(flat):
            self._dots[index, index] += _dot(change, change)
            self._norms[index] += _dot(chunk.models[index].reshape(-1), chunk.models[index].reshape(-1))
        if len(flat) > 1:
            up = torch.zeros(flat[0].shape, dtype=torch.int16)
            down = torch.zeros_like(up)
            for change in flat:
                up += change > 0
                down += change < 0
            self._shared += int((up + down > 1).sum())
            self._torn += int(((up > 0) & (down > 0)).sum())
        result = merged.reshape(-1)
        self._result += _dot(result, result)
        if chunk.base is not None:
            base = chunk.base.reshape(-1)
            self._base += _dot(base, base)
            moved = result - base
            self._moved += _dot(moved, moved)

    def diagnosis(self) -> TensorDiagnosis:
        """Of all chunks that were seen."""
        lengths = self._dots.diagonal().sqrt().tolist()
        cosines = []
        for one, two in combinations(range(len(lengths)), 2):
            cosines.append(_ratio(float(self._dots[one, two]), lengths[one] * lengths[two]))
        before = math.sqrt(self._base) if self._has_base else _mean(self._norms.sqrt().tolist())
        mean = _mean(lengths)
        grown = _ratio(math.sqrt(self._result), before)
        return TensorDiagnosis(
            self._elements,
            tuple(cosines),
            100 * self._torn / self._shared if self._shared else 0.0,
            tuple(_ratio(length, before) if self._has_base else None for length in lengths),
            None if grown is None else 100 * (grown - 1),
            _ratio(math.sqrt(self._moved), mean) if self._has_base else None,
        )


def _dot(one: torch.Tensor, two: torch.Tensor) -> float:
    return float(torch.dot(one, two))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _ratio(part: float, whole: float) -> float | None:
    """None where there is none: of nothing, or of what is no number."""
    return part / whole if whole and math.isfinite(part) and math.isfinite(whole) else None


def diagnostics_table(diagnoses: Mapping[str, TensorDiagnosis], shown: int = _SHOWN) -> str:
    """The tensors in which the models agree least, as a text table."""
    worst = sorted(diagnoses.items(), key=lambda entry: (-entry[1].conflicts, entry[0]))
    width = max((len(name) for name, _ in worst[:shown]), default=6)
    lines = [f"{'tensor':{width}}  cosine  conflicts %  norm %   kept"]
    for name, one in worst[:shown]:
        lines.append(
            f"{name:{width}}  {_cell(one.cosine, '6.3f')}  {one.conflicts:11.1f}  "
            f"{_cell(one.norm_change, '+6.2f')}  {_cell(one.kept, '5.3f')}"
        )
    if len(worst) > shown:
        lines.append(f"... and {len(worst) - shown} more with fewer conflicts")
    return "\n".join(lines)


def _cell(value: float | None, form: str) -> str:
    return format("-", f">{form.lstrip('+').split('.')[0]}") if value is None else format(value, form)
