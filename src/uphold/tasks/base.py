"""What a task is: instances, how to ask, how to score."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, NamedTuple, Protocol, get_args

from uphold.core.errors import EmptyError, UsageError, unknown_name
from uphold.core.hashing import sha256_of
from uphold.core.records import instance_id

Kind = Literal["choice", "generate"]
Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
Metric = Literal["acc", "acc_norm", "acc_bytes", "acc_tokens", "acc_mutual_info", "exact_match"]
"""How a `choice` task picks an option, named as lm-evaluation-harness names it: by summed log-likelihood (`acc`),
divided by the option's characters (`acc_norm`), its UTF-8 bytes (`acc_bytes`) or its tokens (`acc_tokens`, ours), less
its log-likelihood without the prompt (`acc_mutual_info`), or the first option that greedy decoding would write
(`exact_match`; where there is none, the output is empty)."""


class Score(NamedTuple):
    """How good one answer is."""

    answer: str
    """The part of the output that counts."""
    correct: bool | None
    """None where the scorer is continuous."""
    score: float | None
    """In [0, 1]; None when it cannot be scored here."""


@dataclass(frozen=True)
class Instance:
    """One question with its gold answer."""

    prompt: str
    target: str
    """The gold answer; one of `options` for `choice` tasks."""
    options: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    """Named properties to slice by."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What the scorer needs beyond the target; not stored with records."""
    requests: tuple[tuple[str, str], ...] = ()
    """Context and continuation of each option, where they are not the prompt and delimiter + option."""
    repeat: int = 0
    """Which repetition this is of a question that is asked several times, for sampled answers."""

    @property
    def id(self) -> str:
        """Content hash, equal in every run that asks this question."""
        more = ([list(map(list, self.requests)), self.repeat],) if self.requests or self.repeat else ()
        return instance_id(self.prompt, self.target, self.options, *more)


@dataclass(frozen=True)
class Decoding:
    """How answers of `generate` tasks are decoded."""

    max_new_tokens: int = 64
    stop: tuple[str, ...] = ("\n",)
    """Generation ends before the first of these."""
    temperature: float = 0.0
    """0 is greedy; above 0 samples, with a seed of its own for every instance."""
    top_p: float = 1.0
    """Nucleus of the sampled distribution, in (0, 1]."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.temperature < 0 or not 0 < self.top_p <= 1:
            raise UsageError(
                f"decoding needs max_new_tokens >= 1, temperature >= 0 and top_p in (0, 1], not {asdict(self)}"
            )


class Task(Protocol):
    """What measuring and repairing need from a task. `FixedTask` is the usual implementation."""

    @property
    def name(self) -> str:
        """How its user named it."""
        ...

    @property
    def kind(self) -> Kind:
        """`choice`: options ranked by summed log-likelihood; `generate`: text scored by a function."""
        ...

    @property
    def scorer(self) -> str:
        """Versioned name of the scoring rule, e.g. `exact.v1`."""
        ...

    @property
    def delimiter(self) -> str:
        """What stands between a prompt and its answer."""
        ...

    @property
    def metric(self) -> Metric:
        """How the option of a `choice` task is picked."""
        ...

    @property
    def decoding(self) -> Decoding:
        """How `generate` answers are decoded."""
        ...

    @property
    def notes(self) -> Sequence[str]:
        """What was left out while the task was read."""
        ...

    def instances(self, split: Split) -> Sequence[Instance]:
        """The instances of one split; the three splits share none."""
        ...

    def score_all(self, instances: Sequence[Instance], outputs: Sequence[str]) -> list[Score]:
        """Score one output for each instance."""
        ...


class ScoreFunction(Protocol):
    """A scoring rule."""

    def __call__(self, instance: Instance, output: str) -> Score:
        """Score one output."""
        ...


@dataclass(frozen=True)
class FixedTask:
    """A task whose instances are all in memory; see `Task` for the fields."""

    name: str
    kind: Kind
    splits: Mapping[Split, tuple[Instance, ...]]
    scorer: str
    score_function: ScoreFunction
    delimiter: str = " "
    decoding: Decoding = Decoding()
    notes: tuple[str, ...] = ()
    metric: Metric = "acc"
    scoring_threads: int = 1
    """How many outputs are scored at once; more than one where a score is waited for, as for a sandboxed program."""

    def __post_init__(self) -> None:
        seen: dict[str, Split] = {}
        for split, instances in self.splits.items():
            for instance in instances:
                if instance.id in seen:
                    raise UsageError(
                        f"task '{self.name}': the instance {instance.prompt[:60]!r} is in {seen[instance.id]} and in "
                        f"{split}: splits may not share instances"
                    )
                seen[instance.id] = split

    def instances(self, split: Split) -> Sequence[Instance]:
        """The instances of one split."""
        if split not in SPLITS:
            raise unknown_name("split", split, SPLITS)
        return self.splits.get(split, ())

    def score(self, instance: Instance, output: str) -> Score:
        """Score one output."""
        return self.score_function(instance, output)

    def score_all(self, instances: Sequence[Instance], outputs: Sequence[str]) -> list[Score]:
        """Score one output for each instance, in their order."""
        if self.scoring_threads == 1:
            return list(map(self.score_function, instances, outputs))
        with ThreadPoolExecutor(self.scoring_threads) as threads:
            return list(threads.map(self.score_function, instances, outputs))

    def __repr__(self) -> str:
        sizes = ", ".join(f"{split} {len(self.instances(split))}" for split in SPLITS)
        return f"FixedTask({self.name!r}, {self.kind}, {sizes}, scorer {self.scorer})"


def required_instances(task: Task, split: Split) -> Sequence[Instance]:
    """The instances of `split`.

    Raises:
        EmptyError: there are none.
    """
    instances = task.instances(split)
    if not instances:
        raise EmptyError(f"task '{task.name}' has no {split} instances: give it some, or choose another split")
    return instances


def split_sizes(task: Task) -> dict[str, int]:
    """How many instances each split has."""
    return {split: len(task.instances(split)) for split in SPLITS}


def task_fingerprint(task: Task, split: Split) -> dict[str, Any]:
    """What two runs must share to be comparable, as plain JSON; `name` is for people only."""
    instances = task.instances(split)
    fingerprint = {
        "name": task.name,
        "kind": task.kind,
        "split": split,
        "instances": sha256_of(sorted(instance.id for instance in instances)),
        "count": len(instances),
        "scorer": task.scorer,
        "delimiter": task.delimiter,
    }
    if task.kind == "choice":
        fingerprint["metric"] = task.metric
    if task.kind == "generate":
        fingerprint["decoding"] = asdict(task.decoding)
    return fingerprint


def subset(task: Task, split: Split, instances: Sequence[Instance]) -> FixedTask:
    """`task` with these instances of one split only."""
    if isinstance(task, FixedTask):
        return replace(task, splits={split: tuple(instances)})
    return FixedTask(
        task.name,
        task.kind,
        {split: tuple(instances)},
        task.scorer,
        lambda instance, output: task.score_all([instance], [output])[0],
        task.delimiter,
        task.decoding,
        tuple(task.notes),
        task.metric,
    )


def without_duplicates(instances: Iterable[Instance]) -> tuple[list[Instance], int]:
    """The first of each set of equal instances, and how many were dropped."""
    unique: dict[str, Instance] = {}
    total = 0
    for instance in instances:
        total += 1
        unique.setdefault(instance.id, instance)
    return list(unique.values()), total - len(unique)


def divide(instances: Sequence[Instance], sizes: Mapping[Split, int]) -> dict[Split, tuple[Instance, ...]]:
    """Cut `instances` into consecutive splits, test first, so that a larger train split leaves the test split alone."""
    parts: dict[Split, tuple[Instance, ...]] = {}
    start = 0
    for split in ("test", "validation", "train"):
        parts[split] = tuple(instances[start : start + sizes[split]])
        start += sizes[split]
    return parts
