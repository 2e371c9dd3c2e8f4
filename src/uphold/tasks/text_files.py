r"""Tasks described by a small YAML file: a template over rows of data.

    name: capitals
    kind: choice                       # or generate
    data: capitals.jsonl               # or {train: a.jsonl, validation: b.jsonl, test: c.jsonl}
    split: {validation: 0.1, test: 0.2, seed: 0}      # shares of a single file
    prompt: "What is the capital of {country}?"
    target: "{capital}"                # text of the answer; for choice also its index or letter
    options: choices                   # a field with a list, or a fixed list here
    delimiter: " "                     # between prompt and answer
    scorer: exact                      # exact, exact_number, rouge1, rougeL (generate only)
    tags: [region]                     # fields to slice by
    decoding: {max_new_tokens: 32, stop: ["\n"], temperature: 0}

Rows come from JSONL, CSV and Parquet files, whose paths are relative to the YAML file, or from a Hugging Face dataset
(see `uphold.tasks.hub`):

    data: {hf: ID, config: NAME, revision: COMMIT, splits: {train: train, test: validation}}

`{choices.text}` and `{answers.text.0}` reach into nested fields. A file with `dataset_name: chain_sum` names a
reasoning-gym dataset instead, with the options of `rg:` tasks beside it.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Annotated, Any, Literal

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from uphold.core.errors import CorruptError, DataError, EmptyError
from uphold.core.hashing import canonical_json
from uphold.tasks import scorers
from uphold.tasks.base import Decoding, FixedTask, Instance, Split, divide, without_duplicates

Row = Mapping[str, Any]
_FIELD = re.compile(r"\{(\w+(?:\.\w+)*)\}")


@dataclass(frozen=True)
class Rows:
    """Rows of data, each with a text that says where it stands."""

    label: str
    """What they are called in messages."""
    rows: Iterable[tuple[str, Row]]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class DecodingFile(_Strict):
    """The `decoding` entry of a task file; see `uphold.tasks.base.Decoding`."""

    max_new_tokens: int = Field(default=64, ge=1)
    stop: tuple[str, ...] = ("\n",)
    temperature: float = Field(default=0.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)


class SplitShares(_Strict):
    """How a single data file is divided."""

    validation: float = Field(default=0.1, ge=0, lt=1)
    test: float = Field(default=0.2, ge=0, le=1)
    seed: int = 0

    @model_validator(mode="after")
    def _no_more_than_all(self) -> SplitShares:
        if self.validation + self.test > 1:
            raise ValueError(f"validation {self.validation} and test {self.test} are more than the whole")
        return self


class HubData(_Strict):
    """The `data` entry of a task whose rows are a Hugging Face dataset."""

    hf: str = Field(min_length=1)
    config: str = ""
    revision: str = ""
    splits: str | dict[Literal["train", "validation", "test"], str] = {}
    """One of its splits, to be divided, or which of its splits is which; by their own names when empty."""
    limit: int | None = Field(default=None, ge=1)
    """At most this many rows of each split, from its beginning."""


def _kind_of_data(value: Any) -> str:
    if isinstance(value, HubData) or (isinstance(value, dict) and "hf" in value):
        return "hub"
    return "files" if isinstance(value, dict) else "file"


class TaskFile(_Strict):
    """The schema of a task file."""

    name: str = ""
    kind: Literal["choice", "generate"]
    data: Annotated[
        Annotated[str, Tag("file")]
        | Annotated[dict[Literal["train", "validation", "test"], str], Tag("files")]
        | Annotated[HubData, Tag("hub")],
        Discriminator(_kind_of_data),
    ]
    split: SplitShares = SplitShares()
    prompt: str
    target: str
    options: str | list[str] | None = None
    delimiter: str = " "
    scorer: str = "exact"
    tags: list[str] = []
    decoding: DecodingFile = DecodingFile()


def read_yaml(path: Path) -> Any:
    """The value in a YAML file, read with the safe loader.

    Raises:
        DataError: it cannot be read or is not YAML.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read the task file {path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise DataError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error


def validation_message(error: ValidationError) -> str:
    """The first problem that pydantic found, in one line."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "the file"
    return f"{where}: {first['msg'].lower()}"


def load_task_file(path: Path) -> FixedTask:
    """The task that a YAML file describes.

    Raises:
        DataError: the file, or a row of its data, does not fit the schema; the message says where.
        UsageError: the file names a reasoning-gym dataset or an option that is not there.
        EmptyError: the data has no rows.
    """
    described = read_yaml(path)
    if isinstance(described, dict) and "dataset_name" in described:
        return _generated(described, path)
    try:
        spec = TaskFile.model_validate(described)
    except ValidationError as error:
        raise DataError(f"task file {path}: {validation_message(error)}") from error
    return task_from_rows(spec, _rows(spec, path.parent), spec.name or path.stem, f"task file {path}")


def task_from_rows(spec: TaskFile, rows: Rows | Mapping[Split, Rows], name: str, where: str) -> FixedTask:
    """The task that `spec` makes of rows, however they were read.

    Args:
        spec: templates, scoring and decoding; its `data` is not looked at.
        rows: of all splits together, to be divided as `spec.split` says, or of each split.
        name: what the task is called.
        where: what messages call the description.

    Raises:
        DataError: a row does not fit the schema; the message says which.
        EmptyError: there are no rows.
    """
    if spec.kind == "choice" and spec.options is None:
        raise DataError(f"{where}: a choice task needs 'options', a field name or a list")
    splits, notes = _splits(spec, rows)
    scorer_name, score = ("choice.v1", scorers.choice) if spec.kind == "choice" else scorers.scorer(spec.scorer)
    return FixedTask(
        name=name,
        kind=spec.kind,
        splits=splits,
        scorer=scorer_name,
        score_function=score,
        delimiter=spec.delimiter,
        decoding=Decoding(**spec.decoding.model_dump()),
        notes=tuple(notes),
    )


def _generated(described: Mapping[str, Any], path: Path) -> FixedTask:
    from uphold.tasks.generated_options import generated_from_mapping

    options = {str(key): value for key, value in described.items() if key not in ("name", "dataset_name")}
    return generated_from_mapping(str(described["dataset_name"]), options, str(described.get("name") or path.stem))


def _rows(spec: TaskFile, folder: Path) -> Rows | dict[Split, Rows]:
    if isinstance(spec.data, HubData):
        from uphold.tasks.hub import hub_rows

        return hub_rows(spec.data, folder)
    if isinstance(spec.data, str):
        return _file_rows(folder / spec.data)
    return {split: _file_rows(folder / data) for split, data in spec.data.items()}


def _file_rows(path: Path) -> Rows:
    return Rows(str(path), read_rows(path))


def _splits(spec: TaskFile, rows: Rows | Mapping[Split, Rows]) -> tuple[dict[Split, tuple[Instance, ...]], list[str]]:
    if isinstance(rows, Rows):
        instances, dropped = without_duplicates(_instances(spec, rows))
        order = np.random.default_rng(spec.split.seed).permutation(len(instances))
        test = round(spec.split.test * len(instances))
        validation = round(spec.split.validation * len(instances))
        sizes: dict[Split, int] = {
            "test": test,
            "validation": validation,
            "train": max(0, len(instances) - test - validation),
        }
        return divide([instances[i] for i in order], sizes), _dropped_note(dropped)
    splits: dict[Split, tuple[Instance, ...]] = {}
    total_dropped = 0
    for split, own in rows.items():
        unique, dropped = without_duplicates(_instances(spec, own))
        splits[split] = tuple(unique)
        total_dropped += dropped
    return splits, _dropped_note(total_dropped)


def _dropped_note(dropped: int) -> list[str]:
    return [f"{dropped} duplicate instances were left out"] if dropped else []


def _instances(spec: TaskFile, data: Rows) -> Iterator[Instance]:
    empty = True
    for where, row in data.rows:
        empty = False
        instance = _instance(spec, row, where)
        try:
            canonical_json([instance.prompt, instance.target, instance.options]).encode()
        except UnicodeEncodeError as error:
            raise CorruptError(f"{where}: half of a surrogate pair (\\ud800 to \\udfff) is not text") from error
        yield instance
    if empty:
        raise EmptyError(f"{data.label} has no rows: there is nothing to ask")


def _instance(spec: TaskFile, row: Row, where: str) -> Instance:
    options: tuple[str, ...] = ()
    if spec.kind == "choice":
        listed = spec.options if isinstance(spec.options, list) else _field(row, str(spec.options), where)
        if isinstance(listed, str):
            listed = [part.strip() for part in listed.split("|")]
        if not isinstance(listed, list):
            raise DataError(f"{where}: the options must be a list or a text with |, found {listed!r}")
        options = tuple(str(option) for option in listed)
        if len(set(options)) != len(options) or len(options) < 2:
            raise DataError(f"{where}: a choice needs at least two different options, found {list(options)}")
    target = _fill(spec.target, row, where)
    if options and target not in options:
        target = _option_at(target, options, where)
    return Instance(
        prompt=_fill(spec.prompt, row, where),
        target=target,
        options=options,
        tags={tag: str(_field(row, tag, where)) for tag in spec.tags},
    )


def _option_at(target: str, options: tuple[str, ...], where: str) -> str:
    index = -1
    if target.isdecimal():
        index = int(target)
    elif len(target) == 1:
        index = ascii_uppercase.find(target.upper())
    if 0 <= index < len(options):
        return options[index]
    raise DataError(f"{where}: the target {target!r} is neither an option of {list(options)} nor its index or letter")


def _fill(template: str, row: Row, where: str) -> str:
    return _FIELD.sub(lambda match: str(_field(row, match[1], where)), template)


def _field(row: Row, name: str, where: str) -> Any:
    value = row.get(name)
    if value is None and "." in name:
        value = _nested(row, name)
    if value is None:
        raise DataError(f"{where}: no field '{name}'; it has {', '.join(sorted(map(str, row))) or 'no fields'}")
    return value


def _nested(row: Row, name: str) -> Any:
    """What the steps of `a.b.0` lead to, None where a step leads nowhere."""
    value: Any = row
    for step in name.split("."):
        if isinstance(value, Mapping):
            value = value.get(step)
        elif isinstance(value, list) and step.isdecimal() and int(step) < len(value):
            value = value[int(step)]
        else:
            return None
    return value


def read_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Rows of a JSONL, CSV or Parquet file, each with a text that says where it stands.

    Raises:
        DataError: the file is missing or its ending is not one of .jsonl, .csv, .parquet.
        CorruptError: a row cannot be read; the message names the line.
    """
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: data files end in {', '.join(readers)}; rename or convert it")
    if not path.is_file():
        raise DataError(f"the data file {path} does not exist; paths are relative to the task file")
    yield from reader(path)


def _read_jsonl(path: Path) -> Iterator[tuple[str, Row]]:
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise CorruptError(f"{path} line {number}: expected a JSON object, found {type(row).__name__}")
                yield f"{path} line {number}", row
    except json.JSONDecodeError as error:
        raise CorruptError(f"{path} line {number}: not valid JSON ({error.msg})") from error
    except UnicodeDecodeError as error:
        raise CorruptError(f"{path} is not UTF-8 text ({error.reason})") from error


def _read_csv(path: Path) -> Iterator[tuple[str, Row]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            for row in reader:
                if None in row or None in row.values():
                    columns = len(reader.fieldnames or [])
                    raise CorruptError(f"{path} line {reader.line_num}: expected {columns} columns like the header")
                yield f"{path} line {reader.line_num}", row
    except (csv.Error, UnicodeDecodeError) as error:
        raise CorruptError(f"{path} cannot be read as CSV ({error})") from error


def _read_parquet(path: Path) -> Iterator[tuple[str, Row]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        number = 0
        for batch in pq.ParquetFile(path).iter_batches(1024):
            for row in batch.to_pylist():
                yield f"{path} row {number}", row
                number += 1
    except (pa.ArrowException, OSError) as error:
        raise CorruptError(f"{path} cannot be read as Parquet ({str(error).splitlines()[0]})") from error
