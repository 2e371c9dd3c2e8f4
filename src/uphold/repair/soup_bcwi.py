"""SoupBCWI: interpolation between the old model and the mean of several new ones.

Schumann et al., "Backward Compatibility During Data Updates by Weight Interpolation", EACL 2024, arXiv:2301.10546.

    theta = alpha theta_old + (1 - alpha) 1/k sum_j theta_new,j                  0 <= alpha < 1

The new models differ by their seed alone. What is averaged is what the adapters add to the weights, not their factors.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uphold.core.errors import UsageError
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
class SoupBcwiConfig(InterpolationConfig):
    """Options of SoupBCWI. The paper averages 1, 2, 4, 8 and 16 models."""

    members: int = 4
    """How many new models are averaged. The given one is the first; the others are trained on its base as `uphold
    adapt` does, with the recipe's options."""
    first_seed: int = 1
    """Of the first model that is trained; the others follow."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.members < 1 or self.first_seed < 0:
            raise UsageError(f"a soup needs members >= 1 and first_seed >= 0, not {self.members} and {self.first_seed}")


@repair("soup-bcwi", paper=PAPER)
def soup_bcwi(
    old: ModelLike,
    new: ModelLike,
    task: str | Path | Task,
    *,
    out: str | Path,
    config: SoupBcwiConfig | None = None,
    store: RunStore | None = None,
    progress: Progress = silent,
) -> Repair:
    """Interpolate the weights of the old model and of the mean of several new ones.

    An interrupted call that is repeated goes on where it stopped.

    Args:
        old: the version that users have; a model reference or a loaded model.
        new: the version that is to replace it, of the same architecture and with the same token-id map.
        task: what to keep; the other new models are trained on its train split, alpha is chosen on its validation
            split, the mixture measured once on its test split.
        out: the folder to write to: `adapter/` for LoRAs on one base, else `weights/`, a whole model; `members/`.
        config: the options; those of the recipe that belongs to the task where None.
        store: where runs are kept.
        progress: called while models are trained and evaluated.

    Raises:
        TokenizerMismatchError: the models do not share a token-id map.
        UsageError: they are of two architectures, the new one's adapter is no plain LoRA, or it is clearly worse and
            `config.force` is not set.
        UpholdError: see `uphold.core.errors` for what else can go wrong.
    """
    from uphold.repair.recipe import configure, recipe_for
    from uphold.tasks.load import load_task

    chosen = load_task(task)
    options = config or configure(SoupBcwiConfig(), "soup-bcwi", recipe_for(chosen))
    return interpolate(
        "soup-bcwi",
        PAPER,
        f"SoupBCWI of {options.members}",
        old,
        new,
        chosen,
        out=out,
        config=options,
        mixture=lambda setting: _mixture(setting, options),
        contents=lambda setting: _contents(setting, options),
        zero_is_new=options.members == 1,
        store=store,
        progress=progress,
    )


def _mixture(setting: Setting, options: SoupBcwiConfig) -> Mixture:
    from uphold.models.mixture import plain_mixture
    from uphold.models.weights import lora_factors
    from uphold.repair.members import load_member, train_members

    members = train_members(setting, options.members - 1, options.first_seed)
    added = [lora_factors(load_member(setting, member).model) or {} for member in members]
    return plain_mixture(setting.old, setting.new, added)


def _contents(setting: Setting, options: SoupBcwiConfig) -> Any:
    from uphold.repair.members import member_config

    return [options.members, options.first_seed, asdict(member_config(setting.task))]
