"""From what a recipe says to the parameters of one tensor."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from uphold.core.errors import DataError, UsageError, unknown_name
from uphold.core.registry import methods
from uphold.merge.engine.recipe import Conditional, Recipe, Setting
from uphold.merge.protocol import REQUIRED, MergeMethod, Parameter, Settings

Scope = Mapping[str, Setting]


class Place(NamedTuple):
    """Where a tensor stands."""

    name: str
    """Its name in the result."""
    fraction: float
    """Position of its layer in its slice, in [0, 1]; 0 outside the layers."""


def evaluate(setting: Setting, name: str, fraction: float) -> Any:
    """What a setting says of the tensor `name`; None where no filter fits.

    A gradient is linear between its values, which are spread evenly over the layers; of texts the nearest below holds.
    """
    if not isinstance(setting, tuple):
        return setting
    if isinstance(setting[0], Conditional):
        for entry in setting:
            assert isinstance(entry, Conditional)
            if entry.fits(name):
                return evaluate(entry.value, name, fraction)
        return None
    place = fraction * (len(setting) - 1)
    low = int(place)
    if any(isinstance(value, str) for value in setting):
        return setting[low]
    first, second = (setting[index] for index in (low, min(low + 1, len(setting) - 1)))
    share = place - low
    return (1 - share) * first + share * second  # type: ignore[operator]


def lookup(parameter: str, scopes: Iterable[Scope], place: Place) -> Any:
    """What the first scope says that says anything; None where none does."""
    for scope in scopes:
        if parameter in scope:
            found = evaluate(scope[parameter], place.name, place.fraction)
            if found is not None:
                return found
    return None


def resolve(
    method: str,
    parameters: Sequence[Parameter],
    place: Place,
    own: Sequence[tuple[str, str, Scope]],
    base: tuple[str, Scope] | None,
    scopes: Sequence[Scope],
) -> Settings:
    """The parameters of one tensor.

    Args:
        method: the merge method's name, for messages.
        parameters: those that it has.
        place: the tensor.
        own: of every model: its name, the tensor's name in it, and what the recipe sets for it alone.
        base: the tensor's name in the base, and what is set for it alone; None where the recipe does not list the base
            among the models.
        scopes: what holds for all models, the nearest first.

    Raises:
        UsageError: a required parameter is missing.
        DataError: a value is of the wrong type or out of range.
    """
    shared = [parameter for parameter in parameters if not parameter.per_model]
    single = [parameter for parameter in parameters if parameter.per_model]
    options = {parameter.name: _value(method, parameter, place, scopes, "") for parameter in shared}
    models = []
    for model, name, scope in own:
        there = Place(name, place.fraction)
        models.append({one.name: _value(method, one, there, (scope, *scopes), model) for one in single})
    of_base: dict[str, Any] = {}
    if base is not None:
        there = Place(base[0], place.fraction)
        for parameter in single:
            found = lookup(parameter.name, (base[1], *scopes), there)
            if found is not None or parameter.default is not REQUIRED:
                of_base[parameter.name] = _value(method, parameter, there, (base[1], *scopes), "the base")
    return Settings(models, options, of_base)


def _value(method: str, parameter: Parameter, place: Place, scopes: Sequence[Scope], model: str) -> Any:
    found = lookup(parameter.name, scopes, place)
    if found is None:
        if parameter.default is not REQUIRED:
            return parameter.default
        where = f" of {model}" if model else ""
        mend = f"write '{parameter.name}:' under the {'model' if model else 'recipe'}'s parameters"
        if any(parameter.name in scope for scope in scopes):
            mend = "none of its filters fits there; add '- value: ...' behind them"
        raise UsageError(f"'{method}' needs the parameter '{parameter.name}'{where} for {place.name}: {mend}")
    return typed(parameter, found, f"for {place.name}")


def typed(parameter: Parameter, value: Any, where: str) -> Any:
    """A value as its method takes it.

    Args:
        parameter: what it is of.
        value: as the recipe has it.
        where: what messages add to the parameter's name.

    Raises:
        DataError: it is of the wrong type or out of range.
    """
    where = f"the parameter '{parameter.name}' {where}"
    default = parameter.default
    if isinstance(default, bool):
        if value not in (0, 1):
            raise DataError(f"{where} is {value!r}; expected true or false")
        return bool(value)
    if isinstance(default, str):
        if not isinstance(value, str):
            raise DataError(f"{where} is {value!r}; expected a text such as '{default}'")
        return value
    if isinstance(value, bool | str) or not math.isfinite(value):
        raise DataError(f"{where} is {value!r}; expected a number")
    if not parameter.low <= value <= parameter.high:
        raise DataError(f"{where} is {value:g}; expected {_range(parameter)}")
    if isinstance(default, int) and value == int(value):
        return int(value)
    return float(value)


def _range(parameter: Parameter) -> str:
    if math.isinf(parameter.high):
        return f"at least {parameter.low:g}"
    if math.isinf(parameter.low):
        return f"at most {parameter.high:g}"
    return f"between {parameter.low:g} and {parameter.high:g}"


def check_parameters(recipe: Recipe, method: MergeMethod) -> list[str]:
    """Warnings of parameters that this method does not have, but another.

    Raises:
        UsageError: a parameter that no merge method has; the message suggests the nearest one.
    """
    own = {parameter.name for parameter in method.parameters}
    others = {
        parameter.name
        for other in methods("merge")
        for parameter in other.function.parameters  # type: ignore[attr-defined]
    }
    warnings = []
    for where, scope in recipe.scopes():
        for name in scope:
            if name in own:
                continue
            if name not in others:
                raise unknown_name(f"parameter of '{recipe.merge_method}' ({where})", name, own)
            warnings.append(f"'{recipe.merge_method}' has no parameter '{name}': what the recipe says of it is unused")
    return list(dict.fromkeys(warnings))
