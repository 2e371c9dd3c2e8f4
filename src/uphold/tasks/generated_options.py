"""reasoning-gym tasks from typed options and from YAML files that name a dataset."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from uphold.core.errors import UsageError, unknown_name
from uphold.tasks.base import FixedTask
from uphold.tasks.generated import GeneratedConfig, dataset_names, generated_task

_REGISTRATION = re.compile(r"^register_dataset\(\s*(?:(\w+)|[\"'](\w+)[\"'])", re.MULTILINE)


def generated_from_options(dataset: str, *, label: str = "", **options: Any) -> FixedTask:
    """The task from the reasoning-gym dataset called `dataset`, named `label`.

    Args:
        dataset: name of a reasoning-gym dataset.
        label: what the task is called.
        options: those of `GeneratedConfig`; any other goes to the dataset's own configuration.

    Raises:
        UsageError: no such dataset or option, or a value of the wrong type.
    """
    return generated_from_mapping(dataset, options, label or f"rg:{dataset}")


def generated_from_mapping(dataset: str, options: Mapping[str, Any], name: str) -> FixedTask:
    """`generated_from_options` for options that come as a mapping, from a file for instance."""
    return generated_task(dataset, _config(name, dataset, options), name=name)


def registered_names() -> list[str]:
    """The names of all reasoning-gym datasets, read from its source text: importing it takes more than a second."""
    found = importlib.util.find_spec("reasoning_gym")
    if found is None or found.origin is None:
        return []
    names = {name for path in Path(found.origin).parent.rglob("*.py") for name in _registered_in(path)}
    return sorted(names) or dataset_names()


def _registered_in(path: Path) -> Iterator[str]:
    text = path.read_text(encoding="utf-8")
    for constant, literal in _REGISTRATION.findall(text):
        assigned = re.search(rf"^{constant}\s*=\s*[\"'](\w+)[\"']", text, re.MULTILINE) if constant else None
        if assigned:
            yield assigned[1]
        elif literal:
            yield literal


def _config(task: str, dataset: str, options: Mapping[str, Any]) -> GeneratedConfig:
    from pydantic import TypeAdapter, ValidationError

    from uphold.tasks.text_files import validation_message

    own = {entry.name for entry in fields(GeneratedConfig)} - {"dataset"}
    values = {key: value for key, value in options.items() if key in own}
    others = {key: value for key, value in options.items() if key not in own}
    _check_names(task, dataset, others, own)
    if values.get("kind", "generate") not in ("generate", "choice"):
        raise unknown_name(f"kind in task '{task}'", str(values["kind"]), ("generate", "choice"))
    for key in ("size", "train", "validation", "test", "seed"):
        if isinstance(values.get(key, 0), int) and values.get(key, 0) < 0:
            raise UsageError(f"task '{task}': {key} must be a whole number of at least 0, not {values[key]}")
    if isinstance(values.get("stop"), str):
        values["stop"] = (values["stop"],)
    try:
        return TypeAdapter(GeneratedConfig).validate_python({**values, "dataset": others})
    except ValidationError as error:
        raise UsageError(f"task '{task}': {validation_message(error)}") from error


def _check_names(task: str, dataset: str, options: Mapping[str, Any], own: set[str]) -> None:
    """The dataset's options must be fields of its configuration; an unknown dataset is reported when it is loaded."""
    if not options or dataset not in dataset_names():
        return
    from reasoning_gym.factory import DATASETS

    known = {entry.name for entry in fields(DATASETS[dataset][1])} - {"size", "seed"}
    for name in options:
        if name not in known:
            raise unknown_name("option", name, known | own, f"It stands in '{task}'.")
