"""The record: what one model did on one instance. It is all that measuring needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from uphold.core.errors import DataError
from uphold.core.hashing import sha256_of

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True)
class Record:
    """One model's answer to one instance."""

    id: str
    """Content hash of the instance (see `instance_id`): the same question has the same id in every run."""
    input: str
    """The prompt as the model saw it."""
    target: str
    """The gold answer as text."""
    output: str
    """What the model said: the chosen option, or the generated text."""
    answer: str
    """The part of `output` that is compared and scored; two runs agree on an instance when answers are equal."""
    correct: bool | None
    """Right or wrong; None where the score is continuous only (ROUGE, BLEU, a judge)."""
    score: float | None
    """In [0, 1]; None when the instance could not be scored, which is counted and never read as wrong."""
    options: tuple[str, ...] = ()
    """For `choice` tasks, the options in the task's order."""
    option_logprobs: tuple[float, ...] = ()
    """Summed log-likelihood (nats) of each option given the prompt."""
    tokens: int = 0
    """Tokens the model read and wrote for this instance."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Named properties of the instance to slice by."""


FIELDS = tuple(entry.name for entry in fields(Record))


def instance_id(prompt: str, target: str, options: Sequence[str] = (), *more: Any) -> str:
    """The content hash (16 hex digits) that pairs an instance across runs; `more` tells apart equal questions."""
    return sha256_of([prompt, target, list(options), *more])[:16]


def schema() -> pa.Schema:
    """The Parquet schema of stored records."""
    import pyarrow as pa

    text = pa.string()
    return pa.schema(
        [
            ("id", text),
            ("input", text),
            ("target", text),
            ("output", text),
            ("answer", text),
            ("correct", pa.bool_()),
            ("score", pa.float64()),
            ("options", pa.list_(text)),
            ("option_logprobs", pa.list_(pa.float64())),
            ("tokens", pa.int64()),
            ("tags", pa.map_(text, text)),
        ]
    )


def to_table(records: Iterable[Record]) -> pa.Table:
    """Records as an Arrow table sorted by id.

    Raises:
        DataError: two records share an id, a score is outside [0, 1], or a field is of another type than `Record` says.
    """
    import pyarrow as pa

    given = list(records)
    try:
        ordered = sorted(given, key=attrgetter("id"))
        _check(ordered)
        columns = [list(map(attrgetter(name), ordered)) for name in FIELDS]
        columns[FIELDS.index("tags")] = [sorted(record.tags.items()) for record in ordered]
        return pa.table(columns, schema=schema())
    except (pa.ArrowException, AttributeError, TypeError, ValueError) as error:
        raise DataError(f"a record holds a value of the wrong type: {' '.join(str(error).split())}") from error


def _check(ordered: list[Record]) -> None:
    """Refuse two records with one id, which stand side by side in `ordered`, and scores outside [0, 1]."""
    before = None
    for record in ordered:
        if record.id == before:
            raise DataError(
                f"two records have the id '{record.id}' (input {record.input[:60]!r}): every instance may be "
                "answered once; remove the duplicate"
            )
        before, score = record.id, record.score
        if score is not None and (score < 0 or score > 1):
            raise DataError(f"the record '{record.id}' has the score {score}: scores lie in [0, 1], scale them")


def from_row(row: Mapping[str, Any]) -> Record:
    """The record in one row of a stored table."""
    values = dict(row)
    values["options"] = tuple(values["options"] or ())
    values["option_logprobs"] = tuple(values["option_logprobs"] or ())
    values["tags"] = dict(values["tags"] or ())
    return Record(**values)
