"""From what a user types to a task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from uphold.core.errors import UsageError, unknown_name
from uphold.tasks.base import FixedTask, Task
from uphold.tasks.generated import GeneratedConfig, dataset_names, generated_task
from uphold.tasks.humaneval import humaneval_task
from uphold.tasks.text_files import load_task_file, validation_message

GENERATED = "rg:"


def load_task(task: str | Path | Task) -> Task:
    """The task that `task` names; a task is returned as it is.

    Args:
        task: `demo`, `rg:NAME[:option=value,...]`, `humaneval`, or the path of a YAML task file
            (see `uphold.tasks.text_files`).

    Raises:
        UsageError: there is no such task; the message suggests the nearest name.
        DataError: the task file or its data does not fit.
    """
    if not isinstance(task, str | Path):
        return task
    text = str(task)
    if text.startswith(GENERATED):
        name, _, options = text.removeprefix(GENERATED).partition(":")
        return generated_task(name, _generated_config(text, _options(text, options)), name=text)
    if text == "humaneval":
        return humaneval_task()
    if text in builtin_names():
        return _builtin(text)
    if text.endswith((".yaml", ".yml")):
        return load_task_file(Path(text))
    raise unknown_name("task", text, task_names(), "A file's name ends in .yaml; 'uphold tasks' lists the others.")


def builtin_names() -> list[str]:
    """Tasks that ship with Uphold."""
    return sorted(Path(entry.name).stem for entry in _builtin_folder().iterdir() if entry.name.endswith(".yaml"))


def task_names() -> list[str]:
    """Every task that has a name of its own."""
    return [*builtin_names(), "humaneval", *(GENERATED + name for name in dataset_names())]


def _builtin_folder() -> Any:
    return resources.files("uphold.tasks") / "builtin"


def _builtin(name: str) -> FixedTask:
    """A shipped task: a YAML file that names a reasoning-gym dataset and its options."""
    spec = dict(yaml.safe_load((_builtin_folder() / f"{name}.yaml").read_text(encoding="utf-8")))
    dataset = spec.pop("dataset_name")
    return generated_task(dataset, _generated_config(name, spec), name=name)


def _options(task: str, text: str) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        key, separator, value = part.partition("=")
        if not separator:
            raise UsageError(f"task '{task}': expected option=value, found '{part}'")
        try:
            options[key.strip()] = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError) as error:
            raise UsageError(f"task '{task}': the value of '{part}' cannot be read; quote it") from error
    return options


def _generated_config(task: str, options: Mapping[str, Any]) -> GeneratedConfig:
    own = {entry.name for entry in fields(GeneratedConfig)} - {"dataset"}
    values = {key: value for key, value in options.items() if key in own}
    dataset = {key: value for key, value in options.items() if key not in own}
    if values.get("kind", "generate") not in ("generate", "choice"):
        raise unknown_name(f"kind in task '{task}'", str(values["kind"]), ("generate", "choice"))
    for key in ("size", "train", "validation", "test", "seed"):
        if isinstance(values.get(key, 0), int) and values.get(key, 0) < 0:
            raise UsageError(f"task '{task}': {key} must be a whole number of at least 0, not {values[key]}")
    if isinstance(values.get("stop"), str):
        values["stop"] = (values["stop"],)
    try:
        return TypeAdapter(GeneratedConfig).validate_python({**values, "dataset": dataset})
    except ValidationError as error:
        raise UsageError(f"task '{task}': {validation_message(error)}") from error
