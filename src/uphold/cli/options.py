"""Command-line options made from a config dataclass, so that a method's options are written once."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields
from functools import lru_cache
from types import UnionType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

_OWN, _SHARED = "Recipe options", "Recipe options, shared with other methods"


@lru_cache
def field_docs(config: type) -> Mapping[str, str]:
    """The string below each field of a dataclass, its bases included, white space folded."""
    docs: dict[str, str] = {}
    for owner in reversed(config.__mro__[:-1]):
        body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
        assert isinstance(body, ast.ClassDef)
        for statement, after in zip(body.body, body.body[1:], strict=False):
            if (
                isinstance(statement, ast.AnnAssign)
                and isinstance(statement.target, ast.Name)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
            ):
                docs[statement.target.id] = " ".join(str(after.value.value).split())
    return docs


def configured(
    default: Any, section: str, task: str, recipe: str | None, overrides: Mapping[str, Any], quiet: bool
) -> tuple[Any, Any]:
    """The task that was typed, and `default` with its recipe's values and the given options; says which recipe."""
    from uphold.cli.console import say
    from uphold.repair.recipe import configure, recipe_for
    from uphold.tasks.load import load_task

    chosen = load_task(task)
    name = recipe or recipe_for(chosen)
    config = configure(default, section, name, dict(overrides))
    if not quiet:
        say(f"recipe: {name}")
    return chosen, config


def with_config_options(command: Callable[..., None], config: type, section: str = "") -> Callable[..., None]:
    """`command` with one option per field of `config`, a method's own before those that it shares.

    Options that are given reach the command as its `overrides` dictionary; the others stay with the recipe.

    Args:
        command: takes `overrides`.
        config: a dataclass.
        section: of recipes, for the defaults that the help names: those of the recipe `paper`.
    """
    names = [entry.name for entry in fields(config)]
    listed = [name for name, hint in get_type_hints(config).items() if _is_list(hint)]
    options = _options(config, section)
    signature = inspect.signature(command, eval_str=True)
    own = [parameter for name, parameter in signature.parameters.items() if name != "overrides"]

    def run(**values: Any) -> None:
        overrides = {name: values.pop(name) for name in names}
        for name in names:
            if values.pop(_off(name), None):
                overrides[name] = False
        for name in listed:
            if overrides[name] is not None:
                overrides[name] = tuple(filter(None, map(str.strip, overrides[name].split(","))))
        command(**values, overrides={name: value for name, value in overrides.items() if value is not None})

    run.__signature__ = inspect.Signature([*own, *options])  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *options]}
    run.__doc__ = command.__doc__
    run.__name__ = command.__name__
    return run


def _options(config: type, section: str) -> list[inspect.Parameter]:
    """The options of a config's fields, those that it declares itself first."""
    from uphold.repair.recipe import recipe_values

    hints, docs, declared = get_type_hints(config), field_docs(config), inspect.get_annotations(config)
    names = [entry.name for entry in fields(config)]
    recipe = recipe_values(names, section) if section else {}
    mixed = any(name in declared for name in names) and any(name not in declared for name in names)
    options = []
    for entry in sorted(fields(config), key=lambda entry: entry.name not in declared):
        name, hint = entry.name, hints[entry.name]
        default = recipe.get(name, _default(entry))
        panel = _SHARED if mixed and name not in declared else _OWN
        choices = _choices(hint)
        shown: dict[str, Any] = {
            "help": ". ".join(filter(None, (_listed(choices), _as_typed(docs.get(name, ""), names)))),
            "rich_help_panel": panel,
            "show_default": _shown(default),
        }
        if choices:
            shown["metavar"] = "NAME"
        if _is_list(hint):
            hint, shown["metavar"] = str, "NAME,..."
        if hint is bool:
            options += _switches(name, shown, bool(default))
        else:
            options.append(_option(name, hint, typer.Option(**shown)))
    return options


def _switches(name: str, shown: dict[str, Any], on: bool) -> list[inspect.Parameter]:
    """`--name` and `--no-name`; listed is the one that changes something, so that names fit in beside the text."""
    if on:
        shown["help"] = f"Turn off: {shown['help']}"
    return [
        _option(name, bool, typer.Option(_dashed(name), **({"hidden": True} if on else shown))),
        _option(_off(name), bool, typer.Option(_dashed(_off(name)), **(shown if on else {"hidden": True}))),
    ]


def _option(name: str, hint: Any, option: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[hint | None, option]
    )


def _is_list(hint: Any) -> bool:
    """Whether a field holds several names, which are typed as one option with commas."""
    return get_origin(hint) is tuple


def _off(name: str) -> str:
    return f"no_{name}"


def _dashed(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _default(entry: Field[Any]) -> Any:
    return None if entry.default is MISSING else entry.default


def _shown(value: Any) -> str | bool:
    """A default as the help shows it; False where there is nothing to show."""
    if value is None or isinstance(value, bool) or value == ():
        return False
    if isinstance(value, tuple):
        return ",".join(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _choices(hint: Any) -> tuple[str, ...]:
    """The words that a field takes, where they are listed."""
    if get_origin(hint) is Literal:
        return tuple(map(str, get_args(hint)))
    parts = get_args(hint) if isinstance(hint, UnionType) else ()
    return next((choices for part in parts if (choices := _choices(part))), ())


def _listed(choices: tuple[str, ...]) -> str:
    return f"{', '.join(choices[:-1])} or {choices[-1]}" if choices else ""


def _as_typed(text: str, names: list[str]) -> str:
    """A field's text with the names of other fields as they are typed."""
    return re.sub(r"`(\w+)`", lambda found: _dashed(found[1]) if found[1] in names else found[0], text)
