"""Logs of OpenAI evals: JSONL with a line for the specification, one for every event, and one for the report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from uphold.core.errors import CorruptError, DataError, EmptyError, UsageError, unknown_name
from uphold.core.hashing import sha256_of
from uphold.core.records import Record
from uphold.importers.files import Row, as_text, first_row, parse, rows, sha256_of_log, tags_of
from uphold.importers.formats import Choice, LoggedTask, Reading, log_format

_MATCH = "match"
_RUN = ("seed", "max_samples")
"""The parts of the run's configuration, beside the evaluation's own, that decide what is asked."""


class Spec(BaseModel):
    """The first line."""

    completion_fns: list[str]
    eval_name: str
    base_eval: str | None = None
    split: str | None = None
    run_config: dict[str, Any] = Field(default_factory=dict)


class Event(BaseModel):
    """What happened to one sample."""

    sample_id: str | None = None
    event_id: int = 0
    type: str
    data: Any = None


@dataclass
class _Sample:
    """What the events of one sample say; they come in any order, and of samplings the first is the model's."""

    prompt: Any = None
    sampled: Any = None
    first: int | None = None
    where: str = ""
    match: dict[str, Any] | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    error: bool = False


def is_openai_evals(path: Path) -> bool:
    """Whether a file holds a log of OpenAI evals."""
    if not path.is_file():
        return False
    first = first_row(path)
    spec = first.get("spec")
    return (isinstance(spec, dict) and "eval_name" in spec) or first.keys() >= {"event_id", "sample_id", "type", "data"}


@log_format("openai-evals", detect=is_openai_evals, uses=("columns", "metric"))
def openai_evals(path: Path, choice: Choice) -> list[LoggedTask]:
    """Logs of OpenAI evals (JSONL)."""
    spec = _spec(path)
    setup = spec.run_config.get("eval_spec")
    facts: dict[str, Any] = {
        "base_eval": spec.base_eval,
        "split": spec.split,
        "eval_spec": {key: setup[key] for key in ("cls", "args") if key in setup} if isinstance(setup, dict) else {},
        **{key: spec.run_config.get(key) for key in _RUN},
    }
    return [
        LoggedTask(spec.eval_name, ",".join(spec.completion_fns), sha256_of_log(path), _Reader(path, choice), facts)
    ]


def _spec(path: Path) -> Spec:
    for where, row in rows(path):
        if "spec" in row:
            return parse(Spec, row["spec"], f"{where}: spec")
    raise CorruptError(f"{path} has no line with the 'spec' of the evaluation: its beginning is missing; copy it again")


@dataclass(frozen=True)
class _Reader:
    """Goes through one log."""

    path: Path
    choice: Choice

    def __call__(self, log: Reading) -> Iterator[Record]:
        """The records, by the samples' ids."""
        samples = self._samples(log)
        metric = self._metric(samples)
        log.facts["metric"] = metric
        for name, sample in sorted(samples.items()):
            correct, score = self._judgement(sample, metric)
            if score is None:
                log.count(f"samples {'that ended in an error' if sample.error else 'without a judgement'}, left out")
            matched = sample.match or {}
            prompt = _conversation(sample.prompt if sample.prompt is not None else matched.get("prompt"))
            output = _text(sample.sampled if sample.sampled is not None else matched.get("sampled"))
            picked = matched.get("picked")
            yield Record(
                id=sha256_of(["openai-evals", name, prompt])[:16],
                input=prompt,
                target=_text(matched.get("expected")),
                output=output,
                answer=(_text(picked) if picked is not None else output).strip(),
                correct=correct,
                score=score,
                tags=tags_of({"sample_id": name, **matched}, self.choice.columns),
            )

    def _samples(self, log: Reading) -> dict[str, _Sample]:
        samples: dict[str, _Sample] = {}
        complete = False
        for where, row in rows(self.path, log):
            if "spec" in row or "final_report" in row:
                complete |= "final_report" in row
                continue
            event = parse(Event, row, where)
            if event.sample_id is not None:
                _take_in(samples.setdefault(event.sample_id, _Sample()), event, where)
        if not complete:
            log.counts["the log has no final report (the evaluation was killed), samples read"] = len(samples)
        if not samples:
            raise EmptyError(f"{self.path} holds no event of a sample: there is nothing to compare")
        return samples

    def _metric(self, samples: Mapping[str, _Sample]) -> str:
        """`match` where the evaluation matched answers, else the metric that was asked for, or the only one."""
        known = dict.fromkeys(key for sample in samples.values() for key in sample.metrics)
        names = [*([_MATCH] if any(sample.match for sample in samples.values()) else []), *known]
        wanted = self.choice.metric
        if wanted is None and (_MATCH in names or len(names) == 1):
            return names[0]
        if wanted in names and wanted is not None:
            return wanted
        if not names:
            raise DataError(f"{self.path} has neither 'match' nor 'metrics' events: nothing says what was right")
        if wanted is None:
            raise UsageError(f"{self.path} has the metrics {', '.join(names)}: choose one with metric (--metric)")
        raise unknown_name("metric", wanted, names, f"It is looked for in {self.path}.")

    def _judgement(self, sample: _Sample, metric: str) -> tuple[bool | None, float | None]:
        value = (sample.match or {}).get("correct") if metric == _MATCH else sample.metrics.get(metric)
        if value is None or value != value:
            return None, None
        if not isinstance(value, bool | int | float) or not 0 <= value <= 1:
            raise DataError(
                f"{sample.where}: the metric '{metric}' is {str(value)[:40]!r}: expected true, false or a number in "
                "[0, 1]; choose another with metric (--metric)"
            )
        return (bool(value) if value in (0, 1) else None), float(value)


def _take_in(sample: _Sample, event: Event, where: str) -> None:
    data: Row = event.data if isinstance(event.data, dict) else {}
    sample.where = where
    if event.type == "sampling" and (sample.first is None or event.event_id < sample.first):
        sample.first, sample.prompt, sample.sampled = event.event_id, data.get("prompt"), data.get("sampled")
    elif event.type == _MATCH:
        if sample.match is not None and sample.match != data:
            raise DataError(
                f"{where}: sample {event.sample_id} was matched twice with different outcomes: there is no one answer "
                "per sample in this log"
            )
        sample.match = data
    elif event.type == "metrics":
        sample.metrics |= data
    elif event.type == "error":
        sample.error = True


def _text(value: Any) -> str:
    """A value as text; of a list with one entry, the entry."""
    return as_text(value[0]) if isinstance(value, list) and len(value) == 1 else as_text(value)


def _conversation(prompt: Any) -> str:
    """The prompt as text: messages keep role and content."""
    if isinstance(prompt, list) and all(isinstance(message, dict) and "content" in message for message in prompt):
        return "\n\n".join(f"{message.get('role', '')}: {as_text(message['content'])}" for message in prompt)
    return as_text(prompt)
