"""The files that lm-evaluation-harness writes with `--output_path ... --log_samples`, and which belong together.

    <output_path>/<model>/results_<date>.json           settings and scores of one invocation
    <output_path>/<model>/samples_<task>_<date>.jsonl   a line per document and filter
    <stem>_<date>.json                                  the results, where the output path ends in .json

Releases before 0.4.3 wrote `results.json` and `<model arguments>_<task>.jsonl` (a JSON array in spite of its name).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uphold.core.errors import DataError
from uphold.importers.files import Row, files_below, first_row, keys_of_head, read_json_file

_DATE = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}-\d{2}-\d{2}(?:\.\d+)?")
_SAMPLE_KEYS = {"doc_id", "doc", "target", "arguments", "resps", "filtered_resps"}
_OTHERS = {"evalId", "results.version", "results.timestamp", "results.prompts", "eval", "config_general"}


@dataclass(frozen=True)
class SampleFile:
    """The samples of one task, with the results of the invocation that wrote them."""

    path: Path
    task: str
    model: str
    date: str
    """When it was written; "" where the file name does not tell."""
    results: Row
    """What `results_<date>.json` holds; empty where it is not there."""

    def of_task(self, part: str) -> Any:
        """What one part of the results says on this task, e.g. `versions`; None where it says nothing."""
        values = self.results.get(part)
        return values.get(self.task) if isinstance(values, dict) else None

    def config(self, key: str) -> Any:
        """A setting of the invocation; None where it was not recorded."""
        values = self.results.get("config")
        return values.get(key) if isinstance(values, dict) else None


def is_samples(path: Path) -> bool:
    """Whether a file holds lm-eval's samples."""
    return path.is_file() and first_row(path).keys() >= _SAMPLE_KEYS


def is_results(path: Path) -> bool:
    """Whether a file holds lm-eval's results of one invocation."""
    if path.suffix != ".json" or not (path.name.startswith("results") or _date_of(path)):
        return False
    keys = keys_of_head(path)
    return "results" in keys and not keys & _OTHERS


def sample_files(path: Path) -> list[SampleFile]:
    """Every sample file that `path` names: itself, those of a results file, or those below a folder.

    Raises:
        DataError: there are results but no samples.
        CorruptError: a results file is not JSON.
    """
    if path.is_dir():
        found = [file for file in files_below(path, [".jsonl"]) if is_samples(file)]
    elif path.suffix == ".json" and not is_samples(path):
        date = _date_of(path)
        beside = files_below(path.parent, [".jsonl"])
        found = [file for file in beside if file.parent == path.parent and _date_of(file) == date and is_samples(file)]
    else:
        found = [path]
    if not found:
        raise DataError(
            f"{path} holds lm-eval's results but no samples_*.jsonl: the answers were not logged; "
            "run lm_eval again with --log_samples"
        )
    cache: dict[Path, Row] = {}
    return [_described(file, cache) for file in found]


def _described(path: Path, cache: dict[Path, Row]) -> SampleFile:
    date = _date_of(path)
    beside = _results_path(path, date)
    if beside is not None and beside not in cache:
        value = read_json_file(beside)
        if not isinstance(value, dict):
            raise DataError(f"{beside}: expected lm-eval's results as a JSON object, found {type(value).__name__}")
        cache[beside] = value
    results = cache[beside] if beside is not None else {}
    return SampleFile(path, _task_of(path, date, results), _model_of(path, results), date, results)


def _date_of(path: Path) -> str:
    found = _DATE.findall(path.stem)
    return found[-1] if found else ""


def _results_path(path: Path, date: str) -> Path | None:
    if not date:
        plain = path.parent / "results.json"
        return plain if plain.is_file() else None
    found = [file for file in sorted(path.parent.glob(f"*_{date}.json")) if is_results(file)]
    return found[0] if found else None


def _task_of(path: Path, date: str, results: Row) -> str:
    if date:
        return path.stem.removeprefix("samples_").removesuffix(f"_{date}")
    known = results.get("results")
    named = [str(task) for task in known if path.stem.endswith(str(task))] if isinstance(known, dict) else []
    return max(named, key=len) if named else path.stem.rpartition(",")[2].removeprefix("samples_")


def _model_of(path: Path, results: Row) -> str:
    named = results.get("model_name")
    config = results.get("config")
    if not named and isinstance(config, dict):
        args = config.get("model_args")
        text = ",".join(f"{key}={value}" for key, value in args.items()) if isinstance(args, dict) else str(args or "")
        named = next((part.partition("=")[2] for part in text.split(",") if part.startswith("pretrained=")), None)
    return str(named or path.resolve().parent.name or path.stem)
