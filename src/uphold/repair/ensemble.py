"""Ensemble: the average of both models' next-token probabilities, without any training.

    p(y_t | x, y_<t) = s p_old(y_t | x, y_<t) + (1 - s) p_new(y_t | x, y_<t)

Averages of independently trained models are what reducing negative flips is measured against (Yan et al., CVPR 2021;
Zhao et al. 2022, who call it the paragon): few methods come near, and none of them costs two models at inference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from uphold.core.progress import Progress, silent
from uphold.core.registry import repair
from uphold.models.pair_file import Averaging, parameters_of
from uphold.repair.both_models import BothConfig, repair_with_both
from uphold.repair.result import Repair

if TYPE_CHECKING:
    from uphold.core.runs import RunStore
    from uphold.models.load import ModelLike
    from uphold.tasks.base import Task

NAME, PAPER = "ensemble", "arXiv:2205.06265"


@dataclass(frozen=True)
class EnsembleConfig(BothConfig, Averaging):
    """Options of the ensemble."""

    SEARCH: ClassVar[Mapping[str, tuple[Any, ...]]] = {"share": (0.3, 0.5, 0.7)}


@repair(NAME, paper=PAPER)
def ensemble(
    old: ModelLike,
    new: ModelLike,
    task: str | Path | Task,
    *,
    out: str | Path,
    config: EnsembleConfig | None = None,
    store: RunStore | None = None,
    progress: Progress = silent,
) -> Repair:
    """Average the next-token probabilities of the old and the new model (both are asked).

    Args:
        old: the version that users have.
        new: the version that is to replace it; both must share one token-id map.
        task: what to keep; nothing is trained, the train split is not looked at.
        out: the folder to write `pair/` and the runs to.
        config: the options; those of the recipe that belongs to the task where None.
        store: where runs are kept.
        progress: called while models are evaluated.

    Raises:
        TokenizerMismatchError: the models do not share a token-id map.
        UsageError: the new model is clearly worse than the old one, unless `config.force`.
        UpholdError: see `uphold.core.errors` for what else can go wrong.
    """
    from uphold.models.pair import pair_of
    from uphold.repair.protocol import begin
    from uphold.repair.recipe import configure, recipe_for
    from uphold.tasks.load import load_task

    chosen = load_task(task)
    options = config or configure(EnsembleConfig(), NAME, recipe_for(chosen))
    setting = begin(NAME, PAPER, old, new, chosen, out=out, force=options.force, store=store, progress=progress)
    pair = pair_of(setting.old, setting.new, parameters_of(options, Averaging))
    return repair_with_both(setting, options, "ensemble", pair)
