"""Which of a harness task's metrics is scored, and how: by its own filters and its own `process_results`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from hashlib import sha256
from json import dumps
from typing import Any

from uphold.core.errors import UsageError, unknown_name
from uphold.tasks.base import Decoding, Instance, Metric, Score, ScoreFunction

CHOICE_METRICS: Mapping[str, Metric] = {
    "acc": "acc",
    "acc_norm": "acc_norm",
    "acc_bytes": "acc_bytes",
    "acc_mutual_info": "acc_mutual_info",
    "exact_match": "exact_match",
}
LOGLIKELIHOOD_METRICS: Mapping[str, Metric] = {"acc": "exact_match"}
"""The harness calls it `acc` when greedy decoding would write the continuation."""
BINARY = ("exact_match", "acc")
"""Metrics of generated answers that are 0 or 1, though as floats."""
MOST_TOKENS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names of one setting, in the order in which the harness looks for them."""
DEFAULT_MOST_TOKENS = 256
_SAMPLING = ("do_sample", "temperature", "top_p", "top_k")
_NEUTRAL: Mapping[str, Any] = {"num_beams": 1, "repetition_penalty": 1.0, "num_return_sequences": 1}
_SCORING = ("metric_list", "filter_list", "process_results", "doc_to_target", "doc_to_choice")


def choose_metric(called: str, task: Any, wanted: str) -> tuple[str, Metric | None]:
    """The metric to score and, for choices, how it picks an option.

    Args:
        called: name of the task for messages.
        task: the harness's task.
        wanted: name of a metric; the first that can be had when empty.

    Raises:
        UsageError: there is no such metric, or it cannot be had instance by instance.
    """
    names = list(task.aggregation())
    if wanted and wanted not in names:
        raise unknown_name("metric", wanted, names, f"It stands in '{called}'.")
    reasons = {name: _reason_against(task, name) for name in ([wanted] if wanted else names)}
    usable = [name for name, reason in reasons.items() if not reason]
    if not usable:
        told = "; ".join(f"{name} {reason}" for name, reason in reasons.items())
        others = [name for name in names if wanted and not _reason_against(task, name)]
        advice = f"use metric={others[0]}" if others else "choose another task"
        raise UsageError(f"task '{called}': {told}: {advice}")
    return usable[0], _picking(task).get(usable[0])


def _picking(task: Any) -> Mapping[str, Metric]:
    return {"multiple_choice": CHOICE_METRICS, "loglikelihood": LOGLIKELIHOOD_METRICS}.get(task.OUTPUT_TYPE, {})


def _reason_against(task: Any, metric: str) -> str:
    from lm_eval.api.metrics import mean, nanmean

    if task.OUTPUT_TYPE != "generate_until":
        known = _picking(task)
        return "" if metric in known else f"is none of {', '.join(known)}, which can be had of log-likelihoods here"
    if task.aggregation()[metric] not in (mean, nanmean):
        return "is computed over a whole corpus, not answer by answer"
    if task.higher_is_better().get(metric) is False:
        return "is better when lower"
    return ""


def decoding_of(called: str, task: Any) -> Decoding:
    """How the harness decodes answers; unused where nothing is generated.

    Raises:
        UsageError: the task decodes in a way that is not done here.
    """
    if task.OUTPUT_TYPE != "generate_until":
        return Decoding()
    given = dict(task.config.generation_kwargs)
    until = given.pop("until", None) or []
    stop = tuple(text for text in ([until] if isinstance(until, str) else until) if text)
    most = next((int(given[key]) for key in MOST_TOKENS if given.get(key) is not None), DEFAULT_MOST_TOKENS)
    # The harness samples where a temperature is given and do_sample is not; transformers' own default is 1.
    sample = given.get("do_sample")
    temperature = float(given.get("temperature", 1.0 if sample else 0.0))
    sampled = temperature > 0 and sample is not False
    for key, value in given.items():
        if key in MOST_TOKENS or key in _SAMPLING[:3] or _NEUTRAL.get(key) == value or (key == "top_k" and not sampled):
            continue
        raise UsageError(f"task '{called}' decodes with {key}={value}, which is not done here; choose another task")
    return Decoding(most, stop, temperature if sampled else 0.0, float(given.get("top_p") or 1.0) if sampled else 1.0)


def right_if_listed(instance: Instance, output: str) -> Score:
    """Right when the picked option is one of the gold ones."""
    correct = output in instance.extra["targets"]
    return Score(output, correct, float(correct))


def generated_score(called: str, task: Any, ensemble: Any, metric: str, example: Instance) -> ScoreFunction:
    """The harness's score of a generated answer: its filter, then its metric.

    An answer whose value is no number in [0, 1] stays unscored.

    Raises:
        UsageError: not even the gold answer of `example` has such a value.
    """
    from lm_eval.api.instance import Instance as Request

    from uphold.tasks.hub import quiet_logs
    from uphold.tasks.lm_eval_files import harness_errors

    def measured(instance: Instance, output: str) -> tuple[Any, Any]:
        document = instance.extra["doc"]
        with harness_errors(called), quiet_logs():
            request = Request("generate_until", document, (instance.prompt, {}), 0, (called, 0, 1), [output])
            ensemble.apply([request])
            kept = request.filtered_resps[ensemble.name]
            return kept, task.process_results(document, [kept]).get(metric)

    def score(instance: Instance, output: str) -> Score:
        kept, value = measured(instance, output)
        answer = kept if isinstance(kept, str) else " | ".join(map(str, kept)) if isinstance(kept, list) else str(kept)
        number = _number(value)
        if number is None:
            return Score(answer, None, None)
        return Score(answer, number == 1.0 if _is_binary(metric, value) else None, number)

    _, value = measured(example, example.target)
    if _number(value) is None:
        raise UsageError(
            f"task '{called}': the metric {metric} gives {str(value)[:40]!r} for a gold answer, and scores lie in "
            f"[0, 1]: choose another with metric=..., of {', '.join(task.aggregation())}"
        )
    return score


def _number(value: Any) -> float | None:
    """`value` as a score, None where it is none."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) and 0 <= number <= 1 else None


def _is_binary(metric: str, value: Any) -> bool:
    import numpy as np

    return metric in BINARY or isinstance(value, bool | int | np.bool_ | np.integer)


def scorer_name(task: Any, metric: str, filter_name: str, instances: Sequence[Instance], version: str) -> str:
    """The versioned name of the scoring rule.

    It carries the task's version and, where scores depend on more than an instance's id tells, a hash of that: the
    harness's version, the task's scoring settings and the documents, or several gold options.
    """
    own = task.VERSION if isinstance(task.VERSION, int | float) else 0
    parts = ["lm_eval", str(own), metric]
    if filter_name and filter_name != "none":
        parts.append(filter_name)
    told: list[Any] = []
    if filter_name:
        described = task.dump_config()
        told = [version, {key: described.get(key) for key in _SCORING}, [one.extra["doc"] for one in instances]]
    elif any(len(one.extra["targets"]) > 1 for one in instances):
        told = [[one.id, one.extra["targets"]] for one in instances]
    return ".".join(parts) + (f"-{_hash(told)}" if told else "")


def _hash(value: Any) -> str:
    """The first 8 hex digits of the SHA-256 of a value; what JSON does not know is told by its name or type."""

    def told(other: Any) -> str:
        return str(getattr(other, "__qualname__", type(other).__qualname__))

    return sha256(dumps(value, sort_keys=True, default=told).encode()).hexdigest()[:8]
