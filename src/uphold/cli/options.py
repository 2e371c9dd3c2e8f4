"""Command-line options made from a config dataclass, so that a method's options are written once."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import lru_cache
from typing import Annotated, Any, get_type_hints

import typer


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


def with_config_options(command: Callable[..., None], config: type) -> Callable[..., None]:
    """`command` with one option per field of `config`.

    Options that are given reach the command as its `overrides` dictionary; the others stay with the recipe.
    """
    hints = get_type_hints(config)
    docs = field_docs(config)
    names = [entry.name for entry in fields(config)]
    options = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[
                hints[name] | None,
                typer.Option(help=docs.get(name, ""), rich_help_panel="Recipe options", show_default=False),
            ],
        )
        for name in names
    ]
    signature = inspect.signature(command, eval_str=True)
    own = [parameter for name, parameter in signature.parameters.items() if name != "overrides"]

    def run(**values: Any) -> None:
        overrides = {name: values.pop(name) for name in names}
        command(**values, overrides={name: value for name, value in overrides.items() if value is not None})

    run.__signature__ = inspect.Signature([*own, *options])  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *options]}
    run.__doc__ = command.__doc__
    run.__name__ = command.__name__
    return run
