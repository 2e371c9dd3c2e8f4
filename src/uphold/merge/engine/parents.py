"""Whom a merge is measured against."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uphold.core.errors import UsageError
from uphold.core.registry import method as registered
from uphold.core.storage import read_json
from uphold.merge.engine.inputs import WEIGHT_FILES
from uphold.merge.engine.output import FACTS
from uphold.merge.engine.recipe import Recipe, load_recipe


@dataclass(frozen=True)
class Parents:
    """The models of a merge that it is measured against."""

    parents: tuple[str, ...]
    """What was merged, in the recipe's order. The base is one of them where there is only one other model, between
    which and the base a merge then lies, and where it is listed for a method that needs none."""
    base: str | None
    """What they were trained from, where the recipe names it."""

    @property
    def all(self) -> tuple[str, ...]:
        """Every one once, the base first."""
        return tuple(dict.fromkeys([*([self.base] if self.base is not None else []), *self.parents]))

    def role(self, model: str) -> str:
        """`base`, `parent`, or both."""
        if model != self.base:
            return "parent"
        return "base, parent" if model in self.parents else "base"


def parents_of(recipe: Recipe) -> Parents:
    """Whom the merge of a recipe is to be measured against.

    Raises:
        UsageError: there is no such merge method.
    """
    base = recipe.base_model
    models = [entry.model for module in recipe.parts().values() for entry in module.models]
    sources = [one.model for module in recipe.parts().values() for part in module.slices for one in part.sources]
    listed = tuple(dict.fromkeys([*models, *sources]))
    others = tuple(name for name in listed if name != base)
    method: Any = registered("merge", recipe.merge_method).function
    if base is None or (base in listed and method.base != "required"):
        return Parents(listed, base)
    return Parents(others if len(others) > 1 else (base, *others), base)


def recorded_parents(merged: str | Path) -> Parents:
    """Whom the merge in a folder is to be measured against.

    Raises:
        UsageError: it does not say what it was made from.
    """
    path = Path(merged) / FACTS
    if not path.is_file():
        raise UsageError(f"'{merged}' does not say what it was merged from (no {FACTS} there): name the parents")
    return parents_of(load_recipe(read_json(path)["recipe"]))


def check_askable(recipe: Recipe) -> None:
    """Refuse to measure what has weights only.

    Raises:
        UsageError: a model of the recipe is a single file of weights.
    """
    for reference in parents_of(recipe).all:
        path = Path(reference).expanduser()
        if path.suffix in WEIGHT_FILES and path.is_file():
            raise UsageError(
                f"'{reference}' is a file of weights, without a config and a tokenizer: it can be merged, but not "
                "asked; leave out --task"
            )
