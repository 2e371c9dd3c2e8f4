"""Plain tables: JSONL, CSV, TSV or Parquet with a row per instance."""

from __future__ import annotations

import contextlib
import csv
import io
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from uphold.core.errors import CorruptError, DataError, EmptyError, UsageError
from uphold.core.hashing import sha256_of
from uphold.core.records import Record
from uphold.importers.files import Row, as_text, first_row, head, reading, rows, sha256_of_log, tags_of, value_at
from uphold.importers.formats import Choice, LoggedTask, Reading, log_format

ROLES: dict[str, tuple[str, ...]] = {
    "id": ("id", "qid", "question_id", "item_id", "sample_id", "instance_id", "example_id"),
    "input": ("input", "prompt", "question", "query", "instruction"),
    "output": ("output", "response", "prediction", "pred", "completion", "reply", "generation", "model_output"),
    "target": ("target", "gold", "expected", "reference", "label", "ground_truth", "ideal", "answer"),
    "correct": ("correct", "is_correct", "is_right", "pass", "passed", "success"),
    "score": ("score",),
    "answer": ("extracted_answer", "parsed_answer"),
}
"""What a column can be, and the names by which it is found where `columns` does not say."""
_RIGHT = {"true", "1", "1.0", "yes", "y", "t", "pass", "passed", "correct", "right", "c"}
_WRONG = {"false", "0", "0.0", "no", "n", "f", "fail", "failed", "incorrect", "wrong", "i"}
_MISSING = {"", "none", "null", "nan", "n/a", "na"}
_UNSCORED = "rows that say neither right nor wrong nor a score, left out"


def is_table(path: Path) -> bool:
    """Whether a file holds rows with named columns."""
    if not path.is_file():
        return False
    start = head(path, 4096)
    ending = path.suffix.lower()
    if start.startswith(b"PAR1"):
        return True
    if ending in (".csv", ".tsv"):
        return (b"\t" if ending == ".tsv" else b",") in start.partition(b"\n")[0] and b"\0" not in start
    return ending in (".jsonl", ".ndjson", ".json") and _is_rows(path, start)


def _is_rows(path: Path, start: bytes) -> bool:
    """Whether a JSON file holds many objects, not one."""
    return bool(first_row(path)) and (path.suffix.lower() != ".json" or start.lstrip().startswith(b"["))


@log_format("table", detect=is_table, uses=("columns",), fallback=True)
def table(path: Path, choice: Choice) -> list[LoggedTask]:
    """JSONL, CSV, TSV or Parquet files with a row per instance."""
    names = _column_names(path)
    roles, tags = _columns(path, names, choice.columns)
    judged = "correct" if "correct" in roles else "score" if "score" in roles else "exact"
    notes = [f"columns read: {', '.join(f'{role}={column}' for role, column in sorted(roles.items()))}"]
    if "output" not in roles and "answer" not in roles:
        notes.append("no column holds answers (output=COLUMN), so that a changed answer shows only as a flip")

    def records(log: Reading) -> Iterator[Record]:
        yield from _records(path, roles, tags, log)

    return [LoggedTask("log", path.stem, sha256_of_log(path), records, {"scorer": judged}, notes=tuple(notes))]


def _column_names(path: Path) -> list[str]:
    """The columns of the first row.

    Raises:
        EmptyError: there is no row.
    """
    for _, row in _rows(path, Reading()):
        return [str(name) for name in row]
    raise EmptyError(f"{path} has no rows: there is nothing to compare")


def _columns(path: Path, names: list[str], asked: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Which column is what, and which are tags.

    Raises:
        UsageError: a column that was named is not there.
        DataError: no columns say which instance a row is, or whether it was right.
    """
    for role, column in asked.items():
        if column.partition(".")[0] not in names and column not in names:
            raise UsageError(f"{path} has no column '{column}' for {role}: its columns are {', '.join(names)}")
    roles = {role: column for role, column in asked.items() if role in ROLES}
    small = {name.lower(): name for name in reversed(names)}
    free = [name for name in small if small[name] not in asked.values()]
    for role, known in ROLES.items():
        found = next((small[name] for name in known if name in free), None)
        if role not in roles and found is not None and found not in roles.values():
            roles[role] = found
    if "output" not in roles and "answer" in free and small["answer"] not in roles.values():
        roles["output"] = small["answer"]
    if "id" not in roles and "input" not in roles:
        raise DataError(_lacking(path, names, "which instance a row is", "id=COLUMN or input=COLUMN"))
    if not {"correct", "score"} & roles.keys() and not {"output", "target"} <= roles.keys():
        raise DataError(_lacking(path, names, "what was right", "correct=COLUMN, score=COLUMN, or output and target"))
    return roles, {role: column for role, column in asked.items() if role not in ROLES}


def _lacking(path: Path, names: list[str], what: str, how: str) -> str:
    return f"{path}: no column says {what}; type --columns {how} (its columns are {', '.join(names)})"


def _records(path: Path, roles: Mapping[str, str], tags: Mapping[str, str], log: Reading) -> Iterator[Record]:
    seen: dict[str, str] = {}
    occurrences: dict[str, int] = {}
    for where, row in _rows(path, log):
        values = {role: value_at(row, column) for role, column in roles.items()}
        text = {role: as_text(value) for role, value in values.items()}
        name = text.get("id", "")
        if "id" in roles:
            if not name:
                raise DataError(f"{where}: the column '{roles['id']}' is empty, so the instance has no id")
            if name in seen:
                raise DataError(
                    f"{where}: the id '{name}' was there before, in {seen[name].removeprefix(f'{path} ')}: every "
                    "instance may be answered once"
                )
            seen[name] = where
        else:
            content = sha256_of([text.get("input", ""), text.get("target", "")])[:16]
            before = occurrences.get(content, 0)
            occurrences[content] = before + 1
            name = sha256_of([content, before])[:16]
            if before:
                log.count("rows that ask what a row before them asks, told apart by their order")
        correct, score = _judgement(values, roles, where)
        if score is None:
            log.count(_UNSCORED)
        output = text.get("output", "")
        yield Record(
            id=name,
            input=text.get("input", ""),
            target=text.get("target", ""),
            output=output,
            answer=text.get("answer") or output.strip(),
            correct=correct,
            score=score,
            tags=tags_of(row, tags),
        )


def _judgement(values: Mapping[str, Any], roles: Mapping[str, str], where: str) -> tuple[bool | None, float | None]:
    """Right or wrong, and the score, of one row; both None where nothing says it."""
    score = _number(values["score"], f"{where}: the column '{roles['score']}'") if "score" in roles else None
    if "correct" in roles:
        correct = _truth(values["correct"], f"{where}: the column '{roles['correct']}'")
        if correct is None:
            return None, None
        return correct, float(correct) if score is None else score
    if "score" in roles:
        return (bool(score) if score in (0, 1) else None), score
    answer = as_text(values["answer"] if values.get("answer") is not None else values["output"])
    correct = answer.strip() == as_text(values["target"]).strip()
    return correct, float(correct)


def _truth(value: Any, where: str) -> bool | None:
    word = str(value).strip().lower()
    if value is None or word in _MISSING:
        return None
    if word in _RIGHT or word in _WRONG:
        return word in _RIGHT
    raise DataError(f"{where} is {str(value)[:40]!r}: expected true or false, 1 or 0, pass or fail, or nothing")


def _number(value: Any, where: str) -> float | None:
    if value is None or str(value).strip().lower() in _MISSING:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise DataError(f"{where} is {str(value)[:40]!r}: expected a number in [0, 1]") from None
    if math.isnan(number):
        return None
    if not 0 <= number <= 1:
        raise DataError(f"{where} is {number}: scores lie in [0, 1], scale them")
    return number


def _rows(path: Path, log: Reading) -> Iterator[tuple[str, Row]]:
    if head(path, 4) == b"PAR1":
        return _parquet_rows(path, log)
    if path.suffix.lower() in (".csv", ".tsv"):
        return _csv_rows(path, log)
    return rows(path, log)


def _csv_rows(path: Path, log: Reading) -> Iterator[tuple[str, Row]]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    with reading(path), path.open("rb") as raw, _long_fields():
        log.total = path.stat().st_size
        table = csv.reader(io.TextIOWrapper(raw, "utf-8-sig", newline=""), delimiter=delimiter, strict=True)
        names: list[str] = []
        try:
            for values in table:
                log.done = raw.tell()
                if not names:
                    names = _header(values, path)
                elif len(values) == len(names):
                    yield f"{path} line {table.line_num}", dict(zip(names, values, strict=True))
                elif values:
                    raise CorruptError(
                        f"{path} line {table.line_num}: {len(values)} columns where the header has {len(names)}; the "
                        "file is cut short or a quotation mark is missing"
                    )
        except csv.Error as error:
            raise CorruptError(f"{path} line {table.line_num}: not valid CSV ({error})") from error


def _header(names: list[str], path: Path) -> list[str]:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{path}: two columns are called '{twice[0]}'; rename one")
    return names


@contextlib.contextmanager
def _long_fields() -> Iterator[None]:
    """The csv module refuses fields of more than 128 KiB unless told otherwise."""
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _parquet_rows(path: Path, log: Reading) -> Iterator[tuple[str, Row]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            log.total = file.metadata.num_rows
            for batch in file.iter_batches(4096):
                for row in batch.to_pylist():
                    log.done += 1
                    yield f"{path} row {log.done}", row
    except (pa.ArrowException, OSError, ValueError) as error:
        raise CorruptError(f"{path} cannot be read as Parquet ({str(error).splitlines()[0]})") from error
