"""The schema of BIG-bench's `task.json`, and where such files are found."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from uphold.core.errors import CorruptError, DataError
from uphold.core.progress import Progress
from uphold.tasks import bigbench_scores as scores
from uphold.tasks.bigbench_archive import release_folder
from uphold.tasks.options import unknown_among_many

FILE = "task.json"
_FAMOUS = ("social_iqa", "strategyqa", "date_understanding", "elementary_math_qa")


class TaskJson(BaseModel):
    """The entries of a `task.json` that matter here, with the defaults of the reference implementation."""

    model_config = ConfigDict(extra="ignore")

    where: str
    """The file, for messages."""
    examples: list[dict[str, Any]]
    metrics: list[str] = []
    preferred_score: str = ""
    example_input_prefix: str = "\nQ: "
    example_output_prefix: str = "\nA: "
    choice_prefix: str = "\n  choice: "
    append_choices_to_input: bool = True
    few_shot_example_separator: str = "\n"
    task_prefix: str = ""
    output_regex: str | None = None
    stop_string: str = ""

    def regex(self) -> str:
        """What is looked for in an output; everything when empty."""
        if self.output_regex is None:
            return "" if self.stop_string else scores.DEFAULT_REGEX
        return self.output_regex

    def has_choices(self) -> bool:
        """Whether examples hold graded options."""
        return any("target_scores" in example for example in self.examples)

    def possible_metrics(self) -> list[str]:
        """The metrics that the examples allow and that can be had here."""
        possible = [scores.CHOICE] if self.has_choices() else []
        if any("target" in example for example in self.examples):
            possible += scores.GENERATED
        return possible

    def usable_metrics(self) -> list[str]:
        """The possible metrics that the task names itself, else all that are possible."""
        possible = self.possible_metrics()
        named = [kind for metric in self.metrics for kind in (["rougeLsum"] if metric == "rouge" else [metric])]
        return [metric for metric in named if metric in possible] or possible

    def grades(self, example: Mapping[str, Any], where: str) -> dict[str, float]:
        """The graded options of an example, in its order; none where it has none.

        Raises:
            DataError: they are no mapping of options to numbers in [0, 1].
        """
        graded = example.get("target_scores", {})
        if not isinstance(graded, dict) or not all(isinstance(grade, int | float) for grade in graded.values()):
            raise DataError(f"{where}: expected 'target_scores' as options with numbers, found {str(graded)[:60]}")
        for option, grade in graded.items():
            if not 0 <= grade <= 1:
                raise DataError(
                    f"{where}: the option {option!r} has the score {grade}; scores lie in [0, 1], scale them"
                )
        return {option: float(grade) for option, grade in graded.items()}

    def targets(self, example: Mapping[str, Any], where: str) -> tuple[str, ...]:
        """The acceptable answers of an example.

        Raises:
            DataError: there is no target, or it is no text, number or list of them.
        """
        target = example.get("target")
        listed = target if isinstance(target, list) else [target]
        if not listed or not all(isinstance(one, str | int | float) for one in listed):
            raise DataError(f"{where}: expected a text 'target' or a list of texts, found {str(target)[:60]}")
        return tuple(map(str, listed))


def find_tasks(name: str, progress: Progress) -> dict[str, TaskJson]:
    """The files that `name` means, by the names of their folders.

    Args:
        name: a file, a folder, or a task of the release.
        progress: called while the release is downloaded and unpacked.

    Raises:
        UsageError: there is no such task; the message suggests the nearest name.
        DataError: a file does not follow the schema.
    """
    path = Path(name).expanduser()
    if name.endswith(".json"):
        return {path.parent.name: read_task(path)}
    if _holds_tasks(path):
        return _read_folder(path)
    if name.startswith((".", "/", "~")):
        raise DataError(f"{path} holds no {FILE}, and no folders that do; give a folder or file with a BIG-bench task")
    release = release_folder(progress)
    name = name.rstrip("/")
    folder = release / name
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name) or not _holds_tasks(folder):
        names = sorted(str(found.parent.relative_to(release)) for found in release.rglob(f"{FILE}.gz"))
        raise unknown_among_many("BIG-bench JSON task", name, names, _FAMOUS)
    return _read_folder(folder)


def _holds_tasks(folder: Path) -> bool:
    return bool(_file_in(folder)) or any(map(_file_in, folder.iterdir() if folder.is_dir() else ()))


def _file_in(folder: Path) -> Path | None:
    return next((path for path in (folder / FILE, folder / f"{FILE}.gz") if path.is_file()), None)


def _read_folder(folder: Path) -> dict[str, TaskJson]:
    """The task of a folder, or where that has no examples of its own, those of its subfolders."""
    own = _file_in(folder)
    if own and "examples" in _read_json(own):
        return {folder.name: read_task(own)}
    found = {sub.name: path for sub in sorted(folder.iterdir()) if (path := _file_in(sub))}
    if not found:
        raise DataError(f"{own} has no examples, and {folder} has no subtasks: expected either")
    return {name: read_task(path) for name, path in found.items()}


def read_task(path: Path) -> TaskJson:
    """The task in a `task.json` or `task.json.gz`.

    Raises:
        DataError: the file cannot be read or does not follow the schema.
        CorruptError: it is not JSON.
    """
    described = _read_json(path)
    if isinstance(described.get("task_prefix"), int | float):
        described["task_prefix"] = str(described["task_prefix"])
    try:
        task = TaskJson.model_validate(
            {key: value for key, value in described.items() if value is not None} | {"where": str(path)}
        )
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(
            f"{path}: {where}: {first['msg'].lower()}; expected the schema of BIG-bench JSON tasks"
        ) from error
    try:
        groups = re.compile(task.regex()).groups
    except re.error as error:
        raise DataError(f"{path}: the output_regex {task.regex()!r} is no regular expression ({error})") from error
    if groups > 1:
        raise DataError(
            f"{path}: the output_regex {task.regex()!r} has {groups} groups; use non-capturing ones, (?:...)"
        )
    return task


def _read_json(path: Path) -> dict[str, Any]:
    try:
        text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        described = json.loads(text)
    except OSError as error:
        raise DataError(f"cannot read the BIG-bench task {path}: {error.strerror or error}") from error
    except (ValueError, EOFError) as error:
        raise CorruptError(f"{path} is not valid JSON ({error})") from error
    if not isinstance(described, dict):
        raise DataError(f"{path}: expected a JSON object, found {type(described).__name__}")
    return described
