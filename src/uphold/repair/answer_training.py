"""What repairs from answers share: rows of options, and what they are to be taught."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from uphold.core.records import Record
from uphold.tasks.base import Instance, Metric, required_instances

if TYPE_CHECKING:
    from uphold.models.option_loss import OptionTargets
    from uphold.models.train import Example
    from uphold.repair.protocol import Setting


def option_rows(setting: Setting) -> list[Example]:
    """All options of each training instance, tokenised for the new model as they are asked."""
    from uphold.measure.answer import questions
    from uphold.models.encode import Encoder

    instances = required_instances(setting.task, "train")
    asked = [
        question[: len(instance.options)]
        for question, instance in zip(questions(setting.task, instances), instances, strict=True)
    ]
    rows = iter(Encoder(setting.new.tokenizer).pairs([pair for question in asked for pair in question]))
    return [tuple(next(rows)._replace(instance=number) for _ in question) for number, question in enumerate(asked)]


def option_targets(
    setting: Setting, answers: Mapping[str, Record], temperature: float, smoothing: float
) -> list[OptionTargets]:
    """What the options of each training instance are to be taught, by the instance's number.

    The new model is evaluated on the train split; the old one is known by its `answers` only, by instance id.
    """
    ours = {record.id: record for record in setting.run(setting.new, "train", "new model on train").records()}
    return [
        _targets(instance, answers.get(instance.id), ours[instance.id], setting.task.metric, temperature, smoothing)
        for instance in required_instances(setting.task, "train")
    ]


def _targets(
    instance: Instance, old: Record | None, new: Record, metric: Metric, temperature: float, smoothing: float
) -> OptionTargets:
    from uphold.models.option_loss import OptionTargets, option_probabilities

    scales = option_scales(metric, instance.options)
    return OptionTargets(
        scales,
        instance.options.index(instance.target) if instance.target in instance.options else -1,
        option_probabilities(new.option_logprobs, scales, temperature),
        bool(new.correct),
        None if old is None else old_probabilities(old, instance.options, scales, temperature, smoothing),
        old is not None and bool(old.correct),
    )


def option_scales(metric: Metric, options: Sequence[str]) -> tuple[float, ...]:
    """What a summed log-likelihood is multiplied with before `metric` compares it with others.

    For `acc_tokens` and `acc_mutual_info`, 1: records hold neither tokens nor unconditional likelihoods.
    """
    match metric:
        case "acc_norm":
            return tuple(1 / max(1, len(option)) for option in options)
        case "acc_bytes":
            return tuple(1 / max(1, len(option.encode())) for option in options)
        case _:
            return (1.0,) * len(options)


def old_probabilities(
    record: Record, options: Sequence[str], scales: Sequence[float], temperature: float, smoothing: float
) -> tuple[float, ...] | None:
    """The recorded distribution over the options; None where the record names none of them."""
    from uphold.models.option_loss import option_probabilities

    if record.option_logprobs:
        return option_probabilities(record.option_logprobs, scales, temperature)
    if record.output not in options:
        return None
    return tuple((1 - smoothing) * (option == record.output) + smoothing / len(options) for option in options)
