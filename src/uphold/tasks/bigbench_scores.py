"""The metrics of BIG-bench (Srivastava et al. 2022, arXiv:2206.04615) that score one answer at a time.

Definitions follow `bigbench/api/task_metrics.py` and `models/model_utils.py` of the release 1.0.0. Differences: white
space is folded before strings are compared, a stop string belongs neither to outputs nor to targets, and a relative
error is taken of the target's absolute value.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from uphold.tasks.base import Instance, Score, ScoreFunction

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

CHOICE = "multiple_choice_grade"
DEFAULT_REGEX = r"[^\.\?\!\;\n]+"
"""What is looked for in an output where a task gives neither `output_regex` nor `stop_string`."""
UNSUPPORTED: Mapping[str, str] = {
    "bleu": "is computed over a whole corpus",
    "rouge": "is three metrics: rouge1, rouge2 and rougeLsum",
    "bleurt": "needs a model of its own",
    "sequence_f1": "scores tags, not answers",
    "log_likelihood": "is no score in [0, 1]",
    "macro_f1": "is computed over a whole corpus",
    "weighted_probabilities": "is no score of an answer",
    "weighted_log_probabilities": "is no score in [0, 1]",
    "calibration_multiple_choice_brier_score": "is no score of an answer",
    "expected_calibration_error": "is computed over a whole corpus",
}
"""Metrics of the schema that cannot be had here, and why."""


def multiple_choice_grade(instance: Instance, output: str) -> Score:
    """The chosen option's target score; right when no option has a higher one."""
    scores = instance.extra["target_scores"]
    score = float(scores.get(output, 0.0))
    return Score(output, score == max(scores.values()), score)


def exact_str_match(instance: Instance, output: str) -> Score:
    """Right when what is extracted from the output equals one of the targets."""
    answer = extracted(output, instance.extra)
    correct = _folded(answer) in [_folded(target) for target in targets_of(instance)]
    return Score(answer, correct, float(correct))


def case_insensitive_str_match(instance: Instance, output: str) -> Score:
    """`exact_str_match` without regard to upper and lower case."""
    answer = extracted(output, instance.extra)
    correct = _folded(answer).lower() in [_folded(target).lower() for target in targets_of(instance)]
    return Score(answer, correct, float(correct))


def numeric_match(instance: Instance, output: str) -> Score:
    """Right when the output is a number within 10% of the target, or within 0.1 of a target of 0."""
    answer = extracted(output, instance.extra)
    try:
        value, target = float(answer), float(instance.target)
    except ValueError:
        return Score(answer, False, 0.0)
    correct = abs(value - target) / (abs(target) or 1.0) <= 0.1
    return Score(answer, correct, float(correct))


def _rouge(kind: str) -> ScoreFunction:
    """F-measure of ROUGE (Lin 2004) without stemming, the best over the targets, on sentences as t5 prepares them."""

    def score(instance: Instance, output: str) -> Score:
        answer = extracted(output, instance.extra)
        text = answer.replace(" . ", " .\n")
        references = [target.replace(" . ", " .\n") for target in targets_of(instance)]
        best = max(_rouge_scorer(kind).score(reference, text)[kind].fmeasure for reference in references)
        return Score(_folded(answer), None, float(best))

    return score


GENERATED: Mapping[str, ScoreFunction] = {
    "exact_str_match": exact_str_match,
    "case_insensitive_str_match": case_insensitive_str_match,
    "numeric_match_with_0_1_relative_error": numeric_match,
    "rouge1": _rouge("rouge1"),
    "rouge2": _rouge("rouge2"),
    "rougeLsum": _rouge("rougeLsum"),
}
"""Metrics of generated answers by the schema's names."""
STRING_MATCHES = ("exact_str_match", "case_insensitive_str_match")


def targets_of(instance: Instance) -> Sequence[str]:
    """All acceptable answers, the stop string at their end left out as it is from outputs."""
    stop = instance.extra["stop"]
    return [target.rstrip().removesuffix(stop) if stop else target for target in instance.extra["targets"]]


def extracted(output: str, how: Mapping[str, Any]) -> str:
    """The part of an output that is scored: up to `how["stop"]`, then the first match of `how["regex"]`, if any."""
    text = output.strip()
    if how["stop"]:
        text = text.partition(how["stop"])[0]
    if how["regex"]:
        found = re.search(how["regex"], text)
        if found is None:
            return ""
        # As re.findall does: the group where there is one, else all of it.
        text = found[found.re.groups] or ""
    return text.strip()


def answerable(instance: Instance) -> bool:
    """Whether any output at all is scored as right: extraction must leave one of the targets whole."""
    kept = [_folded(extracted(target, instance.extra)) == _folded(target) for target in targets_of(instance)]
    return any(kept)


def _folded(text: str) -> str:
    return " ".join(text.split())


@lru_cache
def _rouge_scorer(kind: str) -> RougeScorer:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer([kind])
