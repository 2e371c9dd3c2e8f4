"""Tasks from reasoning-gym: generated questions whose answers a verifier scores.

    rg:chain_sum
    rg:chain_sum:train=2000,validation=300,test=1000,seed=7,max_terms=3
    rg:syllogism:kind=choice

`size` sets the total, divided 60/10/30; any other option goes to the dataset's own configuration.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from uphold.core.errors import DataError, UsageError, unknown_name
from uphold.tasks import scorers
from uphold.tasks.base import (
    Decoding,
    FixedTask,
    Instance,
    Kind,
    Score,
    ScoreFunction,
    Split,
    divide,
    without_duplicates,
)

_SHARES: dict[Split, float] = {"train": 0.6, "validation": 0.1, "test": 0.3}
MOST_OPTIONS = 64
MOST_ANSWER_SLICES = 16
# What the datasets' verifiers raise on an answer that is not of the expected form: such an answer is wrong.
_UNREADABLE = (ArithmeticError, AttributeError, LookupError, RecursionError, SyntaxError, TypeError, ValueError)


@dataclass(frozen=True)
class GeneratedConfig:
    """Options of a reasoning-gym task."""

    size: int = 1000
    """All instances together, where a split's own size is not given."""
    train: int | None = None
    validation: int | None = None
    test: int | None = None
    seed: int = 0
    """Seed of the generator."""
    kind: Kind = "generate"
    """`choice` ranks the distinct answers that occur in the task (at most 64)."""
    pattern: str = ""
    """Regular expression over the question; its groups fill `prompt`."""
    prompt: str = "{question}"
    """Template of the prompt; `{question}`, or `{1}`, `{2}`, … for the groups of `pattern`."""
    compact: bool = False
    """Remove white space from what `pattern` finds."""
    delimiter: str = " "
    max_new_tokens: int = 64
    stop: tuple[str, ...] = ("\n",)
    temperature: float = 0.0
    dataset: Mapping[str, Any] = field(default_factory=dict)
    """Passed to the dataset's own configuration."""

    def sizes(self) -> dict[Split, int]:
        """The size of each split."""
        given: dict[Split, int | None] = {"train": self.train, "validation": self.validation, "test": self.test}
        sizes: dict[Split, int] = {}
        for split, size in given.items():
            sizes[split] = round(_SHARES[split] * self.size) if size is None else size
        return sizes


def dataset_names() -> list[str]:
    """The names of all reasoning-gym datasets."""
    from reasoning_gym.factory import DATASETS

    return sorted(DATASETS)


def generated_task(dataset: str, config: GeneratedConfig = GeneratedConfig(), name: str = "") -> FixedTask:
    """A task from the reasoning-gym dataset called `dataset`.

    Instances are unique and dealt out in the order in which they were generated: test, validation, train.

    Raises:
        UsageError: no such dataset or option, or it cannot give as many different instances as asked for.
    """
    names = dataset_names()
    if dataset not in names:
        raise unknown_name("reasoning-gym dataset", dataset, names, "'uphold tasks' lists them.")
    sizes = config.sizes()
    instances, verify, dropped = _generate(dataset, config, sum(sizes.values()))
    notes = [f"{dropped} duplicate questions were generated and left out"] if dropped else []
    if config.kind == "choice":
        instances = _with_options(dataset, instances)
    elif cut := sum(any(stop in instance.target for stop in config.stop) for instance in instances):
        notes.append(f"{cut} of {len(instances)} gold answers hold a stop string, so no model can give them: set stop")
    return FixedTask(
        name=name or f"rg:{dataset}",
        kind=config.kind,
        splits=divide(instances, sizes),
        scorer="choice.v1" if config.kind == "choice" else "reasoning_gym.v1",
        score_function=scorers.choice if config.kind == "choice" else verify,
        delimiter=config.delimiter,
        decoding=Decoding(config.max_new_tokens, tuple(config.stop), config.temperature),
        notes=tuple(notes),
    )


def _generate(dataset: str, config: GeneratedConfig, total: int) -> tuple[list[Instance], ScoreFunction, int]:
    if total < 1:
        raise UsageError(f"rg:{dataset}: asked for {total} instances; give size, train, validation or test")
    try:
        re.compile(config.pattern)
    except re.error as error:
        raise UsageError(f"rg:{dataset}: the pattern {config.pattern!r} is no regular expression ({error})") from error
    drawn = total
    for _ in range(4):
        source = _source(dataset, config, drawn, config.seed)
        instances, dropped = without_duplicates(_instance(dataset, entry, config) for entry in source)
        if len(instances) >= total:
            break
        drawn *= 2
    if len(instances) < total:
        raise UsageError(
            f"rg:{dataset} gave only {len(instances)} different questions out of {drawn}, {total} are asked for: "
            "ask for fewer, or widen its options"
        )

    def verify(instance: Instance, output: str) -> Score:
        answer = output.strip()
        try:
            value = float(source.score_answer(answer=answer, entry=dict(instance.extra)))
        except _UNREADABLE:
            value = 0.0
        return Score(answer, value >= 1.0, min(1.0, max(0.0, value)))

    return _with_answer_tag(instances[:total]), verify, dropped


def draw_instances(dataset: str, config: GeneratedConfig, size: int, seed: int) -> list[Instance]:
    """`size` instances in the order in which they were generated, repeats included; `config`'s sizes do not count."""
    return [_instance(dataset, entry, config) for entry in _source(dataset, config, size, seed)]


def _source(dataset: str, config: GeneratedConfig, size: int, seed: int) -> Any:
    import reasoning_gym

    try:
        return reasoning_gym.create_dataset(dataset, size=size, seed=seed, **config.dataset)
    except (TypeError, AssertionError, ValueError) as error:
        raise UsageError(f"rg:{dataset}: {' '.join(str(error).split())}") from error


def _instance(dataset: str, entry: Mapping[str, Any], config: GeneratedConfig) -> Instance:
    question = entry["question"]
    fields = {"question": question}
    if config.pattern:
        match = re.search(config.pattern, question)
        if match is None:
            raise DataError(f"rg:{dataset}: the pattern {config.pattern!r} does not match {question[:80]!r}")
        found = ["".join(text.split()) if config.compact else text for text in match.groups()]
        fields |= {str(number): text for number, text in enumerate(found, start=1)}
    prompt = re.sub(r"\{(\w+)\}", lambda field: fields.get(field[1], field[0]), config.prompt)
    if entry["answer"] is None:
        raise UsageError(f"rg:{dataset} has no single gold answer to train on; choose another dataset")
    return Instance(prompt, str(entry["answer"]), tags=_tags(entry, prompt), extra=entry)


def _tags(entry: Mapping[str, Any], prompt: str) -> dict[str, str]:
    tags = {"answer_length": str(len(str(entry["answer"]))), "prompt_length": _bucket(len(prompt))}
    for key, value in entry["metadata"].items():
        if isinstance(value, int) and key.startswith("num_"):
            tags[key] = str(value)
    return tags


def _with_answer_tag(instances: list[Instance]) -> list[Instance]:
    """Where few answers occur, the answer is a slice of its own; a tag that all instances share is none."""
    answers = {instance.target for instance in instances}
    values: dict[str, set[str]] = {}
    for instance in instances:
        for key, value in instance.tags.items():
            values.setdefault(key, set()).add(value)
    kept = {key for key, seen in values.items() if len(seen) > 1}
    return [
        replace(
            instance,
            tags={key: value for key, value in instance.tags.items() if key in kept}
            | ({"answer": instance.target} if 1 < len(answers) <= MOST_ANSWER_SLICES else {}),
        )
        for instance in instances
    ]


def _bucket(length: int) -> str:
    """The power-of-two bucket that a length falls into, e.g. `33-64`."""
    top = max(8, 1 << (length - 1).bit_length())
    return f"{top // 2 + 1}-{top}" if top > 8 else "1-8"


def _with_options(dataset: str, instances: list[Instance]) -> list[Instance]:
    options = tuple(sorted({instance.target for instance in instances}))
    if not 2 <= len(options) <= MOST_OPTIONS:
        raise UsageError(
            f"rg:{dataset} has {len(options)} different answers; kind=choice needs 2 to {MOST_OPTIONS}: "
            "use kind=generate"
        )
    return [replace(instance, options=options) for instance in instances]
