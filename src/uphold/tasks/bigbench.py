"""JSON tasks of BIG-bench (Srivastava et al. 2022, arXiv:2206.04615), by name, folder or file.

    bigbench:social_iqa:shots=3,test=500
    bigbench:elementary_math_qa/question_only
    bigbench:my_tasks/riddles/task.json

Prompts are those of `bigbench/api/json_task.py` in the release 1.0.0, with two differences: all instances share one
header of `shots` exemplars, which are never asked, and an exemplar of a choice task shows its best option.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from uphold.core.errors import DataError, EmptyError, UsageError
from uphold.core.hashing import sha256_of
from uphold.core.progress import Progress, silent
from uphold.tasks import bigbench_scores as scores
from uphold.tasks.base import Decoding, FixedTask, Instance, Split, divide, without_duplicates
from uphold.tasks.bigbench_files import TaskJson, find_tasks
from uphold.tasks.splits import by_content, split_sizes_of

CHOICE_ORDER_SEED = 42
"""The seed with which the schema's reference implementation orders the choices that it appends to a question."""
NEW_TOKENS = (16, 256)
"""Least and most new tokens; in between, one for each byte of the longest target."""


@dataclass(frozen=True)
class Part:
    """The questions of one `task.json`."""

    spec: TaskJson
    instances: list[Instance]
    """Without exemplars."""
    left_out: Counter[str]
    """How many examples are not asked for which reason."""


def bigbench_task(
    name: str,
    *,
    shots: int = 0,
    seed: int = 0,
    metric: str = "",
    limit: int | None = None,
    train: int | None = None,
    validation: int | None = None,
    test: int | None = None,
    max_new_tokens: int | None = None,
    label: str = "",
    progress: Progress = silent,
) -> FixedTask:
    """A BIG-bench JSON task.

    Args:
        name: a `task.json`, a folder that holds one or subfolders with one each, or the name of a task or of
            `TASK/SUBTASK` in the release, which is downloaded when first asked for.
        shots: exemplars in front of every question; they are taken out of what is asked.
        seed: which exemplars, and which questions go to which split.
        metric: what is scored; the task's own preferred score when empty.
        limit: at most this many questions together.
        train: size of this split; splits without a size share the rest, 30% test, 10% validation and 60% train.
        validation: size of this split.
        test: size of this split.
        max_new_tokens: of generated answers; by default enough for the longest target, 16 to 256.
        label: name of the task.
        progress: called while the release is downloaded and unpacked.

    Raises:
        UsageError: no such task, option or metric, or fewer questions than asked for.
        DataError: a file does not follow the schema, or the release cannot be had.
    """
    called = label or f"bigbench:{name}"
    if shots < 0 or (limit is not None and limit < 1):
        raise UsageError(f"task '{called}': shots must be at least 0 and limit at least 1, not {shots} and {limit}")
    specs = find_tasks(name, progress)
    metric = metric or _common_metric(called, name, specs)
    parts = [_part(spec, metric, sub if len(specs) > 1 else "") for sub, spec in specs.items()]
    asked = _asked(parts, shots, seed)[:limit]
    sizes = split_sizes_of(len(asked), {"train": train, "validation": validation, "test": test}, called)
    return _assemble(called, metric, divide(asked, sizes), parts, max_new_tokens)


def _common_metric(task: str, name: str, specs: Mapping[str, TaskJson]) -> str:
    """The metric that all parts prefer and that can be had here."""
    first, *rest = specs.values()
    preferred = {_preferred(spec) for spec in specs.values()}
    if len(preferred) > 1:
        raise UsageError(
            f"task '{task}' has parts that prefer {' and '.join(sorted(preferred))}: choose one part, as "
            f"{name}/{next(iter(specs))}, or one metric=..."
        )
    (metric,) = preferred
    if metric in scores.UNSUPPORTED or metric not in (scores.CHOICE, *scores.GENERATED):
        others = [one for one in first.usable_metrics() if all(one in spec.usable_metrics() for spec in rest)]
        why = scores.UNSUPPORTED.get(metric, "is not a metric of BIG-bench")
        advice = f"add metric={others[0]}" if others else "it has no other metric that can be had here"
        raise UsageError(f"task '{task}' prefers {metric}, which {why}: {advice}")
    return metric


def _preferred(spec: TaskJson) -> str:
    """The preferred score; where none is given, what the examples allow."""
    return spec.preferred_score or (scores.CHOICE if spec.has_choices() else "exact_str_match")


def _part(spec: TaskJson, metric: str, subtask: str) -> Part:
    if metric not in (scores.CHOICE, *scores.GENERATED):
        why = scores.UNSUPPORTED.get(metric, "is unknown")
        raise UsageError(f"metric '{metric}' {why}; {spec.where} can be scored by {', '.join(spec.usable_metrics())}")
    if metric not in spec.possible_metrics():
        needed = "target_scores" if metric == scores.CHOICE else "a target"
        raise UsageError(f"metric '{metric}' needs examples with {needed}, which {spec.where} has none of")
    left_out: Counter[str] = Counter()
    instances = []
    for number, example in enumerate(spec.examples, start=1):
        instance = _instance(spec, metric, example, f"{spec.where} example {number}", {"subtask": subtask})
        if isinstance(instance, Instance):
            instances.append(instance)
        else:
            left_out[instance] += 1
    unique, dropped = without_duplicates(instances)
    left_out["duplicates"] += dropped
    return Part(spec, unique, left_out)


def _instance(
    spec: TaskJson, metric: str, example: Mapping[str, Any], where: str, tags: Mapping[str, str]
) -> Instance | str:
    """The question of an example without header, or why it cannot be asked."""
    if not isinstance(example.get("input"), str):
        raise DataError(f"{where}: expected a text 'input', found {type(example.get('input')).__name__}")
    grades = spec.grades(example, where)
    question = (
        spec.example_input_prefix + example["input"] + _appended(spec, tuple(grades)) + spec.example_output_prefix
    )
    prompt = spec.task_prefix + question
    tags = {key: value for key, value in tags.items() if value}
    if metric == scores.CHOICE:
        if len(grades) < 2:
            return "fewer than two options"
        if not all(option.strip() for option in grades):
            return "an empty option"
        best = max(grades.values())
        if best == min(grades.values()):
            return "no option is better than the others"
        target = next(option for option, grade in grades.items() if grade == best)
        return Instance(prompt, target, tuple(grades), tags, {"target_scores": grades})
    targets = spec.targets(example, where)
    if not any(target.strip() for target in targets):
        return "an empty target"
    extra = {"targets": targets, "regex": spec.regex(), "stop": spec.stop_string}
    return Instance(prompt, targets[0], tags=tags, extra=extra)


def _appended(spec: TaskJson, options: Sequence[str]) -> str:
    """The choices as the reference implementation appends them to the question."""
    if not options or not spec.append_choices_to_input:
        return ""
    ordered = sorted(options)
    return "".join(spec.choice_prefix + ordered[place] for place in _permutation(len(ordered)))


@lru_cache
def _permutation(count: int) -> list[int]:
    return [int(place) for place in np.random.RandomState(seed=CHOICE_ORDER_SEED).permutation(count)]


def _asked(parts: Sequence[Part], shots: int, seed: int) -> list[Instance]:
    """The questions of all parts with their exemplars, in the order in which they are dealt out.

    Raises:
        EmptyError: the exemplars leave nothing to ask.
    """
    unique, _ = without_duplicates(by_content([one for part in parts for one in part.instances], seed))
    ranked = {instance.id: instance for instance in unique}
    owners: dict[str, int] = {}
    for number, part in enumerate(parts):
        for instance in part.instances:
            owners.setdefault(instance.id, number)
    keys: list[list[str]] = [[] for _ in parts]
    for key in ranked:
        keys[owners[key]].append(key)
    headers, exemplars = [], set()
    for part, own in zip(parts, keys, strict=True):
        if len(own) <= shots and (own or len(parts) == 1):
            raise EmptyError(
                f"{part.spec.where} has {len(own)} examples that can be asked, and {shots} of them are to be "
                "exemplars: nothing is left; lower shots"
            )
        # From the end, where the train split is: the test split then hardly depends on the number of shots.
        shown = own[len(own) - shots :]
        exemplars.update(shown)
        headers.append(part.spec.task_prefix + "".join(_exemplar(part.spec, ranked[key]) for key in shown))
    return [
        replace(one, prompt=headers[owners[key]] + one.prompt.removeprefix(parts[owners[key]].spec.task_prefix))
        for key, one in ranked.items()
        if key not in exemplars
    ]


def _exemplar(spec: TaskJson, instance: Instance) -> str:
    return instance.prompt.removeprefix(spec.task_prefix) + instance.target + spec.few_shot_example_separator


def _notes(metric: str, parts: Sequence[Part]) -> list[str]:
    """What is not asked, and what no model can answer."""
    left_out = sum((part.left_out for part in parts), Counter[str]())
    everything = [instance for part in parts for instance in part.instances]
    left_out["other parts have them, too"] += len(everything) - len({instance.id for instance in everything})
    notes = [f"{count} examples were left out: {why}" for why, count in left_out.items() if count]
    if metric in scores.STRING_MATCHES:
        cut = sum(not scores.answerable(instance) for instance in everything)
        if cut:
            notes.append(
                f"{cut} of {len(everything)} gold answers are cut by the task's own rules, so no model can give them"
            )
    return notes


def _assemble(
    task: str,
    metric: str,
    splits: Mapping[Split, Sequence[Instance]],
    parts: Sequence[Part],
    max_new_tokens: int | None,
) -> FixedTask:
    # Of all questions, asked or not: what a run is compared by may not depend on the sizes of other splits.
    everything = [instance for part in parts for instance in part.instances]
    specs = [part.spec for part in parts]
    delimiter = _delimiter([spec.example_output_prefix for spec in specs], everything)
    own = {
        split: tuple(replace(one, prompt=one.prompt.removesuffix(delimiter)) for one in instances)
        for split, instances in splits.items()
    }
    choice = metric == scores.CHOICE
    return FixedTask(
        name=task,
        kind="choice" if choice else "generate",
        splits=own,
        scorer=_scorer_name(metric, everything),
        score_function=scores.multiple_choice_grade if choice else scores.GENERATED[metric],
        delimiter=delimiter,
        decoding=Decoding() if choice else _decoding(specs, everything, max_new_tokens),
        notes=tuple(_notes(metric, parts)),
    )


def _delimiter(output_prefixes: Sequence[str], instances: Sequence[Instance]) -> str:
    """The spaces that all prompts end in and that answers begin with instead, if nothing else would change."""
    ends = {prefix[len(prefix.rstrip(" ")) :] for prefix in output_prefixes}
    delimiter = ends.pop() if len(ends) == 1 else ""
    heads = [instance.prompt.removesuffix(delimiter) for instance in instances]
    return delimiter if delimiter and not any(head[-1:].isspace() or not head for head in heads) else ""


def _decoding(specs: Sequence[TaskJson], instances: Sequence[Instance], max_new_tokens: int | None) -> Decoding:
    stops = {spec.stop_string for spec in specs}
    targets = [target for instance in instances for target in instance.extra["targets"]]
    stop = stops.pop() if len(stops) == 1 else ""
    if not stop and not any("\n" in target.strip() for target in targets):
        stop = "\n"
    longest = max(len(target.encode()) for target in targets)
    least, most = NEW_TOKENS
    enough = min(most, max(least, longest))
    return Decoding(enough if max_new_tokens is None else max_new_tokens, (stop,) if stop else ())


def _scorer_name(metric: str, instances: Sequence[Instance]) -> str:
    """The metric's versioned name, and a hash of what scores depend on and the ids of `instances` do not hold."""

    def known(instance: Instance) -> bool:
        if metric == scores.CHOICE:
            grades = instance.extra["target_scores"]
            return all(grade == float(option == instance.target) for option, grade in grades.items())
        extra = instance.extra
        return len(extra["targets"]) == 1 and extra["regex"] == scores.DEFAULT_REGEX and not extra["stop"]

    told: Iterator[Any] = ([one.id, one.extra] for one in instances if not known(one))
    rest = sorted(map(sha256_of, told))
    return f"bigbench.{metric}.v1" + (f"-{sha256_of(rest)[:8]}" if rest else "")
