"""Logs of inspect_ai: `.eval` and `.json` files, and folders of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from uphold.core.errors import DataError, EmptyError, UsageError, unknown_name
from uphold.core.hashing import sha256_of
from uphold.core.records import Record
from uphold.importers.files import as_text, files_below, parse, sha256_of_log, tags_of, value_at
from uphold.importers.formats import Choice, LoggedTask, Reading, log_format, model_called
from uphold.importers.inspect_files import InspectFile, is_inspect_file, read_inspect

_NO_ANSWER = "N"
_VALUES = {"C": 1.0, "P": 0.5, "I": 0.0, _NO_ANSWER: 0.0}
_ATTACHMENT = "attachment://"
_CONNECTION = ("max_retries", "timeout", "attempt_timeout", "max_connections", "adaptive_connections", "batch", "extra_headers", "cache", "cache_prompt")  # noqa: E501  # fmt: skip
"""Settings of `GenerateConfig` that say how a model is reached, not what it answers."""


class Dataset(BaseModel):
    """What was asked."""

    name: str | None = None
    shuffled: bool | None = None


class Scorer(BaseModel):
    """What judged."""

    name: str
    options: dict[str, Any] | None = None


class Spec(BaseModel):
    """The parts of `EvalSpec` that decide whether two logs can be compared."""

    task: str
    model: str
    created: str = ""
    task_version: int | str = 0
    task_args: dict[str, Any] = Field(default_factory=dict)
    solver: str | None = None
    solver_args: dict[str, Any] | None = None
    dataset: Dataset = Field(default_factory=Dataset)
    model_base_url: str | None = None
    model_generate_config: dict[str, Any] = Field(default_factory=dict)
    config: dict[str, Any] = Field(default_factory=dict)
    packages: dict[str, str] = Field(default_factory=dict)
    scorers: list[Scorer] | None = None


class Score(BaseModel):
    """What one scorer said of a sample."""

    value: Any
    answer: str | None = None


class Sample(BaseModel):
    """The parts of `EvalSample` that a record needs."""

    id: int | str
    epoch: int = 1
    input: str | list[dict[str, Any]]
    choices: list[str] | None = None
    target: str | list[str] = ""
    output: dict[str, Any] = Field(default_factory=dict)
    scores: dict[str, Score] | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)
    attachments: dict[str, str] = Field(default_factory=dict)
    model_usage: dict[str, dict[str, Any]] = Field(default_factory=dict)
    error: Any = None
    invalidation: Any = None


def is_inspect(path: Path) -> bool:
    """Whether `path` is a log of inspect_ai or a folder with one."""
    if path.is_dir():
        return any(is_inspect_file(file) for file in files_below(path, [".eval", ".json"]))
    return is_inspect_file(path)


@log_format("inspect", detect=is_inspect, uses=("columns", "metric", "model"))
def inspect(path: Path, choice: Choice) -> list[LoggedTask]:
    """Logs of inspect_ai (.eval, .json), or folders of them."""
    paths = [path]
    if path.is_dir():
        paths = [file for file in files_below(path, [".eval", ".json"]) if is_inspect_file(file)]
    logs = [_Log(read_inspect(file), choice) for file in paths]
    groups: dict[tuple[str, str], list[_Log]] = {}
    for log in logs:
        groups.setdefault((log.spec.model, log.spec.task), []).append(log)
    models = {log.spec.model for log in logs}
    model = model_called(choice.model, models) if choice.model else next(iter(models)) if len(models) == 1 else None
    if model is None:  # the caller says which there are
        return [LoggedTask(task, name, "", lambda _: iter(())) for name, task in groups]
    return [_newest(group).described() for (name, _), group in sorted(groups.items()) if name == model]


def _newest(group: list[_Log]) -> _Log:
    dated = sorted(group, key=lambda log: log.spec.created)
    newest = dated[-1]
    if len(dated) > 1 and dated[-2].spec.created == newest.spec.created:
        raise DataError(
            f"{dated[-2].file.path} and {newest.file.path} are both logs of the task '{newest.spec.task}', and neither "
            "is newer: name one of them"
        )
    if len(dated) > 1:
        older = ", ".join(log.spec.created for log in dated[:-1])
        created = newest.spec.created
        newest.notes.append(f"{newest.spec.task}: the log of {created} is read, older ones ({older}) are not")
    return newest


class _Log:
    """One log; calling it goes through its samples."""

    def __init__(self, file: InspectFile, choice: Choice) -> None:
        self.file = file
        self.choice = choice
        self.spec = parse(Spec, file.header.get("eval"), f"{file.path}: eval")
        self.notes: list[str] = []
        self.scorer, self.part = "", ""

    def described(self) -> LoggedTask:
        """This log as what is stored of it."""
        spec, status = self.spec, self.file.header.get("status")
        self.scorer, self.part = self._chosen_scorer()
        if status != "success":
            self.notes.append(f"{spec.task}: the evaluation did not end well ({status}); samples may be missing")
        options = next((scorer.options for scorer in spec.scorers or () if _short(scorer.name) == self.scorer), None)
        plan = self.file.header.get("plan")
        planned = plan.get("config") if isinstance(plan, dict) else None
        generation = {**spec.model_generate_config, **(planned if isinstance(planned, dict) else {})}
        return LoggedTask(
            spec.task,
            spec.model,
            sha256_of_log(self.file.path),
            self,
            {
                "version": spec.task_version,
                "task_args": spec.task_args,
                "dataset": spec.dataset.name,
                "scorer": f"{self.scorer}.{self.part}" if self.part else self.scorer,
                "scorer_options": options or {},
                "solver": spec.solver,
                "solver_args": spec.solver_args or {},
                "gen_kwargs": {key: value for key, value in generation.items() if key not in _CONNECTION},
                "limit": spec.config.get("limit"),
                "epochs": spec.config.get("epochs") or 1,
            },
            versions=spec.packages,
            notes=tuple(self.notes),
        )

    def _chosen_scorer(self) -> tuple[str, str]:
        """The scorer, and the key of its values where they are mappings."""
        names = [_short(scorer.name) for scorer in self.spec.scorers or ()]
        if not names or len(set(names)) < len(names):  # of two with one name, samples call the second "name1"
            found: dict[str, None] = {}
            for where, row in self.file.samples():
                found |= dict.fromkeys(parse(Sample, row, where).scores or {})
            names = list(found)
        where = f"It is looked for in {self.file.path}."
        if not names:
            raise EmptyError(f"{self.file.path}: no sample was scored; run 'inspect score' on the log first")
        wanted = self.choice.metric
        if wanted is None and len(names) > 1:
            raise UsageError(f"{self.file.path} was scored by {', '.join(names)}: choose one with metric (--metric)")
        if wanted is None or wanted in names:
            return wanted or names[0], ""
        scorer = max((name for name in names if wanted.startswith(f"{name}.")), key=len, default=None)
        if scorer is None:
            raise unknown_name("scorer", wanted, names, where)
        return scorer, wanted[len(scorer) + 1 :]

    def __call__(self, log: Reading) -> Iterator[Record]:
        """The records, in the order of the log."""
        log.total = self.file.count
        seen: set[tuple[str, int]] = set()
        scorers: set[str] = set()
        for where, row in self.file.samples():
            sample = parse(Sample, row, where)
            log.done += 1
            if (str(sample.id), sample.epoch) in seen:
                raise DataError(f"{where}: sample {sample.id!r} of epoch {sample.epoch} is in the log twice")
            seen.add((str(sample.id), sample.epoch))
            scorers |= (sample.scores or {}).keys()
            yield self._record(sample, row, log, where)
        if scorers and self.scorer not in scorers:
            others = ", ".join(sorted(scorers))
            raise DataError(
                f"{self.file.path}: no sample was scored by '{self.scorer}'; choose one of {others} with metric "
                "(--metric)"
            )

    def _record(self, sample: Sample, row: Mapping[str, Any], log: Reading, where: str) -> Record:
        attachments = sample.attachments
        prompt = _conversation(sample.input, attachments)
        given = (sample.scores or {}).get(self.scorer)
        correct, score = self._judgement(sample, given, log, where)
        output = _resolved(_completion(sample.output), attachments)
        answer = _resolved(given.answer, attachments) if given is not None and given.answer is not None else output
        targets = [sample.target] if isinstance(sample.target, str) else sample.target
        return Record(
            id=sha256_of(["inspect", self.spec.task, sample.id, sample.epoch, prompt])[:16],
            input=prompt,
            target=" | ".join(_resolved(target, attachments) for target in targets),
            output=output,
            answer=answer.strip(),
            correct=correct,
            score=score,
            options=tuple(sample.choices or ()),
            tokens=sum(_whole(usage.get("total_tokens")) for usage in sample.model_usage.values()),
            tags=tags_of({**row, **sample.metadata}, self.choice.columns),
        )

    def _judgement(
        self, sample: Sample, given: Score | None, log: Reading, where: str
    ) -> tuple[bool | None, float | None]:
        """Right or wrong, and the score; both None, and counted, where there is no judgement."""
        if sample.invalidation is not None:
            log.count("samples that were invalidated, left out")
            return None, None
        value = given.value if given is not None else None
        if self.part and isinstance(value, dict):
            if self.part not in value:
                raise unknown_name("part of a score", self.part, map(str, value), f"It is looked for in {where}.")
            value = value[self.part]
        if isinstance(value, dict | list):
            parts = ", ".join(f"{self.scorer}.{part}" for part in value) if isinstance(value, dict) else ""
            raise DataError(
                f"{where}: the score of '{self.scorer}' is a {type(value).__name__} and no single value"
                + (f"; choose a part of it with metric (--metric): {parts}" if parts else "")
            )
        if value is None:
            log.count(f"samples {'that ended in an error' if sample.error else 'without a score'}, left out")
            return None, None
        score = _number(value, f"{where}: the score of '{self.scorer}'")
        if score is None:
            log.count("samples scored NaN, left out")
            return None, None
        if value == _NO_ANSWER:
            log.count("samples scored N (no answer), which count as wrong")
        if value == "P":
            log.count("samples with partial credit (P = 0.5), for which scores are compared, not right and wrong")
        return (bool(score) if score in (0, 1) else None), score


def _number(value: Any, where: str) -> float | None:
    """A score in [0, 1]; None where it says that there is none."""
    if isinstance(value, str):
        word = value.strip()
        if word.lower() == "nan":
            return None
        if word.upper() in _VALUES:
            return _VALUES[word.upper()]
        if word.lower() in ("yes", "true", "no", "false"):
            return float(word.lower() in ("yes", "true"))
        try:
            value = float(word)
        except ValueError:
            raise DataError(f"{where} is {word[:40]!r}: expected C, P, I, N or a number in [0, 1]") from None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise DataError(f"{where} is {type(value).__name__}: expected C, P, I, N or a number in [0, 1]") from None
    if math.isnan(number):
        return None
    if not 0 <= number <= 1:
        raise DataError(f"{where} is {number}: scores lie in [0, 1]; choose another scorer with metric (--metric)")
    return number


def _conversation(messages: str | list[dict[str, Any]], attachments: Mapping[str, str]) -> str:
    """The input as text. Messages keep role and content; their ids are drawn anew in every evaluation."""
    if isinstance(messages, str):
        return _resolved(messages, attachments)
    return "\n\n".join(
        f"{message.get('role', '')}: {_content(message.get('content'), attachments)}" for message in messages
    )


def _content(content: Any, attachments: Mapping[str, str]) -> str:
    if not isinstance(content, list):
        return _resolved(as_text(content), attachments)
    return "\n".join(_part(part, attachments) for part in content)


def _part(part: Any, attachments: Mapping[str, str]) -> str:
    """A text, or an image or another medium in words."""
    if not isinstance(part, dict):
        return as_text(part)
    if isinstance(part.get("text"), str):
        return _resolved(part["text"], attachments)
    return as_text({key: _resolved(as_text(value), attachments) for key, value in part.items() if key != "id"})


def _short(name: str) -> str:
    """A scorer's name without the package it comes from: what samples call it."""
    return name.rpartition("/")[2]


def _completion(output: Mapping[str, Any]) -> str:
    if isinstance(output.get("completion"), str):
        return str(output["completion"])
    content = value_at(output, "choices.0.message.content")
    return _content(content, {})


def _resolved(text: str, attachments: Mapping[str, str]) -> str:
    """`text`, or the long text that stands in its place elsewhere in the sample."""
    return attachments.get(text.removeprefix(_ATTACHMENT), text) if text.startswith(_ATTACHMENT) else text


def _whole(value: Any) -> int:
    return value if isinstance(value, int) else 0
