"""Logs of lm-evaluation-harness (`--log_samples`)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from uphold.core.errors import DataError, EmptyError, UsageError, unknown_name
from uphold.core.hashing import canonical_json, sha256_of
from uphold.core.records import Record
from uphold.importers.files import files_below, rows, sha256_of_log
from uphold.importers.formats import Choice, LoggedTask, Reading, log_format, model_called
from uphold.importers.lm_eval_files import SampleFile, is_results, is_samples, sample_files
from uphold.importers.lm_eval_samples import Sample, answer_of, is_by_number, is_judged, record_of, sample_of

_PREFERRED = ("acc", "exact_match")
_SECRET = re.compile(r"key|secret|password|authorization|(^|_)(auth|access|api|hf)_?token$|^token$", re.IGNORECASE)
_TWICE = "lines that are in the log twice (the harness appends to its files), read once"
_NAN = "documents whose metric is NaN, left out"


def is_lm_eval(path: Path) -> bool:
    """Whether `path` is a sample file, a results file, or a folder with one of them."""
    if path.is_dir():
        return any(is_samples(file) for file in files_below(path, [".jsonl"])) or any(
            is_results(file) for file in files_below(path, [".json"])
        )
    return is_samples(path) or is_results(path)


@log_format("lm-eval", detect=is_lm_eval, uses=("columns", "filter", "metric", "model"))
def lm_eval(path: Path, choice: Choice) -> list[LoggedTask]:
    """Output folders, model folders or samples_*.jsonl of lm-evaluation-harness."""
    files = sample_files(path)
    groups: dict[tuple[str, str], list[SampleFile]] = {}
    for file in files:
        groups.setdefault((file.model, file.task), []).append(file)
    models = {model for model, _ in groups}
    model = model_called(choice.model, models) if choice.model else next(iter(models)) if len(models) == 1 else None
    if model is None:  # the caller says which there are
        return [LoggedTask(task, name, "", lambda _: iter(())) for name, task in groups]
    logs = [_Log(*_newest(group), choice) for (name, _), group in sorted(groups.items()) if name == model]
    _check_known("filter", choice.filter, [name for log in logs for name in log.filters], path)
    _check_known("metric", choice.metric, [name for log in logs for name in log.metrics], path)
    for log in logs:
        log.choose_metric()
    usable = [log for log in logs if not log.refusal]
    if not usable and logs:
        raise DataError(logs[0].refusal)
    left_out = tuple(f"left out: {log.refusal}" for log in logs if log.refusal)
    return [log.described(left_out) for log in usable]


def _newest(group: list[SampleFile]) -> tuple[SampleFile, list[str]]:
    """The newest of the files on one task, and the dates of the others."""
    dated = sorted(group, key=lambda file: file.date)
    if len(dated) > 1 and dated[-2].date == dated[-1].date:
        raise DataError(
            f"{dated[-2].path} and {dated[-1].path} are both samples of the task '{dated[-1].task}', and neither is "
            "newer: name one of them"
        )
    return dated[-1], [one.date for one in dated[:-1]]


def _check_known(kind: str, wanted: str | None, known: list[str], path: Path) -> None:
    if wanted is not None and wanted not in known:
        raise unknown_name(kind, wanted, set(known), f"It is looked for in {path}.")


class _Log:
    """The samples of one task and model; calling it goes through them."""

    def __init__(self, file: SampleFile, older: list[str], choice: Choice) -> None:
        self.file = file
        self.choice = choice
        self.filters = self._filters()
        self.filter = self._filter()
        self.first = self._first()
        self.metrics = [name for name in self.first.extra_names() if name in (self.first.metrics or [name])]
        self.metric = ""
        self.refusal = ""
        """Why nothing can be compared in this task; "" where it can."""
        self.notes = []
        if older:
            self.notes.append(f"{file.task}: the log of {file.date} is read, older ones ({', '.join(older)}) are not")
        config = file.of_task("configs")
        self.config: dict[str, Any] = config if isinstance(config, dict) else {}
        delimiter = self.config.get("target_delimiter")
        self.delimiter = delimiter if isinstance(delimiter, str) else None

    def _filters(self) -> list[str]:
        known = self.file.of_task("results")
        names = {key.partition(",")[2] for key in known if "," in key} if isinstance(known, dict) else set()
        return sorted(names or {sample_of(row, where).filter for where, row in rows(self.file.path)})

    def _filter(self) -> str:
        """The only filter, or the one that was asked for, or `none`."""
        names = self.filters
        wanted = names[0] if len(names) == 1 else self.choice.filter or "none"
        if not names or wanted in names:
            return wanted
        raise UsageError(
            f"{self.file.path} was scored with {len(names)} filters ({', '.join(names)}): choose one with filter "
            "(--filter)"
        )

    def _first(self) -> Sample:
        for _, sample in self._samples():
            return sample
        raise EmptyError(f"{self.file.path} holds no sample of the filter '{self.filter}': the log is cut short")

    def choose_metric(self) -> None:
        """Settle which metric decides, or why there is none."""
        task, names, wanted = self.file.task, self.first.metric_names(), self.choice.metric
        judged = [name for name in names if is_judged(name)]
        usual = next((name for name in (*_PREFERRED, *judged, *names) if name in names), None)
        self.metric = wanted if wanted in self.metrics and wanted is not None else usual or ""
        if wanted not in (None, self.metric) and usual:
            self.notes.append(f"{task} has no metric '{wanted}': '{usual}' is read")
        better = self.file.of_task("higher_is_better")
        if not self.metric:
            self.refusal = (
                f"no metric of the task '{task}' is one number per document, so there is nothing to compare "
                f"(there are {', '.join(self.metrics) or 'none'})"
            )
        elif isinstance(better, dict) and better.get(self.metric) is False:
            self.refusal = (
                f"lower is better for the metric '{self.metric}' of the task '{task}', and a score here means the "
                f"more the better; choose another with metric (--metric): {', '.join(names)}"
            )

    def described(self, notes: tuple[str, ...]) -> LoggedTask:
        """This log as what is stored of it."""
        file, results = self.file, self.file.results
        versions = {"lm_eval": results.get("lm_eval_version"), "transformers": results.get("transformers_version")}
        size = file.config("batch_size")
        return LoggedTask(
            file.task,
            file.model,
            sha256_of([sha256_of_log(file.path), results]),
            self,
            self._settings(),
            _model_facts(file),
            {} if size is None else {"size": str(size)},
            {name: version for name, version in versions.items() if version},
            (*self.notes, *notes),
        )

    def _settings(self) -> dict[str, Any]:
        file, results = self.file, self.file.results
        better = file.of_task("higher_is_better")
        settings = {
            "version": file.of_task("versions"),
            "num_fewshot": file.of_task("n-shot"),
            "limit": file.config("limit"),
            "filter": self.filter,
            "metric": self.metric,
            "higher_is_better": better.get(self.metric) if isinstance(better, dict) else None,
            "chat_template_sha": results.get("chat_template_sha"),
            "system_instruction_sha": results.get("system_instruction_sha"),
            "output_type": self.config.get("output_type"),
        }
        if settings["num_fewshot"]:
            settings["fewshot_as_multiturn"] = bool(results.get("fewshot_as_multiturn"))
            settings["fewshot_seed"] = file.config("fewshot_seed")
        return settings

    def _is_by_number(self) -> bool:
        """What targets are, by the first sample that tells; nearly always the first of all."""
        for where, sample in self._samples():
            known = is_by_number(sample, answer_of(sample, self.metric, self.delimiter, where), self.metric)
            if known is not None:
                return known
        return True

    def _samples(self, log: Reading | None = None) -> Iterator[tuple[str, Sample]]:
        """The lines of the chosen filter, each with the place where it stands."""
        for where, row in rows(self.file.path, log):
            sample = sample_of(row, where)
            if sample.filter == self.filter:
                yield where, sample

    def _first_lines(self) -> dict[int | str, str]:
        """Hash of the first line on each document."""
        found: dict[int | str, str] = {}
        for _, sample in self._samples():
            if sample.doc_id not in found:
                found[sample.doc_id] = sha256_of(sample.row)
        return found

    def __call__(self, log: Reading) -> Iterator[Record]:
        """The records of the chosen filter, in the order of the log."""
        seen = set[int | str]()
        first_lines: dict[int | str, str] = {}
        occurrences: dict[str, int] = {}
        generation: dict[str, Any] = {}
        settings: Any = None
        by_number = self._is_by_number()
        for where, sample in self._samples(log):
            if sample.doc_id in seen:  # rare, so that lines are hashed only where there is one
                first_lines = first_lines or self._first_lines()
                if first_lines.get(sample.doc_id) != sha256_of(sample.row):
                    raise DataError(
                        f"{where}: document {sample.doc_id} was logged before with another content: two evaluations "
                        "are in one file; write them to two folders"
                    )
                log.count(_TWICE)
                continue
            seen.add(sample.doc_id)
            before = occurrences.get(sample.document, 0)
            occurrences[sample.document] = before + 1
            for request in sample.requests:
                if len(request) > 1 and isinstance(request[1], dict) and request[1] != settings:
                    settings = request[1]
                    generation[canonical_json(settings)] = settings
            answer = answer_of(sample, self.metric, self.delimiter, where, by_number)
            record = record_of(sample, self.file.task, before, self.metric, answer, self.choice.columns, where)
            if record.score is None:
                log.count(_NAN)
            yield record
        if generation:
            found = [generation[key] for key in sorted(generation)]
            log.facts["gen_kwargs"] = found[0] if len(found) == 1 else found


def _model_facts(file: SampleFile) -> dict[str, Any]:
    """What the log says of the model; arguments that look like credentials are left out."""
    args = file.config("model_args")
    parts = [part.partition("=") for part in str(args or "").split(",")]
    pairs = args if isinstance(args, dict) else {key: value for key, _, value in parts if key}
    facts: dict[str, Any] = {
        "args": {str(key): str(value) for key, value in pairs.items() if not _SECRET.search(str(key))},
        "kind": file.config("model"),
        "dtype": str(file.config("model_dtype") or "").removeprefix("torch."),
        "device": file.config("device"),
        "revision": file.config("model_revision"),
        "sha": file.config("model_sha"),
    }
    return {key: value for key, value in facts.items() if value}
