"""Finding and loading a task of lm-evaluation-harness: by name, or from YAML task files of one's own.

Task files may name Python functions beside them, which are run: load only files that you trust.
"""

from __future__ import annotations

import contextlib
import importlib.util
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from uphold.core.errors import DataError, UpholdError, UsageError, unknown_name
from uphold.tasks.hub import quiet_libraries
from uphold.tasks.options import one_line, unknown_among_many

_FAMOUS = ("hellaswag", "arc_easy", "winogrande", "gsm8k", "lambada_openai")
_ENDINGS = (".yaml", ".yml")
_NAME = {
    key: re.compile(rf"""^(["']?){key}\1:[ \t]*(["']?)([^\n#"'\[\]{{}}]*?)\2[ \t]*(?:#.*)?$""", re.MULTILINE)
    for key in ("task", "group", "tag")
}
_LISTED_TAGS = re.compile(r"^tag:((?:\s*\n[ \t]*-[ \t]*[\w./-]+)+|[ \t]*\[[^\]]*\])", re.MULTILINE)


@dataclass(frozen=True)
class Index:
    """The names in a folder of task files."""

    tasks: Mapping[str, Path]
    groups: frozenset[str]
    tags: Mapping[str, Sequence[str]]
    """The tasks of each tag."""


def load_harness_task(name: str) -> Any:
    """The harness's own task object (`lm_eval.api.task.ConfigurableTask`) for a name, folder or file.

    Raises:
        UsageError: there is no such task, it is a group, or it needs what is not done here.
        DataError: its files or its dataset cannot be loaded.
    """
    path = _find(name)
    with harness_errors(name), quiet_libraries():
        from lm_eval.tasks import TaskManager
        from lm_eval.tasks._yaml_loader import load_yaml

        # Functions are left alone at first: naming them runs the Python files that hold them.
        reason = _reason_against(load_yaml(path, resolve_func=False))
        if reason:
            raise UsageError(f"lm_eval task '{name}' {reason}")
        config = load_yaml(path)
        manager = TaskManager(include_defaults=False)
        return manager.load([_with_paths(config, path.parent)])["tasks"][config["task"]]


def _reason_against(config: Mapping[str, Any]) -> str:
    """Why a task cannot be had here, if so."""
    kind = config.get("output_type", "generate_until")
    if "group" in config:
        return "is a group of tasks: load one of them"
    if "class" in config or not isinstance(config.get("task"), str):
        return "is no task of templates (a name under 'task:'), which is all that is read here"
    if kind == "loglikelihood_rolling":
        return "measures the perplexity of whole texts, which has no right or wrong: choose another"
    if any(config.get(key) for key in ("doc_to_image", "doc_to_audio")):
        return "asks about images or sound, and only text is read here: choose another"
    if config.get("unsafe_code"):
        return "runs programs that the model wrote, without a sandbox: use the task humaneval, which has one"
    if int(config.get("repeats") or 1) > 1:
        return f"takes a vote of {config['repeats']} answers, which is not done here: choose another"
    if kind != "generate_until" and config.get("process_results") is not None:
        return "scores with a function of its own over all log-likelihoods, which is not done here: choose another"
    return ""


def _find(name: str) -> Path:
    """The YAML file of a task."""
    path = Path(name).expanduser()
    if name.endswith(_ENDINGS):
        if not path.is_file():
            raise DataError(f"the lm_eval task file {path} does not exist")
        return path
    if path.is_dir():
        tasks = folder_index(path).tasks
        if len(tasks) != 1:
            advice = f"load one, as lm_eval:{path}/{min(tasks)}" if tasks else "expected a file with 'task: NAME'"
            raise UsageError(f"the folder {path} holds {len(tasks)} lm_eval tasks: {advice}")
        return next(iter(tasks.values()))
    if "/" in name and path.parent.is_dir():
        return _listed(path.name, folder_index(path.parent), f"lm_eval task in {path.parent}")
    return _listed(name, shipped_index(), "lm_eval task")


def folder_index(folder: Path) -> Index:
    """The names in the task files below `folder`, as the harness reads them."""
    with quiet_libraries():
        from lm_eval.tasks import TaskManager

        manager = TaskManager(include_path=str(folder), include_defaults=False)
    entries = manager.task_index
    tasks = {name: Path(entries[name].yaml_path) for name in manager.all_subtasks}
    return Index(tasks, frozenset(manager.all_groups), {tag: sorted(entries[tag].tags) for tag in manager.all_tags})


@lru_cache(maxsize=1)
def shipped_index() -> Index:
    """The names of the tasks that come with the harness, read off the text of their files.

    The harness parses its 14 thousand files for the same purpose, which takes it half a minute.
    """
    package = importlib.util.find_spec("lm_eval")
    assert package is not None
    assert package.origin is not None
    tasks: dict[str, Path] = {}
    groups: set[str] = set()
    tags: dict[str, list[str]] = {}
    for path in sorted((Path(package.origin).parent / "tasks").rglob("*.yaml")):
        text = path.read_text(encoding="utf-8", errors="replace")
        names = {key: [match[3] for match in _NAME[key].finditer(text) if match[3]] for key in _NAME}
        groups.update(names["group"])
        for name in () if names["group"] else names["task"]:
            tasks.setdefault(name, path)
            listed = _LISTED_TAGS.search(text)
            for tag in names["tag"] + (re.findall(r"[\w./-]+", listed[1]) if listed else []):
                tags.setdefault(tag, []).append(name)
    return Index(tasks, frozenset(groups), tags)


def _listed(name: str, names: Index, kind: str) -> Path:
    if name in names.tasks:
        return names.tasks[name]
    if name in names.groups:
        raise UsageError(f"'{name}' is a group of lm_eval tasks: load one of them by its own name")
    if name in names.tags:
        raise UsageError(f"'{name}' is a tag of several lm_eval tasks: load one, such as {names.tags[name][0]}")
    if len(names.tasks) < 20:
        raise unknown_name(kind, name, names.tasks)
    raise unknown_among_many(kind, name, names.tasks, _FAMOUS)


def _with_paths(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """`config` with local data found where the task file stands; the harness looks in the working folder only."""

    def absolute(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: absolute(one) for key, one in value.items()}
        if isinstance(value, list):
            return [absolute(one) for one in value]
        beside = folder.resolve() / str(value)
        return str(beside) if isinstance(value, str) and value and beside.exists() else value

    arguments = dict(config.get("dataset_kwargs") or {})
    arguments |= {key: absolute(arguments[key]) for key in ("data_files", "data_dir") if key in arguments}
    path = absolute(config.get("dataset_path"))
    return config | {"dataset_path": path} | ({"dataset_kwargs": arguments} if arguments else {})


@contextlib.contextmanager
def harness_errors(name: str) -> Iterator[None]:
    """Turn whatever the harness and the code of its tasks raise into a `DataError` of one line."""
    try:
        yield
    except UpholdError:
        raise
    except OSError as error:
        raise DataError(
            f"the data of the lm_eval task '{name}' cannot be had: {one_line(error)}; check the network, or the "
            "dataset_path and data_files of your own task file"
        ) from error
    except Exception as error:
        raise DataError(
            f"lm-evaluation-harness fails on the task '{name}': {type(error).__name__}: {one_line(error)}"
        ) from error


@contextlib.contextmanager
def compiled_templates() -> Iterator[None]:
    """Let the harness keep its compiled templates: it compiles each one again for every document."""
    from lm_eval import utils

    compiled: Callable[..., Any] = lru_cache(maxsize=256)(utils.env.from_string)
    utils.env.from_string = compiled
    try:
        yield
    finally:
        del utils.env.from_string


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """Keep the harness from drawing progress bars while it builds requests."""
    from lm_eval.api import task

    bar = task.tqdm
    task.tqdm = lambda items, **_: items
    try:
        yield
    finally:
        task.tqdm = bar
