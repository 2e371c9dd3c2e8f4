"""One line of lm-eval's samples as a record."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from types import NoneType
from typing import Any, NamedTuple

from uphold.core.errors import DataError
from uphold.core.hashing import sha256_of
from uphold.core.records import Record
from uphold.importers.files import Row, as_text, tags_of

_JUDGED = ("acc", "accuracy", "em", "exact", "match", "pass", "correct", "mc1")
_DIGITS = 9
_GREEDY = {"True": True, "False": False, True: True, False: False}
_REQUIRED = {"doc_id", "doc", "target", "arguments", "resps"}
_FIELDS = _REQUIRED | {"filtered_resps", "filter", "metrics", "doc_hash"}
_KINDS: tuple[tuple[str, tuple[type, ...], str], ...] = (
    ("doc_id", (int, str), "a number or text"),
    ("arguments", (dict, list), "an object or a list"),
    ("resps", (list,), "a list"),
    ("filter", (str,), "text"),
    ("metrics", (list, NoneType), "a list of names"),
    ("doc_hash", (str, NoneType), "text"),
)


class Sample(NamedTuple):
    """What a line holds."""

    doc_id: int | str
    doc: Any
    target: Any
    requests: list[tuple[Any, ...]]
    """The arguments of each request: context and continuation, or context and generation settings."""
    resps: list[Any]
    filtered_resps: Any
    filter: str
    metrics: list[str] | None
    doc_hash: str | None
    row: Row
    """The whole line, where metrics stand beside the other fields under their own names."""

    @property
    def document(self) -> str:
        """The harness's hash of the document; computed as it does where an old release left it out."""
        return self.doc_hash or hashlib.sha256(json.dumps(self.doc, indent=2, ensure_ascii=False).encode()).hexdigest()

    def extra_names(self) -> list[str]:
        """What stands in the line beside the fields of a `Sample`: metrics, and in some releases hashes."""
        return [name for name in self.row if name not in _FIELDS]

    def metric_names(self) -> list[str]:
        """The metrics of this line that are one number."""
        names = self.extra_names() if self.metrics is None else self.metrics
        return [name for name in names if isinstance(self.value(name), int | float)]

    def value(self, metric: str) -> Any:
        """What the metric is here; None where it is not there."""
        return None if metric in _FIELDS else self.row.get(metric)


def sample_of(row: Row, where: str) -> Sample:
    """A line of the log as a sample.

    Written out because a log has many lines: a pydantic model takes three times as long.

    Raises:
        DataError: a field is missing or of another type; the message names it.
    """
    if not row.keys() >= _REQUIRED:
        raise DataError(f"{where}: {', '.join(sorted(_REQUIRED - row.keys()))}: field required")
    for name, kinds, expected in _KINDS:
        if name in row and not isinstance(row[name], kinds):
            raise DataError(f"{where}: {name}: expected {expected}, found {type(row[name]).__name__}")
    asked = row["arguments"]
    if isinstance(asked, dict):
        requests = [tuple(entry.values()) if isinstance(entry, dict) else (entry,) for entry in asked.values()]
    else:
        requests = [tuple(entry) if isinstance(entry, list) else (entry,) for entry in asked]
    metrics = row.get("metrics")
    if metrics is not None and not all(isinstance(name, str) for name in metrics):
        raise DataError(f"{where}: metrics: expected a list of names")
    return Sample(
        row["doc_id"],
        row["doc"],
        row["target"],
        requests,
        row["resps"],
        row.get("filtered_resps"),
        row.get("filter", "none"),
        metrics,
        row.get("doc_hash"),
        row,
    )


class Answer(NamedTuple):
    """What the model did on one sample, in a record's words."""

    prompt: str
    output: str
    answer: str
    target: str
    options: tuple[str, ...] = ()
    logprobs: tuple[float, ...] = ()


def score_of(sample: Sample, metric: str, where: str) -> tuple[bool | None, float | None]:
    """Right or wrong, and the score; both None where the metric is NaN.

    Raises:
        DataError: the metric is not there, not one number, or outside [0, 1].
    """
    value = sample.value(metric)
    if value is None:
        raise DataError(f"{where}: no metric '{metric}'; there are {', '.join(sample.metric_names()) or 'none'}")
    if not isinstance(value, int | float):
        raise DataError(
            f"{where}: the metric '{metric}' is {type(value).__name__}, a part of a score over the whole task and no "
            f"number of this instance; choose another with metric (--metric): {', '.join(sample.metric_names())}"
        )
    if isinstance(value, float) and math.isnan(value):
        return None, None
    if not 0 <= value <= 1:
        raise DataError(
            f"{where}: the metric '{metric}' is {value}: scores lie in [0, 1]; choose another with metric (--metric): "
            f"{', '.join(sample.metric_names())}"
        )
    right = bool(value) if value in (0, 1) and (isinstance(value, bool) or is_judged(metric)) else None
    return right, float(value)


@functools.cache
def is_judged(metric: str) -> bool:
    """Whether a metric's name says that it tells right from wrong (`acc`, `exact_match`, `pass@1`, ...)."""
    return any(word in _JUDGED for word in metric.replace("@", "_").replace("-", "_").lower().split("_"))


def answer_of(sample: Sample, metric: str, delimiter: str | None, where: str, by_number: bool = True) -> Answer:
    """What was asked and what came back; `by_number` says what the target of several options is (`is_by_number`).

    Raises:
        DataError: arguments or responses have another shape than the harness writes.
    """
    requests = sample.requests
    if not requests or not requests[0]:
        raise DataError(f"{where}: no arguments: the harness wrote no request for this document")
    scored = _likelihoods(sample.resps)
    if scored and len(scored) == len(requests) and all(map(_is_continuation, requests)):
        return _chosen_option(requests, scored, metric, delimiter, as_text(sample.target), by_number)
    first = sample.resps[0] if sample.resps else ""
    output = as_text(first[0] if isinstance(first, list) and first else first)
    kept: Any = sample.filtered_resps
    kept = kept[0] if isinstance(kept, list) and len(kept) == 1 else kept
    return Answer(as_text(requests[0][0]), output, as_text(kept).strip(), as_text(sample.target))


def _likelihoods(responses: list[Any]) -> list[tuple[float, bool]] | None:
    """Log-likelihoods, and whether the continuation is the greedy one; None where a response is a text."""
    found = []
    for response in responses:
        while isinstance(response, list) and len(response) == 1:
            response = response[0]
        if not isinstance(response, list) or len(response) != 2:
            return None
        try:
            found.append((float(response[0]), _GREEDY[response[1]]))
        except (KeyError, OverflowError, TypeError, ValueError):
            return None
    return found


def _is_continuation(request: tuple[Any, ...]) -> bool:
    return len(request) > 1 and isinstance(request[0], str) and isinstance(request[1], str)


def _chosen_option(
    requests: list[tuple[Any, ...]],
    scored: list[tuple[float, bool]],
    metric: str,
    delimiter: str | None,
    target: str,
    by_number: bool,
) -> Answer:
    contexts: list[str] = [request[0] for request in requests]
    texts: list[str] = [request[1] for request in requests]
    half = len(texts) // 2
    if half and texts[:half] == texts[half:] and not any(contexts[half:]):  # acc_mutual_info asks twice
        unconditional = [value for value, _ in scored[half:]]
        contexts, texts, scored = contexts[:half], texts[:half], scored[:half]
    else:
        unconditional = [0.0] * len(texts)
    prompt = contexts[0]
    if len(texts) == 1:
        said = texts[0].strip() if scored[0][1] else ""
        return Answer(prompt, said, said, texts[0].strip(), (texts[0].strip(),), (scored[0][0],))
    if contexts.count(prompt) < len(contexts):  # the options stand before a common ending
        prompt = _common_start(contexts)
        options = [f"{context[len(prompt) :]}{text}".strip() for context, text in zip(contexts, texts, strict=True)]
        raw = [context[len(prompt) :] for context in contexts]
    else:
        cut = delimiter if delimiter is not None else " " if all(text.startswith(" ") for text in texts) else ""
        raw = options = [text.removeprefix(cut) for text in texts]
    values = [value for value, _ in scored]
    chosen = _chosen(values, unconditional, [greedy for _, greedy in scored], raw, metric)
    said = options[chosen] if chosen is not None else ""
    return Answer(prompt, said, said, _gold(target, options, by_number), tuple(options), tuple(values))


def _common_start(texts: list[str]) -> str:
    first, last = min(texts), max(texts)
    same = next((index for index, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first))
    return first[:same]


def _chosen(
    values: list[float], unconditional: list[float], greedy: list[bool], options: list[str], metric: str
) -> int | None:
    """The option that the metric takes for the model's answer, None where no option is the greedy one."""
    if metric == "exact_match":
        return greedy.index(True) if True in greedy else None
    if metric == "acc_mutual_info":
        values = [value - alone for value, alone in zip(values, unconditional, strict=True)]
    if metric in ("acc_norm", "acc_bytes"):
        sizes = [len(option.encode() if metric == "acc_bytes" else option) for option in options]
        values = [value / max(size, 1) for value, size in zip(values, sizes, strict=True)]
    return values.index(max(values))


def _gold(target: str, options: Sequence[str], by_number: bool) -> str:
    """The right option as text."""
    place = _place(target, options) if by_number else None
    return target if place is None else options[place]


def _place(target: str, options: Sequence[str]) -> int | None:
    """The place that `target` names among the options; None where it names none."""
    if not target.isdecimal() or len(target) > _DIGITS or int(target) >= len(options):
        return None
    return int(target)


def is_by_number(sample: Sample, answer: Answer, metric: str) -> bool | None:
    """Whether targets are the numbers of options or their texts; None where this sample does not tell.

    Most tasks log the number. Where options are numbers themselves, a target `2` may be either, and that reading holds
    by which the model's answer was right or wrong as the metric says.
    """
    target, options = as_text(sample.target), answer.options
    if target not in options:
        return True
    place = _place(target, options)
    if place is None:
        return False
    right = bool(sample.value(metric))
    fits = [(reading == answer.answer) == right for reading in (options[place], target)]
    return fits[0] if fits[0] != fits[1] else None


def record_of(
    sample: Sample, task: str, occurrence: int, metric: str, answer: Answer, tags: Mapping[str, str], where: str
) -> Record:
    """The record of one sample.

    Args:
        sample: the line.
        task: the task's name.
        occurrence: how many equal documents came before it.
        metric: what says right from wrong.
        answer: what was asked and what came back.
        tags: name of the tag to field of the document.
        where: file and line, for errors.

    Raises:
        DataError: the line does not hold what a record needs.
    """
    correct, score = score_of(sample, metric, where)
    return Record(
        id=sha256_of(["lm-eval", task, sample.document, occurrence])[:16],
        input=answer.prompt,
        target=answer.target,
        output=answer.output,
        answer=answer.answer,
        correct=correct,
        score=score,
        options=answer.options,
        option_logprobs=answer.logprobs,
        tags=tags_of(sample.doc, tags) if tags and isinstance(sample.doc, dict) else {},
    )
