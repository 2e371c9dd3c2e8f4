"""From an engine's numbers and texts to records."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from uphold.core.errors import ModelError
from uphold.core.records import Record
from uphold.models.engine import Engine
from uphold.tasks.base import Decoding, Instance, Metric, Score, Task

if TYPE_CHECKING:
    from uphold.models.decoding import Generated, Sampling
    from uphold.models.likelihood import OptionScore, Scored

Question = list[tuple[str, str]]


def answer(engine: Engine, task: Task, instances: Sequence[Instance], seed: int = 0) -> list[Record]:
    """The records of `instances`, in their order.

    Raises:
        ModelError: the model gives NaN, or cannot be asked.
    """
    if not instances:
        return []
    ask = _choose if task.kind == "choice" else _write
    return ask(engine, task, instances, seed)


def questions(task: Task, instances: Sequence[Instance]) -> list[Question]:
    """The (context, continuation) pairs of each instance's options; where needed, unconditional ones behind."""
    found = [
        list(instance.requests) or [(instance.prompt, task.delimiter + option) for option in instance.options]
        for instance in instances
    ]
    if task.metric != "acc_mutual_info":
        return found
    return [
        own + [("", continuation) for continuation in _unconditional(task, instance)]
        for own, instance in zip(found, instances, strict=True)
    ]


def prompts(task: Task, instances: Sequence[Instance]) -> list[str]:
    """What is to be continued; white space before an answer is left to its first token, as in training."""
    strip = bool(task.delimiter) and task.delimiter.isspace()
    return [(instance.prompt.rstrip() or instance.prompt) if strip else instance.prompt for instance in instances]


def sampling_of(decoding: Decoding, seed: int) -> Sampling:
    """A task's decoding as the engine takes it."""
    from uphold.models.decoding import Sampling

    return Sampling(decoding.max_new_tokens, decoding.stop, decoding.temperature, decoding.top_p, seed)


def _unconditional(task: Task, instance: Instance) -> list[str]:
    continuations = {continuation for _, continuation in instance.requests}
    if len(continuations) == len(instance.options):
        return [continuation for _, continuation in instance.requests]
    return [task.delimiter + option for option in instance.options]


def _choose(engine: Engine, task: Task, instances: Sequence[Instance], seed: int) -> list[Record]:
    scored = engine.score(questions(task, instances))
    for instance, question in zip(instances, scored, strict=True):
        if any(math.isnan(option.logprob) for option in question.options):
            raise ModelError(
                f"'{engine.name}' gives NaN instead of a log-likelihood on {instance.prompt[-40:]!r}: "
                "its weights or its dtype are broken"
            )
    outputs = [
        picked(task.metric, instance.options, question.options)
        for instance, question in zip(instances, scored, strict=True)
    ]
    return _records(task, instances, outputs, scored)


def picked(metric: Metric, options: Sequence[str], scores: Sequence[OptionScore]) -> str:
    """The option that `metric` picks; see `uphold.tasks.base.Metric`.

    Args:
        metric: the rule.
        options: texts of k options.
        scores: their k scores; for `acc_mutual_info` 2 k, the unconditional ones behind.
    """
    own = scores[: len(options)]
    values: list[float]
    match metric:
        case "acc_norm":
            values = [score.logprob / max(1, len(option)) for option, score in zip(options, own, strict=True)]
        case "acc_bytes":
            values = [score.logprob / max(1, len(option.encode())) for option, score in zip(options, own, strict=True)]
        case "acc_tokens":
            values = [score.logprob / score.tokens for score in own]
        case "acc_mutual_info":
            values = [score.logprob - other.logprob for score, other in zip(own, scores[len(options) :], strict=True)]
        case "exact_match":
            return next((option for option, score in zip(options, own, strict=True) if score.greedy), "")
        case _:
            values = [score.logprob for score in own]
    return options[max(range(len(values)), key=values.__getitem__)]


def _write(engine: Engine, task: Task, instances: Sequence[Instance], seed: int) -> list[Record]:
    written = engine.write(
        prompts(task, instances), sampling_of(task.decoding, seed), [instance.id for instance in instances]
    )
    return _records(task, instances, [one.text for one in written], written)


def _records(
    task: Task, instances: Sequence[Instance], outputs: Sequence[str], made: Sequence[Scored | Generated]
) -> list[Record]:
    scores = task.score_all(instances, outputs)
    return [
        record_of(
            instance,
            output,
            score,
            tuple(option.logprob for option in getattr(one, "options", ()))[: len(instance.options)],
            one.tokens,
            one.truncated,
        )
        for instance, output, score, one in zip(instances, outputs, scores, made, strict=True)
    ]


def record_of(
    instance: Instance, output: str, score: Score, logprobs: tuple[float, ...], tokens: int, truncated: bool = False
) -> Record:
    """The record of one answer.

    Args:
        instance: what was asked.
        output: what was said.
        score: what the task makes of it.
        logprobs: of the options, in their order; empty where they are not known.
        tokens: what it took.
        truncated: whether the prompt was cut.
    """
    return Record(
        id=instance.id,
        input=instance.prompt,
        target=instance.target,
        output=output,
        answer=score.answer,
        correct=score.correct,
        score=score.score,
        options=instance.options,
        option_logprobs=logprobs,
        tokens=tokens,
        tags={**instance.tags, "truncated": "yes"} if truncated else instance.tags,
    )
