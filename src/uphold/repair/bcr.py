"""BCR: backward-congruent re-ranking, the new model proposes and the old one ranks.

Cai et al., "Measuring and Reducing Model Update Regression in Structured Prediction for NLP", NeurIPS 2022,
arXiv:2202.02976.

    y* = argmax over y in C(x) of p_old(y | x)          C(x) = n candidates of the new model

The candidates of a choice are the options that the new model finds likeliest. Those of a generated answer are the new
model's own answer and samples from it. The paper samples with dropout; language models mostly have none to switch on,
so samples differ by the draw of their tokens instead, at a temperature and within a nucleus.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from uphold.core.errors import UsageError
from uphold.core.progress import Progress, silent
from uphold.core.registry import repair
from uphold.models.pair_file import Reranking, parameters_of
from uphold.repair.both_models import COST, BothConfig, repair_with_both
from uphold.repair.result import Repair

if TYPE_CHECKING:
    from uphold.core.runs import RunStore
    from uphold.models.load import ModelLike
    from uphold.tasks.base import Task

NAME, PAPER = "bcr", "arXiv:2202.02976"
UNRANKED = ("acc_mutual_info", "exact_match")
"""Metrics that do not pick the likeliest option."""


@dataclass(frozen=True)
class BcrConfig(BothConfig, Reranking):
    """Options of BCR; ten candidates are the paper's."""

    SEARCH: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "options": (2, 3),
        "sampling_temperature": (0.5, 1.0),
    }


@repair(NAME, paper=PAPER)
def bcr(
    old: ModelLike,
    new: ModelLike,
    task: str | Path | Task,
    *,
    out: str | Path,
    config: BcrConfig | None = None,
    store: RunStore | None = None,
    progress: Progress = silent,
) -> Repair:
    """Let the old model rank the new model's candidates (both are asked).

    Arguments and errors are those of `uphold.repair.ensemble.ensemble`; besides:

    Raises:
        UsageError: the task's metric does not pick the likeliest option.
    """
    from uphold.models.pair import pair_of
    from uphold.repair.protocol import begin
    from uphold.repair.recipe import configure, recipe_for
    from uphold.tasks.load import load_task

    chosen = load_task(task)
    options = config or configure(BcrConfig(), NAME, recipe_for(chosen))
    if chosen.kind == "choice" and chosen.metric in UNRANKED:
        raise UsageError(
            f"BCR ranks options by their likelihood, and the task '{chosen.name}' picks them by {chosen.metric}: "
            "take another metric, or another method ('uphold methods' lists them)"
        )
    setting = begin(NAME, PAPER, old, new, chosen, out=out, force=options.force, store=store, progress=progress)
    pair = pair_of(setting.old, setting.new, parameters_of(options, Reranking))
    return repair_with_both(setting, options, "BCR", pair, notes=_notes(chosen, options))


def _notes(task: Task, config: BcrConfig) -> list[str]:
    if task.kind == "generate":
        return [
            f"both models are asked: {config.candidates} answers are written by the new one, the old one ranks them"
        ]
    notes = [COST]
    most = max((len(instance.options) for instance in task.instances("test")), default=0)
    if config.options >= most:
        notes.append(
            f"no test instance has more than {most} options and {config.options} of them are candidates: every answer "
            "is the old model's; give fewer --options"
        )
    return notes
