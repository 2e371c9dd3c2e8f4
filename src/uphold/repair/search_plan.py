"""What a search tries, and in which order."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

from uphold.core.errors import UpholdError, UsageError
from uphold.core.hashing import sha256_of
from uphold.core.registry import Method, method, methods
from uphold.repair.recipe import configure
from uphold.repair.training import DistillConfig

Kind = Literal["weights", "training", "pair", "input", "other"]
KINDS: Mapping[Kind, str] = {
    "training": "Trained: a compatibility adapter",
    "weights": "Made of the two models' weights",
    "pair": "Both models at inference",
    "input": "From other inputs",
    "other": "Other methods",
}
"""How the command line calls the kinds of methods, in its order."""
DEFAULT = "uphold"
"""The method that is run where none is named."""
_CHEAPEST_FIRST: tuple[Kind, ...] = ("weights", "pair", "training", "other")
_GIVEN = {"old", "new", "task", "out", "config", "store", "progress"}


def kind_of(one: Method) -> Kind:
    """What a method needs and makes.

    A config says so in its class variable `KIND`; without one, those that derive from `DistillConfig` are trained, and
    those that require more arguments than a repair has need other inputs.
    """
    extra = [
        name
        for name, parameter in inspect.signature(one.function).parameters.items()
        if name not in _GIVEN
        and parameter.default is inspect.Parameter.empty
        and parameter.kind not in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    ]
    if extra:
        return "input"
    declared: Kind | None = getattr(one.config, "KIND", None)
    if declared is not None:
        if declared not in KINDS:
            raise UsageError(f"repair method '{one.name}': KIND is {declared!r}, expected one of {', '.join(KINDS)}")
        return declared
    return "training" if one.config is not None and issubclass(one.config, DistillConfig) else "other"


def searched_methods(names: Sequence[str]) -> list[Method]:
    """The methods to try, the cheapest first: those named, or all that need nothing but two models and a task.

    Raises:
        UsageError: a name does not exist, or its method needs other inputs.
    """
    chosen = [method("repair", name) for name in dict.fromkeys(names)] if names else methods("repair")
    for one in chosen:
        if names and kind_of(one) == "input":
            raise UsageError(f"repair method '{one.name}' needs other inputs than two models: a search cannot try it")
    found = [one for one in chosen if kind_of(one) != "input"]
    if not found:
        raise UsageError("there is no repair method to try: 'uphold methods' lists what is registered")
    return sorted(found, key=lambda one: (_CHEAPEST_FIRST.index(kind_of(one)), one.name != DEFAULT, one.name))


@dataclass(frozen=True)
class Proposal:
    """A method with options: what one trial runs."""

    method: Method
    config: Any
    """A frozen dataclass; None for a method without options."""
    changed: Mapping[str, Any]
    """The options in which it differs from the method's own defaults and recipe."""

    @property
    def name(self) -> str:
        """Names the trial's folder: the method, and a hash of the options."""
        options = asdict(self.config) if is_dataclass(self.config) and not isinstance(self.config, type) else None
        return f"{self.method.name}-{sha256_of(options)[:8]}"

    @property
    def label(self) -> str:
        """The method, and what was changed."""
        changes = ", ".join(f"{key} {value}" for key, value in self.changed.items())
        return f"{self.method.name} ({changes})" if changes else self.method.name

    @property
    def size(self) -> float:
        """What its cost grows with: its epochs, where it has any."""
        return float(getattr(self.config, "epochs", 1))


def first_proposal(one: Method, recipe: str | Path, options: Mapping[str, Any], force: bool) -> Proposal:
    """A method as its recipe has it, without controls.

    Args:
        one: the method.
        recipe: see `uphold.repair.recipe.configure`.
        options: values that win over the recipe, where the method has such an option.
        force: go on although the new model is worse than the old one.
    """
    if one.config is None:
        return Proposal(one, None, {})
    names = {entry.name for entry in fields(one.config)}
    given = {key: value for key, value in options.items() if key in names}
    config: Any = configure(one.config(), one.name, recipe, given)
    own = {"controls": False} | ({"force": True} if force else {})
    return Proposal(one, replace(config, **{key: value for key, value in own.items() if key in names}), {})


def neighbours(start: Proposal, default: Proposal) -> Iterator[Proposal | tuple[str, str]]:
    """`start` with one option changed at a time, to each of the values in the config's `SEARCH`, in its order.

    Args:
        start: where to look around.
        default: the method's first proposal, from which changes are counted.

    Yields:
        A proposal, or (label, reason) where its config refuses the value.

    Raises:
        UsageError: `SEARCH` names an option that the config does not have.
    """
    tried: Mapping[str, Sequence[Any]] = getattr(start.config, "SEARCH", None) or {}
    for name, values in tried.items():
        if not hasattr(start.config, name):
            raise UsageError(f"repair method '{start.method.name}': SEARCH names '{name}', which is no option of it")
        for value in values:
            if getattr(start.config, name) == value:
                continue
            try:
                config = replace(start.config, **{name: value})
            except UpholdError as error:
                yield f"{start.method.name} ({name} {value})", str(error)
                continue
            yield Proposal(start.method, config, _changes(config, default.config))


def _changes(config: Any, default: Any) -> dict[str, Any]:
    pairs = ((entry.name, getattr(config, entry.name)) for entry in fields(config))
    return {name: value for name, value in pairs if value != getattr(default, name)}
