"""Pairs of inputs that differ in one feature, and what a site holds in each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from uphold.core.errors import DataError, EmptyError, ModelError
from uphold.models.sites.hooks import Inputs
from uphold.models.sites.layout import Layout
from uphold.models.sites.run import last_positions, read, rows_of
from uphold.models.sites.site import Site


@dataclass(frozen=True, eq=False)
class Pairs:
    """n pairs of a base and a source input."""

    base: Inputs
    """What is patched."""
    source: Inputs
    """Where the feature's other value comes from; the base itself where only the model version differs."""
    answers: torch.Tensor
    """The base's answer: an index into the logits, int64 of shape (n,)."""
    expected: torch.Tensor
    """The answer that the base would have with the source's value of the feature, shape (n,)."""
    at: torch.Tensor | None = None
    """The position whose logits count, shape (n,); of decoders the last one where None."""
    positions: torch.Tensor | None = None
    """The position that is patched, shape (n,); `at` where None, and no meaning where a site has no positions."""
    source_positions: torch.Tensor | None = None
    """The position that the source's activations are of; the last one of decoders or `positions` where None."""
    classes: tuple[torch.Tensor, torch.Tensor] | None = None
    """The feature's value in base and source, each int64 of shape (n,); the answers and expected answers where None.
    Mean difference and probe go by them."""
    clusters: torch.Tensor | None = None
    """Which pairs depend on each other (share an instance), int64 of shape (n,); none where None."""

    def __post_init__(self) -> None:
        if not len(self):
            raise EmptyError("no pairs: expected at least one base and one source input")
        lengths = {"base": _length(self.base), "source": _length(self.source), "expected": len(self.expected)}
        wrong = {name: length for name, length in lengths.items() if length != len(self)}
        if wrong:
            raise DataError(f"{len(self)} answers, but other numbers of {wrong}: expected one of each per pair")
        same = int((self.answers == self.expected).sum())
        if same:
            raise DataError(
                f"{same} of {len(self)} pairs expect the answer that the base has already: leave them out, a patch "
                "that changes nothing would pass for a success"
            )

    def __len__(self) -> int:
        return len(self.answers)

    def chosen(self, rows: torch.Tensor | slice) -> Pairs:
        """The same of some pairs."""

        def cut(value: torch.Tensor | None) -> torch.Tensor | None:
            return None if value is None else value[rows]

        return Pairs(
            rows_of(self.base, rows),
            rows_of(self.source, rows),
            self.answers[rows],
            self.expected[rows],
            cut(self.at),
            cut(self.positions),
            cut(self.source_positions),
            None if self.classes is None else (self.classes[0][rows], self.classes[1][rows]),
            cut(self.clusters),
        )

    def batches(self, size: int) -> Iterator[Pairs]:
        """In order, at most `size` at a time."""
        for start in range(0, len(self), size):
            yield self.chosen(slice(start, start + size))

    @property
    def counting(self) -> torch.Tensor | None:
        """The position whose logits count; None where the model has none."""
        return last_positions(self.base) if self.at is None and _is_text(self.base) else self.at  # type: ignore[arg-type]

    @property
    def patched(self) -> torch.Tensor | None:
        """The position that is patched."""
        return self.counting if self.positions is None else self.positions

    @property
    def taken(self) -> torch.Tensor | None:
        """The position in the source."""
        if self.source_positions is not None or self.positions is not None:
            return self.positions if self.source_positions is None else self.source_positions
        return last_positions(self.source) if _is_text(self.source) else self.at  # type: ignore[arg-type]

    @property
    def values(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The feature's value in base and source."""
        return (self.answers, self.expected) if self.classes is None else self.classes


def activations(layout: Layout, pairs: Pairs, site: Site, *, source: bool = False, rows: int = 64) -> torch.Tensor:
    """What a site holds at the position that is patched.

    Args:
        layout: of the model that is run; another version's for the source, where that is wanted.
        pairs: what it is run on.
        site: where.
        source: read the sources and not the bases.
        rows: inputs in one forward pass.

    Returns:
        Shape (n, width), in the model's dtype.

    Raises:
        ModelError: the site holds something else than a vector, or one per position.
    """
    parts = []
    for some in pairs.batches(rows):
        inputs, positions = (some.source, some.taken) if source else (some.base, some.patched)
        found, _ = read(layout, inputs, [site], at=positions if _is_text(inputs) else None)
        parts.append(at_positions(found[site], positions, site))
    return torch.cat(parts)


def at_positions(values: torch.Tensor, positions: torch.Tensor | None, site: Site) -> torch.Tensor:
    """The vector of each row at its position, shape (rows, width).

    Raises:
        ModelError: there is no such vector.
    """
    if values.dim() == 2:
        return values
    if values.dim() != 3 or positions is None:
        raise ModelError(
            f"site {site} holds {tuple(values.shape)}: expected (rows, width), or (rows, positions, width) and "
            "positions in the pairs"
        )
    return values[torch.arange(len(values), device=values.device), positions.to(values.device)]


def shared_pairs(train: Pairs, test: Pairs) -> int:
    """How many pairs of `test` are in `train` as well, base and source alike."""
    known = set(_keys(train))
    return sum(key in known for key in _keys(test))


def _keys(pairs: Pairs) -> Iterator[bytes]:
    for base, source in zip(_tensor(pairs.base), _tensor(pairs.source), strict=True):
        yield base.cpu().numpy().tobytes() + b"|" + source.cpu().numpy().tobytes()


def _tensor(inputs: Inputs) -> torch.Tensor:
    """What tells inputs apart."""
    if isinstance(inputs, torch.Tensor):
        return inputs
    found: torch.Tensor = inputs["input_ids"] if "input_ids" in inputs else next(iter(inputs.values()))
    return found


def _is_text(inputs: Inputs) -> bool:
    return isinstance(inputs, Mapping) and "input_ids" in inputs


def _length(inputs: Inputs) -> int:
    if isinstance(inputs, torch.Tensor):
        return len(inputs)
    return max((len(value) for value in inputs.values() if isinstance(value, torch.Tensor)), default=0)
