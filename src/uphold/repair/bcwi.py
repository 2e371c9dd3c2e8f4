"""BCWI: backward-compatible weight interpolation between the old and the new model.

Schumann et al., "Backward Compatibility During Data Updates by Weight Interpolation", EACL 2024, arXiv:2301.10546.

    theta = alpha theta_old + (1 - alpha) theta_new                              0 <= alpha < 1

Nothing is trained: alpha is chosen on validation. The new model should have been fine-tuned from the old one, or both
should be adapters on one base; the mixture of two LoRAs is then a LoRA whose rank is the sum of theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from uphold.core.progress import Progress, silent
from uphold.core.registry import repair
from uphold.repair.interpolation import InterpolationConfig, Mixture, interpolate
from uphold.repair.result import Repair

if TYPE_CHECKING:
    from uphold.core.runs import RunStore
    from uphold.models.load import ModelLike
    from uphold.repair.protocol import Setting
    from uphold.tasks.base import Task

PAPER = "arXiv:2301.10546"


@dataclass(frozen=True)
class BcwiConfig(InterpolationConfig):
    """Options of BCWI. The paper's grid has steps of 0.1; how it chose alpha is not published."""

    SEARCH: ClassVar[Mapping[str, tuple[Any, ...]]] = {"choose": ("largest", "nfr"), "step": (0.1, 0.025)}


@repair("bcwi", paper=PAPER)
def bcwi(
    old: ModelLike,
    new: ModelLike,
    task: str | Path | Task,
    *,
    out: str | Path,
    config: BcwiConfig | None = None,
    store: RunStore | None = None,
    progress: Progress = silent,
) -> Repair:
    """Interpolate the weights of the old and the new model; nothing is trained.

    What a repeated call finds in `out` and among the stored runs is not made again.

    Args:
        old: the version that users have; a model reference or a loaded model.
        new: the version that is to replace it, of the same architecture and with the same token-id map.
        task: what to keep; alpha is chosen on its validation split, the mixture measured once on its test split.
        out: the folder to write to: `adapter/` for two LoRAs on one base, else `weights/`, a whole model.
        config: the options; those of the recipe that belongs to the task where None.
        store: where runs are kept.
        progress: called while models are evaluated.

    Raises:
        TokenizerMismatchError: the models do not share a token-id map.
        UsageError: they are of two architectures, or the new one is clearly worse and `config.force` is not set.
        UpholdError: see `uphold.core.errors` for what else can go wrong.
    """
    return interpolate(
        "bcwi",
        PAPER,
        "BCWI",
        old,
        new,
        task,
        out=out,
        config=config,
        default=BcwiConfig(),
        mixture=_mixture,
        contents=lambda setting, options: None,
        store=store,
        progress=progress,
    )


def _mixture(setting: Setting, options: BcwiConfig) -> Mixture:
    from uphold.models.mixture import plain_mixture

    return plain_mixture(setting.old, setting.new)
