"""Scoring rules, by versioned name: a rule whose definition changes gets a new name."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

from uphold.core.errors import unknown_name
from uphold.tasks.base import Instance, Score, ScoreFunction

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def exact(instance: Instance, output: str) -> Score:
    """Right when output and target are equal after white space is folded."""
    answer = " ".join(output.split())
    return _judged(answer, answer == " ".join(instance.target.split()))


def exact_number(instance: Instance, output: str) -> Score:
    """Right when the last number in the output equals the last number in the target (GSM8K style)."""
    answer = _last_number(output)
    return _judged(answer, answer != "" and answer == _last_number(instance.target))


def choice(instance: Instance, output: str) -> Score:
    """Right when the chosen option is the target."""
    return _judged(output, output == instance.target)


def rouge1(instance: Instance, output: str) -> Score:
    """F-measure of ROUGE-1 with stemming (Lin 2004), by the package rouge-score."""
    return _rouge("rouge1", instance, output)


def rouge_l(instance: Instance, output: str) -> Score:
    """F-measure of ROUGE-L with stemming (Lin 2004), by the package rouge-score."""
    return _rouge("rougeL", instance, output)


def unscored(instance: Instance, output: str) -> Score:
    """No score: the answer is recorded, and counted as unscored."""
    return Score(output, None, None)


SCORERS: dict[str, ScoreFunction] = {
    "exact.v1": exact,
    "exact_number.v1": exact_number,
    "rouge1.v1": rouge1,
    "rougeL.v1": rouge_l,
}


def scorer(name: str) -> tuple[str, ScoreFunction]:
    """The versioned name and function of a scorer; a name without version means version 1.

    Raises:
        UsageError: there is none; the message suggests the nearest name.
    """
    full = name if "." in name else f"{name}.v1"
    if full not in SCORERS:
        raise unknown_name("scorer", full, SCORERS)
    return full, SCORERS[full]


def _judged(answer: str, correct: bool) -> Score:
    return Score(answer, correct, float(correct))


def _last_number(text: str) -> str:
    """The last number without separators and without zeros behind the decimals: `1,080.50` is `1080.5`."""
    found = _NUMBER.findall(text)
    number = found[-1].replace(",", "") if found else ""
    return number.rstrip("0").removesuffix(".") if "." in number else number


def _rouge(metric: str, instance: Instance, output: str) -> Score:
    measured = _rouge_scorer(metric).score(instance.target, output)[metric]
    return Score(" ".join(output.split()), None, float(measured.fmeasure))


@lru_cache
def _rouge_scorer(metric: str) -> RougeScorer:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer([metric], use_stemmer=True)
