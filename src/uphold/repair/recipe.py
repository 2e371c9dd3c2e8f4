"""Recipes: named sets of hyperparameters, so that two bases are adapted alike and a paper's settings are at hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields, replace
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from uphold.core.errors import DataError, UsageError, unknown_name
from uphold.repair.training import DistillConfig
from uphold.tasks.base import Task

Config = TypeVar("Config")
PAPER = "paper"
ADAPT, SHARED = "adapt", "repair"
"""Sections: of the task adapters, and of what all repair methods share."""


def recipe_names() -> list[str]:
    """The recipes that ship with Uphold."""
    return sorted(Path(entry.name).stem for entry in _folder().iterdir() if entry.name.endswith(".yaml"))


def recipe_for(task: Task) -> str:
    """The recipe used where none is named: the task's own if it ships with one, else the paper's."""
    return task.name if task.name in recipe_names() else PAPER


def configure(default: Config, section: str, recipe: str | Path, overrides: dict[str, Any] | None = None) -> Config:
    """`default` with the values of one section of a recipe, and `overrides` on top.

    Args:
        default: a frozen config dataclass.
        section: `adapt`, or the name of a repair method; a recipe without that section changes nothing. A method also
            takes from the section `repair`, which all methods share, what it has an option for.
        recipe: a shipped recipe's name, or the path of a YAML file.
        overrides: values that win over the recipe; None values count as not given.

    Raises:
        UsageError: no such recipe, an option that the config does not have, or a number that is not finite.
        DataError: a value has the wrong type; the message names it.
    """
    from pydantic import TypeAdapter, ValidationError

    from uphold.tasks.text_files import validation_message

    given = {key: value for key, value in (overrides or {}).items() if value is not None}
    names = [entry.name for entry in fields(default)]  # type: ignore[arg-type]
    values = {**recipe_values(names, section, recipe), **given}
    for key in values:
        if key not in names:
            raise unknown_name(f"option of '{section}' in recipe '{recipe}'", key, names)
    try:
        checked = TypeAdapter(type(default)).validate_python(
            {name: values.get(name, getattr(default, name)) for name in names}
        )
    except ValidationError as error:
        raise DataError(f"recipe '{recipe}', section {section}: {validation_message(error)}") from error
    for key in values:
        value = getattr(checked, key)
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"{key} of '{section}' must be a finite number, not {value}")
    return replace(default, **{key: getattr(checked, key) for key in values})  # type: ignore[type-var]


def recipe_values(names: Sequence[str], section: str, recipe: str | Path = PAPER) -> dict[str, Any]:
    """What a recipe says for one section, as it is written there: nothing is checked but the names of shared options.

    Args:
        names: the options that the section's config has.
        section: `adapt`, or the name of a repair method.
        recipe: a shipped recipe's name, or the path of a YAML file.

    Raises:
        UsageError: no such recipe, or a shared option that no config has.
    """
    shared = {} if section == ADAPT else _section(recipe, SHARED)
    known = {*names, *(entry.name for entry in fields(DistillConfig))}
    for key in shared:
        if key not in known:
            raise unknown_name(f"option of '{SHARED}' in recipe '{recipe}'", key, sorted(known))
    return {**{key: shared[key] for key in shared if key in names}, **_section(recipe, section)}


def _section(recipe: str | Path, section: str) -> dict[str, Any]:
    import yaml

    name = str(recipe)
    if name in recipe_names():
        content: Any = yaml.safe_load((_folder() / f"{name}.yaml").read_text(encoding="utf-8"))
    elif name.endswith((".yaml", ".yml")):
        from uphold.tasks.text_files import read_yaml

        if not Path(name).is_file():
            raise DataError(
                f"cannot read the recipe file {name}: there is none; shipped recipes: {', '.join(recipe_names())}"
            )
        content = read_yaml(Path(name))
    else:
        raise unknown_name("recipe", name, recipe_names(), "A file's name ends in .yaml.")
    if not isinstance(content, dict) or not isinstance(content.get(section) or {}, dict):
        raise UsageError(f"recipe '{name}' must be a mapping of sections (adapt, repair, muscle, ...) to options")
    return dict(content.get(section) or {})


def _folder() -> Any:
    return resources.files("uphold.repair") / "recipes"
