"""From what a user types to a task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module, resources
from pathlib import Path
from typing import Any

from uphold.core.errors import UsageError, unknown_name
from uphold.core.progress import Progress, silent
from uphold.tasks.base import FixedTask, Task
from uphold.tasks.options import call_with_options, read_options, split_name


@dataclass(frozen=True)
class Source:
    """Where tasks come from that are typed with a prefix."""

    prefix: str
    form: str
    """What is typed, in one line; a name follows the prefix where the form says so."""
    summary: str
    """What comes out, in one line."""
    loader: str
    """`module:function`, imported when a task is loaded; its arguments are the options (`uphold.tasks.options`)."""

    @property
    def named(self) -> bool:
        """Whether a name follows the prefix."""
        return self.form.startswith(f"{self.prefix}:")

    def load(self, text: str, progress: Progress) -> FixedTask:
        """The task that `text`, which begins with the prefix, names."""
        rest = text.removeprefix(self.prefix).removeprefix(":")
        name, options = split_name(rest) if self.named else (None, rest)
        if name == "":
            raise UsageError(f"the task '{text}' names nothing: type {self.form}")
        module, function = self.loader.split(":")
        loader: Callable[..., FixedTask] = getattr(import_module(module), function)
        task = call_with_options(loader, text, name, read_options(text, options), progress)
        return task if task.name == text else replace(task, name=text)


SOURCES = (
    Source("rg", "rg:NAME[:option=value,...]", "questions that reasoning-gym generates and verifies", "uphold.tasks.generated_options:generated_from_options"),  # noqa: E501
    Source("lm_eval", "lm_eval:NAME[:fewshot=5,...]", "a task of lm-evaluation-harness, or FOLDER/NAME or FILE.yaml of your own", "uphold.tasks.lm_eval:lm_eval_task"),  # noqa: E501
    Source("bigbench", "bigbench:NAME[:shots=3,...]", "a JSON task of BIG-bench, or a folder or task.json of your own", "uphold.tasks.bigbench:bigbench_task"),  # noqa: E501
    Source("hf", "hf:ID:prompt=...,target=...[,...]", "a Hugging Face dataset, or a folder or data file of your own", "uphold.tasks.hub:hub_task"),  # noqa: E501
    Source("humaneval", "humaneval[:samples=10,...]", "HumanEval: programs that are run against tests", "uphold.tasks.humaneval:humaneval_task"),  # noqa: E501
)  # fmt: skip
FILE_FORM = "FILE.yaml"
FILE_SUMMARY = "your own JSONL, CSV or Parquet data, a Hugging Face dataset, or options of a generated task"


def load_task(task: str | Path | Task, progress: Progress = silent) -> Task:
    """The task that `task` names; a task is returned as it is.

    Args:
        task: `demo`, a form of `SOURCES` such as `rg:NAME[:option=value,...]`, or the path of a YAML task file
            (see `uphold.tasks.text_files`).
        progress: called while data are downloaded, which only some sources do, and only by a name that was typed.

    Raises:
        UsageError: there is no such task; the message suggests the nearest name.
        DataError: the task file or its data does not fit, or cannot be had.
    """
    if not isinstance(task, str | Path):
        return task
    text = str(task)
    if text in builtin_names():
        return _builtin(text)
    for source in SOURCES:
        if text.startswith(f"{source.prefix}:") or (text == source.prefix and not source.named):
            return source.load(text, progress)
    if text.endswith((".yaml", ".yml")):
        from uphold.tasks.text_files import load_task_file

        return load_task_file(Path(text))
    hint = "A file's name ends in .yaml; 'uphold tasks' lists the others."
    prefix, colon, _ = text.partition(":")
    if colon:
        raise unknown_name("task source", prefix, [source.prefix for source in SOURCES], hint)
    raise unknown_name("task", text, task_names(), hint)


def builtin_names() -> list[str]:
    """Tasks that ship with Uphold."""
    return sorted(Path(entry.name).stem for entry in _builtin_folder().iterdir() if entry.name.endswith(".yaml"))


def task_names() -> list[str]:
    """Every task that has a name of its own and needs no download."""
    from uphold.tasks.generated_options import registered_names

    alone = [source.prefix for source in SOURCES if not source.named]
    return [*builtin_names(), *alone, *(f"rg:{name}" for name in registered_names())]


def _builtin_folder() -> Any:
    return resources.files("uphold.tasks") / "builtin"


def _builtin(name: str) -> FixedTask:
    """A shipped task: a YAML file that names a reasoning-gym dataset and its options."""
    from uphold.tasks.text_files import load_task_file

    with resources.as_file(_builtin_folder() / f"{name}.yaml") as path:
        return load_task_file(path)
