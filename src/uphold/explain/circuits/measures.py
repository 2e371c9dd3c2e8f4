"""What is measured of the logits at the position that answers, one number per row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch

from uphold.core.errors import unknown_name
from uphold.explain.circuits.prompts import BATCH, Prompts
from uphold.models.sites.layout import Layout
from uphold.models.sites.run import run
from uphold.models.sites.sweep import Metric

Measure = Literal["probability", "logit-difference", "correct"]
"""Probability of the answer; its logit less the mean of the foils'; 1 where it is the most likely token, else 0."""
MEASURES: tuple[Measure, ...] = get_args(Measure)


def measured(measure: Measure, prompts: Prompts) -> Metric:
    """The measure as `uphold.models.sites.sweep` takes it.

    Raises:
        UsageError: there is none of that name.
    """
    if measure not in MEASURES:
        raise unknown_name("measure", measure, MEASURES)

    def metric(logits: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        answers = prompts.answers.to(logits.device)[rows.to(logits.device)]
        if measure == "correct":
            return (logits.argmax(-1) == answers).float()
        if measure == "probability":
            return logits.float().softmax(-1).gather(-1, answers[:, None])[:, 0]
        foils = prompts.foils.to(logits.device)[rows.to(logits.device)]
        return logits.gather(-1, answers[:, None])[:, 0] - logits.gather(-1, foils).mean(-1)

    return metric


def of_all(measure: Measure, prompts: Prompts) -> Callable[[torch.Tensor], torch.Tensor]:
    """The measure of the logits of all rows, in order."""
    metric = measured(measure, prompts)
    every = torch.arange(len(prompts), device=prompts.at.device)
    return lambda logits: metric(logits, every)


def solved(layout: Layout, prompts: Prompts, batch: int = BATCH) -> torch.Tensor:
    """Which prompts the model answers rightly, bool, shape (rows,)."""
    parts = [of_all("correct", one)(run(layout, one.inputs, at=one.at)) for one in prompts.batches(batch)]
    return torch.cat(parts).bool().to(prompts.at.device)
