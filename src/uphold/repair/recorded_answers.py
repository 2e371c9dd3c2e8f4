"""The answers of an old version that is gone: matched with a task's instances, and stored as runs of that task."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from uphold.core.errors import DataError, UsageError, unknown_name
from uphold.core.hashing import sha256_of
from uphold.core.progress import Progress, silent
from uphold.core.records import Record
from uphold.core.runs import Run, RunStore, is_run, load_run, write_run
from uphold.measure.answer import record_of
from uphold.models.fingerprint import nameless
from uphold.models.processes import current
from uphold.tasks.base import SPLITS, FixedTask, Instance, Split, Task, required_instances, task_fingerprint

Unusable = dict[str, int]
"""How many recorded answers or instances were left out, by the reason."""


@dataclass(frozen=True)
class RecordedAnswers:
    """What is left of a version: one answer per instance."""

    name: str
    """How the version was called when it answered."""
    fingerprint: dict[str, Any]
    """What identifies the answers, plain JSON."""
    runs: Mapping[Split, Run]
    """The answers to each split as a run of `task`; of train only those that there are."""
    task: FixedTask
    """The task with those validation and test instances that have an answer; what was left out is in its notes."""

    def run(self, split: Split) -> Run:
        """The answers to one split."""
        return self.runs[split]

    def records(self, split: Split) -> dict[str, Record]:
        """The answers to one split by instance id."""
        return {record.id: record for record in self.runs[split].records()}


def recorded_answers(
    what: Any,
    task: Task,
    folder: Path,
    *,
    store: RunStore | None = None,
    progress: Progress = silent,
) -> RecordedAnswers:
    """Match recorded answers with the instances of a task.

    Stored runs are matched by instance id; other tools' logs by instance id or, where that fails, by the text of the
    prompt (and the gold answer, where several instances share a prompt), and are scored anew by the task's scorer.
    Instances without an answer are left out of validation and test and counted; in training they stay, and follow the
    new model.

    Args:
        what: a `Run`, a folder with a run, a folder of such folders, another tool's log, or a sequence of these.
            `FOLDER#MODEL` and `LOG#MODEL` pick one of several models, as in a run store.
        task: whose instances were answered.
        folder: gets one run per split.
        store: where the records of a log are kept.
        progress: called while a log is read.

    Raises:
        UsageError: no instance of a split has an answer, or the answers are of several models; the message says what
            to type.
        DataError: there is no run and no log, it cannot be read, or it answers an instance twice and differently.
    """
    where = str(what)
    runs = _of_one_model(_found_runs(what, store, progress), where)
    unusable: Unusable = {}
    usable = _of_this_task(runs, task, where, unusable)
    matcher = _Matcher(task)
    for run in usable:
        matcher.take(run)
    unusable |= matcher.unusable
    answers = matcher.found
    for split in SPLITS:
        required_instances(task, split)
        if not answers[split]:
            raise UsageError(_nothing(where, task, split, sum(run.count for run in runs)))
    first = usable[0]
    own = _answered_only(task, answers, unusable, first.name)
    # All that is taught: two logs may hold the same answers, and one of them log-likelihoods.
    taught = [
        [record.id, record.output, record.correct, record.option_logprobs]
        for split in SPLITS
        for record in answers[split].values()
    ]
    header = {key: value for key, value in first.fingerprint.items() if key != "log"}
    headers = {split: {**header, "task": task_fingerprint(own, split)} for split in SPLITS}

    def write() -> None:
        for split in SPLITS:
            write_run(folder / split, answers[split].values(), headers[split])

    current().once(write)
    made = {split: replace(load_run(folder / split), fingerprint=headers[split]) for split in SPLITS}
    facts = {"name": first.name, "recorded": sha256_of(taught)}
    return RecordedAnswers(first.name, facts, made, own)


def _found_runs(what: Any, store: RunStore | None, progress: Progress) -> list[Run]:
    """All runs that `what` holds."""
    if isinstance(what, Run):
        return [what]
    if isinstance(what, Sequence) and not isinstance(what, str):
        return [run for one in what for run in _found_runs(one, store, progress)]
    if not isinstance(what, str | Path):
        raise UsageError(
            f"recorded answers are a run, a folder of runs or a log, not {type(what).__name__}: "
            "a model that can still be asked is repaired with 'uphold repair muscle'"
        )
    from uphold.importers import import_log, is_log
    from uphold.importers.load import split_model

    path, model = split_model(what)
    children = sorted(child for child in path.iterdir() if is_run(child)) if path.is_dir() else []
    if is_run(path) or children:
        runs = [load_run(child) for child in children or [path]]
        named = [run for run in runs if model is None or run.name == model]
        if not named:
            raise unknown_name("model", str(model), {run.name for run in runs}, f"It is looked for in {path}.")
        return named
    if not path.exists() or not is_log(what):
        raise DataError(
            f"{what} holds no recorded answers: expected a run, a folder of runs or another tool's log; 'uphold "
            "evaluate OLD --task TASK --split train' makes a run and says where it is (likewise validation and test)"
        )
    return import_log(what, store=store, progress=progress)


def _of_one_model(runs: Sequence[Run], where: str) -> list[Run]:
    """The runs, if one model made them all.

    Raises:
        UsageError: several did.
        DataError: there are none.
    """
    if not runs:
        raise DataError(f"{where} holds no recorded answers: name a run, a folder of runs or another tool's log")
    # A log's fingerprint changes with every file: there, and only there, the name tells models apart.
    models = {
        sha256_of(nameless(run.fingerprint["model"])) if "format" not in run.fingerprint["task"] else run.name: run.name
        for run in runs
    }
    if len(models) > 1:
        raise UsageError(
            f"{where} holds the answers of {len(models)} models ({', '.join(sorted(set(models.values())))}): "
            f"type {where}#MODEL for one"
        )
    return list(runs)


def _of_this_task(runs: Sequence[Run], task: Task, where: str, unusable: Unusable) -> list[Run]:
    """The runs that asked and scored as `task` does; of runs that repeat one another, the first.

    Raises:
        UsageError: none did.
    """
    wanted = _rules(task_fingerprint(task, "test"))
    usable: dict[str, Run] = {}
    others: list[Run] = []
    for run in sorted(runs, key=lambda run: bool(run.fingerprint.get("batching", {}).get("reverse"))):
        facts = run.fingerprint["task"]
        if "format" not in facts and _rules(facts) != wanted:
            others.append(run)
            continue
        key = sha256_of([run.fingerprint["model"], facts, run.fingerprint.get("seed")])
        if key in usable:
            _count(unusable, "repeated run left out (the same model on the same instances)")
        else:
            usable[key] = run
    if not usable:
        facts = others[0].fingerprint["task"]
        differing = [f"{key} {facts.get(key)!r}" for key, value in wanted.items() if facts.get(key) != value]
        raise UsageError(
            f"the runs in {where} asked or scored otherwise than the task '{task.name}' does ({', '.join(differing)}): "
            "name that task, or record the answers anew"
        )
    if others:
        _count(unusable, "run of another task, scorer or decoding left out", len(others))
    return list(usable.values())


def _rules(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What must be equal for two answers to mean the same, as it is read from JSON."""
    chosen = {key: facts[key] for key in ("kind", "scorer", "delimiter", "metric", "decoding") if key in facts}
    return dict(json.loads(json.dumps(chosen)))


class _Matcher:
    """Finds the instance of each recorded answer."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.found: dict[Split, dict[str, Record]] = {split: {} for split in SPLITS}
        self.unusable: Unusable = {}
        self._by_id: dict[str, tuple[Split, Instance]] = {}
        self._by_prompt: dict[str, list[tuple[Split, Instance]]] = {}
        for split in SPLITS:
            for instance in task.instances(split):
                self._by_id[instance.id] = (split, instance)
                self._by_prompt.setdefault(instance.prompt.strip(), []).append((split, instance))

    def take(self, run: Run) -> None:
        """Take in the answers of one run.

        Raises:
            DataError: an instance was answered before, and differently.
        """
        imported = "format" in run.fingerprint["task"]
        matched: list[tuple[Split, Instance, Record]] = []
        for record in run.records():
            place = self._place(record, imported)
            if place is not None:
                matched.append((*place, record))
        if imported:
            matched = self._rescored(matched)
        for split, instance, record in matched:
            before = self.found[split].setdefault(instance.id, record)
            if before is record:
                continue
            if before.output != record.output:
                raise DataError(
                    f"the instance {instance.id} ({instance.prompt[:40]!r}) has two recorded answers, "
                    f"{before.output[:40]!r} and {record.output[:40]!r}: keep one of them"
                )
            _count(self.unusable, "answer that was recorded twice")

    def _place(self, record: Record, imported: bool) -> tuple[Split, Instance] | None:
        """The instance that a record answers; None where there is none, which is counted."""
        known = self._by_id.get(record.id)
        if known is not None:
            if record.input.strip() in ("", known[1].prompt.strip()):
                return known
            _count(self.unusable, "answer to another prompt than the instance of that id has")
            return None
        if not imported:
            return None
        asked = self._by_prompt.get(record.input.strip(), []) if record.input.strip() else []
        same = [place for place in asked if len(asked) == 1 or place[1].target.strip() == record.target.strip()]
        if len(same) == 1:
            return same[0]
        _count(
            self.unusable,
            "logged answer whose prompt several instances have" if asked else "logged answer to a question of no split",
        )
        return None

    def _rescored(self, matched: Sequence[tuple[Split, Instance, Record]]) -> list[tuple[Split, Instance, Record]]:
        """Logged answers in the task's own form, scored by its scorer."""
        made = []
        for split, instance, record in matched:
            output = _option_called(record, instance) if self.task.kind == "choice" else record.output or record.answer
            if not output:
                _count(self.unusable, "logged answer that is none of the options or empty")
                continue
            made.append((split, instance, record, output))
        scores = self.task.score_all([entry[1] for entry in made], [entry[3] for entry in made])
        return [
            (split, instance, record_of(instance, output, score, _logprobs_in_order(record, instance), record.tokens))
            for (split, instance, record, output), score in zip(made, scores, strict=True)
        ]


def _option_called(record: Record, instance: Instance) -> str:
    """The option that a logged answer names; empty where it names none."""
    said = {record.output.strip(), record.answer.strip()}
    return next((option for option in instance.options if option.strip() in said), "")


def _logprobs_in_order(record: Record, instance: Instance) -> tuple[float, ...]:
    """Logged log-likelihoods in the order of the instance's options; empty where they do not belong together."""
    values = record.option_logprobs
    if len(values) != len(instance.options):
        return ()
    if not record.options or record.options == instance.options:
        return values
    known = dict(zip((option.strip() for option in record.options), values, strict=True))
    wanted = [option.strip() for option in instance.options]
    return tuple(known[option] for option in wanted) if known.keys() == set(wanted) else ()


def _answered_only(
    task: Task, answers: Mapping[Split, Mapping[str, Record]], unusable: Unusable, name: str
) -> FixedTask:
    """`task` without the validation and test instances that have no answer."""
    notes = [f"recorded answers of {name}: {count} x {reason}" for reason, count in unusable.items()]
    splits: dict[Split, tuple[Instance, ...]] = {}
    for split in SPLITS:
        instances = tuple(task.instances(split))
        kept = tuple(instance for instance in instances if instance.id in answers[split])
        if missing := len(instances) - len(kept):
            what = "they follow the new model" if split == "train" else "they are left out"
            notes.append(f"{missing} of {len(instances)} {split} instances have no recorded answer: {what}")
        splits[split] = instances if split == "train" else kept
    return _with_splits(task, splits, notes)


def _with_splits(task: Task, splits: Mapping[Split, tuple[Instance, ...]], notes: Iterable[str]) -> FixedTask:
    if isinstance(task, FixedTask):
        return replace(task, splits=splits, notes=(*task.notes, *notes))
    return FixedTask(
        task.name,
        task.kind,
        splits,
        task.scorer,
        lambda instance, output: task.score_all([instance], [output])[0],
        task.delimiter,
        task.decoding,
        (*task.notes, *notes),
        task.metric,
    )


def _nothing(where: str, task: Task, split: Split, records: int) -> str:
    count = len(task.instances(split))
    return (
        f"none of the {count} {split} instances of '{task.name}' has an answer among the {records} records of {where}: "
        f"type 'uphold evaluate OLD --task {task.name} --split {split}' while the old model can be asked, and name a "
        "folder that holds the runs of all three splits (as FOLDER#MODEL where it holds those of other models)"
    )


def _count(unusable: Unusable, reason: str, count: int = 1) -> None:
    unusable[reason] = unusable.get(reason, 0) + count
