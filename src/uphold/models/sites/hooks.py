"""Reading and overwriting sites while a model runs. Hooks come off again, also after an exception."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from uphold.core.errors import ModelError
from uphold.models.sites.layout import Layout, Place
from uphold.models.sites.site import Site

Inputs = torch.Tensor | Mapping[str, Any]
"""What a model is called with: one tensor, or arguments by name (`input_ids`, `attention_mask`, ...)."""
Value = torch.Tensor | Callable[[torch.Tensor], torch.Tensor]
Step = Callable[[torch.Tensor, Place], torch.Tensor]


@dataclass(frozen=True)
class Edit:
    """What a site is to hold instead."""

    site: Site
    value: Value
    """The new numbers, of a shape that expands to the site's (rows, ..., width), or a function of the old ones."""
    where: torch.Tensor | None = None
    """bool, of a shape that expands to the site's without its width, such as (rows, positions): what is overwritten.
    All where None."""
    rows: slice | None = None
    """The rows that `value` and `where` are of, where they are not of all: what packs several edits into one pass."""


class _Spot:
    """All that happens on one side of one module."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.steps: list[Callable[[torch.Tensor], torch.Tensor]] = []
        self.calls = 0

    def hooked(self) -> Any:
        if self.place.side == "in":
            return self.place.module.register_forward_pre_hook(self._before)
        return self.place.module.register_forward_hook(self._after)

    def _before(self, module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self._step(inputs[0]), *inputs[1:])

    def _after(self, module: Any, inputs: Any, output: Any) -> Any:
        if isinstance(output, torch.Tensor):
            return self._step(output)
        return (self._step(output[0]), *output[1:])

    def _step(self, values: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        for step in self.steps:
            values = step(values)
        return values


@contextmanager
def hooked(layout: Layout, steps: Sequence[tuple[Site, Step]]) -> Iterator[None]:
    """Run `step(values, place)` on what each site's module takes or gives, in the order given.

    Raises:
        ModelError: on leaving, a module was not called exactly once.
    """
    spots: dict[tuple[str, str], _Spot] = {}
    for site, step in steps:
        place = layout.place(site)
        spot = spots.setdefault((place.path, place.side), _Spot(place))
        spot.steps.append(lambda values, step=step, place=place: step(values, place))  # type: ignore[misc]
    with ExitStack() as stack:
        for spot in spots.values():
            stack.callback(spot.hooked().remove)
        yield
    for spot in spots.values():
        if spot.calls != 1:
            how = f"called {spot.place.path} {spot.calls} times" if spot.calls else f"did not call {spot.place.path}"
            raise ModelError(
                f"the model {how} in one forward pass: what is read or written there would not be what it says"
            )


def sliced(values: torch.Tensor, place: Place) -> torch.Tensor:
    """The part of a module's numbers that a place is."""
    return values[..., place.start : place.stop] if place.stop else values


@contextmanager
def reading(layout: Layout, sites: Sequence[Site]) -> Iterator[dict[Site, torch.Tensor]]:
    """A dictionary that holds, after a forward pass, what each site held; with its graph where gradients are on."""
    found: dict[Site, torch.Tensor] = {}

    def keep(site: Site) -> Step:
        def step(values: torch.Tensor, place: Place) -> torch.Tensor:
            part = sliced(values, place)
            # What is read must not change when a later step writes in place, and not hold the whole module's numbers.
            found[site] = part if part.requires_grad else part.clone()
            return values

        return step

    with hooked(layout, [(site, keep(site)) for site in dict.fromkeys(sites)]):
        yield found


@contextmanager
def writing(layout: Layout, edits: Sequence[Edit]) -> Iterator[None]:
    """Overwrite sites in the next forward pass.

    Raises:
        ModelError: a value does not fit its site; or, on leaving, an edit did not take place exactly once.
    """
    taken: set[tuple[str, str]] = set()

    def put(edit: Edit) -> Step:
        def step(values: torch.Tensor, place: Place) -> torch.Tensor:
            # The module's own numbers are copied once, however many edits follow.
            first = (place.path, place.side) not in taken
            taken.add((place.path, place.side))
            return written(values.clone() if first else values, edit, place.start, place.stop)

        return step

    with hooked(layout, [(edit.site, put(edit)) for edit in edits]):
        yield


def written(values: torch.Tensor, edit: Edit, start: int = 0, stop: int = 0) -> torch.Tensor:
    """Make an edit of `values`, in place, in the last dimension from `start` to `stop` (all of it where `stop` is 0).

    Raises:
        ModelError: the edit does not fit.
    """
    part = values if edit.rows is None else values[edit.rows]
    part = part[..., start:stop] if stop else part
    new = edit.value(part.clone()) if callable(edit.value) else edit.value
    shape = tuple(new.shape)
    try:
        new = new.to(device=part.device, dtype=part.dtype).expand_as(part)
        if edit.where is not None:
            new = torch.where(edit.where.to(part.device)[..., None].expand_as(part), new, part)
    except RuntimeError as error:
        mask = f" with a mask of {tuple(edit.where.shape)}" if edit.where is not None else ""
        raise ModelError(
            f"site {edit.site} holds {tuple(part.shape)}: a value of {shape}{mask} does not fit"
        ) from error
    part.copy_(new)
    return values
