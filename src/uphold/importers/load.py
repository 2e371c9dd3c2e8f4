"""From a file or folder that another tool wrote to stored runs."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from uphold.core.errors import CorruptError, DataError, EmptyError, UsageError, unknown_name
from uphold.core.hashing import sha256_of
from uphold.core.progress import Progress, silent
from uphold.core.records import Record
from uphold.core.runs import Run, RunStore, RunWriter, default_store, is_run, load_run, write_run
from uphold.core.storage import disk_errors, read_json, write_json
from uphold.importers.files import is_model_or_run
from uphold.importers.formats import (
    Choice,
    LogFormat,
    LoggedTask,
    Reading,
    detected,
    format_called,
    log_formats,
    model_called,
)

READER = 1
"""Number of the rules by which logs are read; a new one makes every log be read anew."""
PART = 20_000


def is_log(path: str | Path) -> bool:
    """Whether `path` is another tool's log: decided by what is in it, and only its beginning is read.

    A folder with a model, an adapter, a run or a comparison is none. `path` may end in `#MODEL`.
    """
    try:
        found, _ = split_model(path)
        return found.exists() and not (found.is_dir() and is_model_or_run(found)) and bool(detected(found))
    except DataError:
        return False


def import_log(
    path: str | Path,
    *,
    store: RunStore | None = None,
    columns: Mapping[str, str] | None = None,
    log_format: str | None = None,
    filter: str | None = None,
    metric: str | None = None,
    progress: Progress = silent,
) -> list[Run]:
    """The runs in another tool's log, one per task; what was imported before is not read again.

    Args:
        path: a file, or a folder where the format has folders; `path#MODEL` picks one of several models.
        store: where runs are kept; `uphold.core.runs.default_store()` by default.
        columns: which column of a table is what (`{"id": "qid", "output": "answer_text"}`); any other name becomes a
            tag. In other formats every name is a tag, taken from the field of the instance that the value names.
        log_format: the name of the format, where it cannot be told from the content.
        filter: which of several lm-eval filters.
        metric: which metric or scorer says what is right.
        progress: called while a log is read.

    Raises:
        UsageError: a name that is not in the log, or an option that its format does not have.
        DataError: it is no log, or one that cannot be read or says nothing per instance.
        CorruptError: a damaged file; the message names the line.
        EmptyError: there is nothing in it.
    """
    found, model = split_model(path)
    if not found.exists():
        raise DataError(f"there is no file or folder {path}")
    choice = Choice(dict(columns or {}), filter, metric, model)
    form = format_called(log_format) if log_format else _only_format(found)
    _check_choice(form, choice)
    keep = store or default_store()
    return [_stored(task, form, choice, keep, progress) for task in _checked(form.read(found, choice), found, choice)]


def split_model(path: str | Path) -> tuple[Path, str | None]:
    """The existing file or folder that `path` begins with, and the model's name behind `#`.

    Raises:
        DataError: no file can have that name.
    """
    text = str(path)
    if not text:
        raise DataError("a log has a path, and this one is empty: type the name of a file or folder")
    try:
        ends = [len(text), *(position for position, sign in enumerate(text) if sign == "#")]
        end = next((end for end in ends if Path(text[:end]).exists()), len(text))
    except (OSError, ValueError) as error:
        raise DataError(f"no file can be called {text[:60]!r} ({error})") from error
    return Path(text[:end]), text[end + 1 :] or None


def _only_format(path: Path) -> LogFormat:
    found = detected(path)
    if len(found) == 1:
        return found[0]
    if found:
        names = " or ".join(form.name for form in found)
        raise UsageError(f"{path} could be {names}: say which with log_format (--log-format)")
    if path.is_file() and path.stat().st_size == 0:
        raise EmptyError(f"{path} is empty: there is no log in it")
    known = "; ".join(f"{form.name} ({form.summary.rstrip('.')})" for form in log_formats())
    raise DataError(f"{path} is no log that can be read; looked for {known}")


def _check_choice(form: LogFormat, choice: Choice) -> None:
    for option in ("columns", "filter", "metric", "model"):
        if getattr(choice, option) and option not in form.uses:
            what = f"#{choice.model}" if option == "model" else option
            raise UsageError(f"a log of the format {form.name} has no choice of {option}: leave {what} out")


def _checked(tasks: Sequence[LoggedTask], path: Path, choice: Choice) -> list[LoggedTask]:
    """The tasks of the one model that was asked for."""
    if not tasks:
        raise EmptyError(f"{path} holds no samples: there is nothing to compare")
    models = sorted({task.model for task in tasks})
    if choice.model is None and len(models) > 1:
        raise UsageError(f"{path} holds {len(models)} models ({', '.join(models)}): type {path}#MODEL for one")
    model = models[0] if choice.model is None else model_called(choice.model, models)
    if model is None:
        raise unknown_name("model", str(choice.model), models, f"It is looked for in {path}.")
    return [task for task in tasks if task.model == model]


def _stored(task: LoggedTask, form: LogFormat, choice: Choice, store: RunStore, progress: Progress) -> Run:
    picked = [sorted(choice.columns.items()), choice.filter, choice.metric]
    facts = [task.task_facts, task.model_facts, task.batching, task.versions]
    key = sha256_of([READER, form.name, task.content, task.task, picked, facts])[:24]
    folder = store.root / ".imports"
    run = _known(folder / f"{key}.json", store)
    if run is None:
        run = _read(task, form, choice, store, folder, progress)
        write_json(folder / f"{key}.json", {"run": run.path.name})
    notes = [*run.fingerprint["log"]["notes"], *task.notes]
    named: dict[str, Any] = {**run.fingerprint, "log": {**run.fingerprint["log"], "notes": notes}}
    for part, name in (("model", task.model), ("task", task.task)):
        named[part] = {**named[part], "name": name}
    return Run(run.path, named, run.count, run.sha256)


def _known(index: Path, store: RunStore) -> Run | None:
    """The run that an earlier import made, if it is still there and whole."""
    if not index.is_file():
        return None
    try:
        folder = store.root / str(read_json(index)["run"])
        return load_run(folder) if is_run(folder) else None
    except (CorruptError, KeyError, TypeError):  # the log is there, so that it can be read anew
        return None


def _read(task: LoggedTask, form: LogFormat, choice: Choice, store: RunStore, folder: Path, progress: Progress) -> Run:
    """Read all records, in bounded memory, into parts of a run whose name is known only at the end.

    The last records are handed on as they are: most logs are shorter than one part, and are written once.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=folder))
    try:
        writer, digest, log = RunWriter(scratch, {}), _Digest(), Reading()
        parts, block = 0, list[Record]()
        # In a table, columns that are no tags are named, too, and one that is missing was refused.
        tags = set() if form.fallback else set(choice.columns)
        what = f"read {task.task} of {task.model}"
        for record in task.records(log):
            if len(block) == PART:
                writer.write(parts, block)
                progress(what, log.done, max(log.total, log.done + 1))
                parts, block = parts + 1, []
            digest.add(record)
            block.append(record)
            for name in tags - record.tags.keys():
                log.count(f"instances without a value for the tag '{name}' ({choice.columns[name]})")
        if not block:
            raise EmptyError(f"the log of the task '{task.task}' holds no samples: there is nothing to compare")
        run = _finish(scratch, parts, block, _fingerprint(task, form, log, digest), store)
        progress(what, max(log.total, 1), max(log.total, 1), f"{run.count} instances")
        return run
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _fingerprint(task: LoggedTask, form: LogFormat, log: Reading, digest: _Digest) -> dict[str, Any]:
    found = {
        "model": {"name": task.model, "log": task.content, **task.model_facts},
        "task": {"name": task.task, "format": form.name, **task.task_facts, **log.facts, **digest.facts()},
        "batching": dict(task.batching),
        "seed": 0,
        "versions": {"reader": READER, **task.versions},
        "log": {"format": form.name, "notes": log.notes()},
    }
    return dict(_plain(found))


def _plain(value: Any) -> Any:
    """`value` as JSON can hold it: NaN and infinity, which some tools write, as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value


def _finish(scratch: Path, parts: int, last: Sequence[Record], fingerprint: dict[str, Any], store: RunStore) -> Run:
    """The stored run out of the parts in `scratch` and the `last` records."""
    with store.claim(fingerprint, lambda: None):
        with contextlib.suppress(CorruptError):  # a damaged run is written anew
            found = store.find(fingerprint)
            if found is not None:
                return found
        writer = store.writer(fingerprint)
        with disk_errors(writer.folder):
            shutil.rmtree(writer.folder, ignore_errors=True)
            writer.folder.mkdir(parents=True)
            if parts:
                os.replace(scratch / "parts", writer.folder / "parts")
        with contextlib.ExitStack() as undo:
            undo.callback(shutil.rmtree, writer.folder, ignore_errors=True)
            if parts:
                writer.write(parts, last)
                run = writer.finish(parts + 1)
            else:
                run = write_run(writer.folder, last, fingerprint)
            undo.pop_all()
        return run


class _Digest:
    """Hashes of all prompts and of all gold answers, each with its instance's id, whatever their order.

    The hash of a set is the sum of its elements' SHA-256 modulo 2^256, so that nothing has to be kept or sorted.
    """

    def __init__(self) -> None:
        self.prompts = self.targets = 0

    def add(self, record: Record) -> None:
        """Take in one record."""
        self.prompts += _number(record.id, record.input, *record.options)
        self.targets += _number(record.id, record.target)

    def facts(self) -> dict[str, str]:
        """`prompts` and `targets` as 64 hex digits each."""
        return {name: f"{getattr(self, name) % (1 << 256):064x}" for name in ("prompts", "targets")}


def _number(*texts: str) -> int:
    joined = "".join([f"{len(text)}:{text}" for text in texts])
    return int.from_bytes(hashlib.sha256(joined.encode()).digest(), "big")
