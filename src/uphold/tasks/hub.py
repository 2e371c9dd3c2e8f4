r"""Rows of Hugging Face datasets, by id or from a local folder or file that the package `datasets` reads.

    hf:allenai/openbookqa:config=main,prompt="{question_stem}",options=choices.text,target="{answerKey}"
    hf:data/questions:split=validation,prompt="Q: {q}\nA:",target="{a}"

Datasets that come with code of their own are not loaded.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from uphold.core.errors import DataError, UsageError, unknown_name
from uphold.core.progress import Progress, silent
from uphold.tasks.base import SPLITS, FixedTask, Split
from uphold.tasks.options import one_line
from uphold.tasks.text_files import HubData, Row, Rows, TaskFile, task_from_rows, validation_message

_BUILDERS = {
    ".json": "json",
    ".jsonl": "json",
    ".csv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".txt": "text",
}


def hub_task(
    dataset: str,
    *,
    prompt: str,
    target: str,
    options: str | list[str] | None = None,
    config: str = "",
    revision: str = "",
    split: str = "",
    scorer: str = "exact",
    delimiter: str = " ",
    limit: int | None = None,
    max_new_tokens: int = 64,
    stop: tuple[str, ...] = ("\n",),
    temperature: float = 0.0,
    label: str = "",
    progress: Progress = silent,
) -> FixedTask:
    """A task from a Hugging Face dataset.

    Args:
        dataset: hub id, or the path of a folder or data file.
        prompt: template; `{field}` and `{field.nested.0}` stand for what a row holds.
        target: template of the answer; for choices also its index or letter.
        options: field with a list of options, or the options; a `generate` task without.
        config: configuration (subset) of the dataset.
        revision: commit, tag or branch.
        split: the one split to use, divided into test (20%), validation (10%) and train; without it the dataset's
            own splits are used by their names.
        scorer: of generated answers, see `uphold.tasks.scorers`.
        delimiter: what stands between prompt and answer.
        limit: at most this many rows of each split, from its beginning.
        max_new_tokens: of generated answers.
        stop: what ends a generated answer.
        temperature: 0 is greedy.
        label: name of the task.
        progress: called before and after the dataset is read.

    Raises:
        UsageError: the package `datasets` is missing, or an option does not fit.
        DataError: the dataset cannot be had, or a row does not fit the templates.
    """
    name = label or f"hf:{dataset}"
    described = {
        "kind": "generate" if options is None else "choice",
        "data": {"hf": dataset, "config": config, "revision": revision, "splits": split, "limit": limit},
        "decoding": {"max_new_tokens": max_new_tokens, "stop": stop, "temperature": temperature},
    }
    templates = {"prompt": prompt, "target": target, "options": options, "delimiter": delimiter, "scorer": scorer}
    try:
        spec = TaskFile.model_validate(described | templates)
    except ValidationError as error:
        raise UsageError(f"task '{name}': {validation_message(error)}") from error
    assert isinstance(spec.data, HubData)
    return task_from_rows(spec, hub_rows(spec.data, Path(), progress), name, f"task '{name}'")


def hub_rows(data: HubData, folder: Path, progress: Progress = silent) -> Rows | dict[Split, Rows]:
    """The rows of a dataset: of one split to be divided, or of each of ours.

    Args:
        data: which dataset and which of its splits.
        folder: where local paths start.
        progress: called before and after the dataset is read.

    Raises:
        UsageError: the package `datasets` is missing, or a split is not there.
        DataError: the dataset cannot be had.
    """
    what = f"reading {data.hf}"
    progress(what, 0, 1)
    splits = _load(data, folder)
    progress(what, 1, 1)
    wanted = data.splits or _by_name(data.hf, list(splits))
    if isinstance(wanted, str):
        return _rows_of(data, splits, wanted)
    return {ours: _rows_of(data, splits, theirs) for ours, theirs in wanted.items()}


def _by_name(dataset: str, names: list[str]) -> str | dict[Split, str]:
    """The only split there is, or the splits that are called as ours are; one of them must be `test`."""
    if len(names) == 1:
        return names[0]
    if "test" not in names:
        raise UsageError(
            f"the dataset '{dataset}' has the splits {', '.join(names)} and none called test: name one with "
            f"split={names[-1]}, or in a task file as splits: {{test: {names[-1]}}}"
        )
    return {split: split for split in SPLITS if split in names}


def _rows_of(data: HubData, splits: Mapping[str, Any], name: str) -> Rows:
    if name not in splits:
        raise unknown_name("split", name, splits, f"It is asked of the dataset '{data.hf}'.")
    rows = splits[name]
    if data.limit is not None and data.limit < len(rows):
        rows = rows.select(range(data.limit))
    return Rows(f"the split '{name}' of {data.hf}", _numbered(f"{data.hf} {name}", rows))


def _numbered(where: str, rows: Any) -> Iterator[tuple[str, Row]]:
    with dataset_errors(where):
        for number, row in enumerate(rows):
            yield f"{where} row {number}", row


def _load(data: HubData, folder: Path) -> Mapping[str, Any]:
    """The dataset's splits by name."""
    if importlib.util.find_spec("datasets") is None:
        raise UsageError("Hugging Face datasets need the package datasets: pip install 'uphold[datasets]'")
    import datasets

    path = folder / Path(data.hf).expanduser()
    with dataset_errors(data.hf), quiet_libraries():
        if path.is_dir() and any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
            loaded = datasets.load_from_disk(str(path))
        elif path.is_file():
            loaded = datasets.load_dataset(_builder(path), data_files=str(path))
        else:
            source = str(path) if path.is_dir() else data.hf
            loaded = datasets.load_dataset(source, data.config or None, revision=data.revision or None)
    return loaded if isinstance(loaded, dict) else {str(loaded.split or "train"): loaded}


def _builder(path: Path) -> str:
    if path.suffix.lower() not in _BUILDERS:
        raise DataError(f"{path}: data files end in {', '.join(_BUILDERS)}; rename or convert it")
    return _BUILDERS[path.suffix.lower()]


@contextlib.contextmanager
def dataset_errors(dataset: str) -> Iterator[None]:
    """Turn what the package `datasets` and the hub raise into a `DataError` of one line."""
    from datasets.exceptions import DatasetsError

    try:
        yield
    except (DatasetsError, OSError, ValueError, LookupError, TypeError, RuntimeError, ImportError) as error:
        raise DataError(
            f"cannot load the dataset '{dataset}': {one_line(error.__cause__ or error)}; check its name, config and "
            "revision and the network, or give the path of a folder or file"
        ) from error


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep what dataset libraries log, warn of, print and draw from the user's terminal."""
    import datasets

    libraries: list[Any] = [datasets, importlib.import_module("huggingface_hub.utils")]
    drawing = [library for library in libraries if not library.are_progress_bars_disabled()]
    for library in drawing:
        library.disable_progress_bars()
    try:
        with quiet_logs(), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for library in drawing:
            library.enable_progress_bars()


@contextlib.contextmanager
def quiet_logs() -> Iterator[None]:
    """Keep what dataset libraries log and warn of from the user's terminal."""
    loggers = [logging.getLogger(name) for name in ("datasets", "huggingface_hub", "lm_eval", "evaluate")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
