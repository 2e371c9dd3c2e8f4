"""One model on one task: from instances to a stored run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from uphold.core.errors import ModelError
from uphold.core.progress import Progress, silent
from uphold.core.records import Record
from uphold.core.runs import Run, RunStore, default_store
from uphold.models.load import Loaded, ModelLike, fingerprint_of, library_versions, load
from uphold.tasks.base import Instance, Split, Task, required_instances, task_fingerprint

PART = 256
"""Instances per part of a run in the making: what a kill can cost at most."""


@dataclass(frozen=True)
class Batching:
    """How instances are put into batches; part of a run's fingerprint, since rounding depends on it."""

    size: int = 32
    """Rows per forward pass."""
    reverse: bool = False
    """Cut the instances into parts from the other end."""

    def other(self) -> Batching:
        """Another composition of batches, for the noise floor."""
        return Batching(max(1, self.size // 2 + 1), not self.reverse)


def evaluate(
    model: ModelLike,
    task: Task,
    *,
    split: Split = "test",
    store: RunStore | None = None,
    batching: Batching = Batching(),
    seed: int = 0,
    progress: Progress = silent,
    what: str = "",
) -> Run:
    """The run of `model` on one split of `task`: from the store, taken up where it stopped, or made anew.

    Args:
        model: a reference, or a loaded model; a reference is loaded only if something is left to do.
        task: what to ask.
        split: which instances.
        store: where runs are kept (`uphold.core.runs.default_store`).
        batching: how instances share forward passes.
        seed: of sampled decoding; without effect on greedy decoding and on choices.
        progress: called after every part.
        what: what progress is reported as.

    Raises:
        EmptyError: the split has no instances.
        ModelError: the model cannot be loaded, or gives NaN.
        StorageError, CorruptError: the store cannot be written or read.
    """
    instances = required_instances(task, split)
    fingerprint = run_fingerprint(model, task, split, batching, seed)
    keep = store or default_store()
    found = keep.find(fingerprint)
    if found is not None:
        return Run(found.path, fingerprint, found.count, found.sha256)
    writer = keep.writer(fingerprint)
    parts = list(_parts(instances, batching))
    label = what or f"evaluating {fingerprint['model']['name']}"
    loaded: Loaded | None = None
    for index, part in enumerate(parts):
        if not writer.has(index):
            loaded = loaded or load(model)
            writer.write(index, answer(loaded, task, part, batching.size, seed))
        progress(label, index + 1, len(parts))
    return writer.finish(len(parts))


def run_fingerprint(model: ModelLike, task: Task, split: Split, batching: Batching, seed: int) -> dict[str, Any]:
    """What is needed to repeat a run, as plain JSON."""
    sampled = task.kind == "generate" and task.decoding.temperature > 0
    return {
        "model": fingerprint_of(model),
        "task": task_fingerprint(task, split),
        "batching": {"size": batching.size, "reverse": batching.reverse, "part": PART},
        "seed": seed if sampled else 0,
        "versions": library_versions(),
    }


def answer(loaded: Loaded, task: Task, instances: Sequence[Instance], batch_size: int, seed: int = 0) -> list[Record]:
    """The records of `instances`, in their order."""
    ask = _choose if task.kind == "choice" else _generate
    return ask(loaded, task, instances, batch_size, seed)


def _parts(instances: Sequence[Instance], batching: Batching) -> Iterator[list[Instance]]:
    """Parts of like length, so that batches within a part waste little padding."""
    ordered = sorted(instances, key=lambda instance: (len(instance.prompt), instance.id), reverse=batching.reverse)
    for start in range(0, len(ordered), PART):
        yield ordered[start : start + PART]


def _choose(loaded: Loaded, task: Task, instances: Sequence[Instance], batch_size: int, seed: int) -> list[Record]:
    from uphold.models.likelihood import option_logprobs

    logprobs, tokens = option_logprobs(
        loaded.model,
        loaded.tokenizer,
        [instance.prompt for instance in instances],
        [[task.delimiter + option for option in instance.options] for instance in instances],
        batch_size,
    )
    records = []
    for instance, values, count in zip(instances, logprobs, tokens, strict=True):
        if any(math.isnan(value) for value in values):
            raise ModelError(
                f"'{loaded.name}' gives NaN instead of a log-likelihood on {instance.prompt[-40:]!r}: "
                "its weights or its dtype are broken"
            )
        output = instance.options[max(range(len(values)), key=values.__getitem__)]
        records.append(_record(task, instance, output, count, tuple(values)))
    return records


def _generate(loaded: Loaded, task: Task, instances: Sequence[Instance], batch_size: int, seed: int) -> list[Record]:
    from uphold.models.generate import generate

    decoding = task.decoding
    # White space between prompt and answer belongs to the answer's first token, as in training.
    strip = bool(task.delimiter) and task.delimiter.isspace()
    written = generate(
        loaded.model,
        loaded.tokenizer,
        [(instance.prompt.rstrip() or instance.prompt) if strip else instance.prompt for instance in instances],
        max_new_tokens=decoding.max_new_tokens,
        stop=decoding.stop,
        temperature=decoding.temperature,
        top_p=decoding.top_p,
        keys=[instance.id for instance in instances],
        seed=seed,
        batch_size=batch_size,
    )
    return [
        _record(task, instance, answered.text, answered.tokens)
        for instance, answered in zip(instances, written, strict=True)
    ]


def _record(task: Task, instance: Instance, output: str, tokens: int, logprobs: tuple[float, ...] = ()) -> Record:
    (score,) = task.score_all([instance], [output])
    return Record(
        id=instance.id,
        input=instance.prompt,
        target=instance.target,
        output=output,
        answer=score.answer,
        correct=score.correct,
        score=score.score,
        options=instance.options if logprobs else (),
        option_logprobs=logprobs,
        tokens=tokens,
        tags=instance.tags,
    )
