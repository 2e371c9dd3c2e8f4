"""Results of promptfoo: the JSON of `promptfoo eval --output results.json` (version 2 or 3), or JSONL."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from uphold.core.errors import CorruptError, DataError, unknown_name
from uphold.core.hashing import sha256_of
from uphold.core.records import Record
from uphold.importers.files import (
    Row,
    as_text,
    first_row,
    keys_of_head,
    parse,
    read_json_file,
    rows,
    sha256_of_log,
    tags_of,
)
from uphold.importers.formats import Choice, LoggedTask, Reading, log_format

_FAILED_BY_ERROR = 2
_DECODING = ("temperature", "max_tokens", "max_completion_tokens", "maxOutputTokens", "top_p", "topP", "top_k", "topK", "stop", "stopSequences", "seed", "n", "frequency_penalty", "presence_penalty", "reasoning_effort", "generationConfig")  # noqa: E501  # fmt: skip
"""The settings of a provider that decide its answers. Others may hold credentials, and are not copied."""


class Provider(BaseModel):
    """Which model answered."""

    id: str = ""
    label: str | None = None


class TestCase(BaseModel):
    """What was asked for."""

    vars: dict[str, Any] | None = None
    asserts: list[Any] | None = Field(default=None, alias="assert")
    metadata: dict[str, Any] | None = None


class Prompt(BaseModel):
    """The prompt as it was sent, and its template's name."""

    raw: Any = ""
    label: str | None = None


class Result(BaseModel):
    """One provider's answer to one prompt and test."""

    provider: Provider | str
    success: bool
    test_case: TestCase = Field(default_factory=TestCase, alias="testCase")
    prompt_id: str | None = Field(default=None, alias="promptId")
    prompt: Prompt = Field(default_factory=Prompt)
    vars: dict[str, Any] | None = None
    response: Any = None
    error: Any = None
    failure: int | None = Field(default=None, alias="failureReason")
    score: float | None = None
    named_scores: dict[str, Any] | None = Field(default=None, alias="namedScores")
    token_usage: dict[str, Any] | None = Field(default=None, alias="tokenUsage")

    @property
    def model(self) -> str:
        """The label that its user gave the provider, or the provider's id."""
        if isinstance(self.provider, str):
            return self.provider
        return self.provider.label or self.provider.id

    @property
    def unanswered(self) -> bool:
        """Whether the call failed, so that there is no answer that could be right or wrong."""
        if self.failure is not None:
            return self.failure == _FAILED_BY_ERROR
        return self.error is not None and self.response is None


def is_promptfoo(path: Path) -> bool:
    """Whether a file holds promptfoo's results."""
    if not path.is_file():
        return False
    keys = keys_of_head(path)
    if "results" in keys and ({"evalId", "results.version"} & keys or {"results.timestamp", "results.stats"} & keys):
        return "results.version" in keys or "results.prompts" in keys or "results.results" in keys
    return first_row(path).keys() >= {"promptIdx", "testIdx", "provider", "success"}


@log_format("promptfoo", detect=is_promptfoo, uses=("columns", "metric", "model"))
def promptfoo(path: Path, choice: Choice) -> list[LoggedTask]:
    """Results of promptfoo (JSON of version 2 or 3, JSONL)."""
    file = _ResultFile(path, "results" in keys_of_head(path))
    head = file.head()
    config = head.get("config")
    config = config if isinstance(config, dict) else {}
    metadata = head.get("metadata")
    release = metadata.get("promptfooVersion") if isinstance(metadata, dict) else None
    models = dict.fromkeys(parse(Result, row, where).model for where, row in file.results())
    content = sha256_of_log(path)
    return [
        LoggedTask(
            str(config.get("description") or "promptfoo"),
            model,
            sha256_of([content, model]),
            _Reader(file, model, choice),
            {"metric": choice.metric or "success", "gen_kwargs": _decoding(config, model)},
            versions={"promptfoo": release} if release else {},
        )
        for model in models
    ]


def _decoding(config: Mapping[str, Any], model: str) -> dict[str, Any]:
    """The decoding settings of a provider as the configuration lists them."""
    providers = config.get("providers")
    for entry in providers if isinstance(providers, list) else [providers]:
        if isinstance(entry, dict) and model in (entry.get("label"), entry.get("id")):
            settings = entry.get("config")
            return {key: settings[key] for key in _DECODING if key in settings} if isinstance(settings, dict) else {}
    return {}


@dataclass(frozen=True)
class _ResultFile:
    path: Path
    whole: bool
    """Whether it is one JSON object; a JSONL file otherwise."""

    def head(self) -> Row:
        """What stands beside the results."""
        return {key: value for key, value in self._value().items() if key != "results"} if self.whole else {}

    def results(self, log: Reading | None = None) -> Iterator[tuple[str, Row]]:
        """Every result with the place where it stands."""
        if not self.whole:
            yield from rows(self.path, log)
            return
        summary = self._value().get("results")
        found = summary.get("results") if isinstance(summary, dict) else summary
        if not isinstance(found, list):
            raise CorruptError(f"{self.path}: results.results: expected a list, found {type(found).__name__}")
        if log is not None:
            log.total = len(found)
        for number, value in enumerate(found, start=1):
            where = f"{self.path} result {number}"
            if not isinstance(value, dict):
                raise CorruptError(f"{where}: expected a JSON object, found {type(value).__name__}")
            if log is not None:
                log.done = number
            yield where, value

    def _value(self) -> Row:
        value = read_json_file(self.path)
        if not isinstance(value, dict):
            raise CorruptError(f"{self.path}: expected a JSON object, found {type(value).__name__}")
        return value


@dataclass(frozen=True)
class _Reader:
    """Goes through one provider's results."""

    file: _ResultFile
    model: str
    choice: Choice

    def __call__(self, log: Reading) -> Iterator[Record]:
        """The records, in the order of the log."""
        occurrences: dict[str, int] = {}
        for where, row in self.file.results(log):
            result = parse(Result, row, where)
            if result.model != self.model:
                continue
            case = result.test_case
            given = case.vars or result.vars or {}
            asked = sha256_of([given, case.asserts or [], result.prompt_id or as_text(result.prompt.raw)])
            before = occurrences.get(asked, 0)
            occurrences[asked] = before + 1
            if before:
                log.count("results that repeat a test, told apart by their order")
            correct, score = self._judgement(result, where)
            if score is None:
                log.count("results without an answer because the call failed, left out")
            output = _output(result.response)
            usage = result.token_usage or {}
            yield Record(
                id=sha256_of(["promptfoo", asked, before])[:16],
                input=as_text(result.prompt.raw),
                target=_expected(case.asserts or []),
                output=output,
                answer=output.strip(),
                correct=correct,
                score=score,
                tokens=usage["total"] if isinstance(usage.get("total"), int) else 0,
                tags=tags_of({**row, **given, **(case.metadata or {})}, self.choice.columns),
            )

    def _judgement(self, result: Result, where: str) -> tuple[bool | None, float | None]:
        """Right or wrong and the score: by `success`, or the score that `metric` names; both None without an answer."""
        if result.unanswered:
            return None, None
        if self.choice.metric in (None, "success"):
            return result.success, float(result.success)
        named = {**(result.named_scores or {}), "score": result.score}
        if self.choice.metric not in named:
            raise unknown_name("metric", str(self.choice.metric), [*named, "success"], f"It is looked for in {where}.")
        value = named[self.choice.metric]
        if not isinstance(value, int | float) or not 0 <= value <= 1:
            raise DataError(f"{where}: the metric '{self.choice.metric}' is {value!r}: expected a number in [0, 1]")
        return (bool(value) if isinstance(value, bool) else None), float(value)


def _output(response: Any) -> str:
    return as_text(response.get("output")) if isinstance(response, dict) else as_text(response)


def _expected(assertions: list[Any]) -> str:
    """What the assertions ask for, in words; assertions that only measure do not count."""
    counted = [one for one in assertions if isinstance(one, dict) and not one.get("metricOnly")]
    return "; ".join(f"{one.get('type', '')} {as_text(one.get('value'))}".strip() for one in counted)
