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

    @property
    def models(self) -> int:
        """See `uphold.repair.interpolation.InterpolationConfig`."""
        return self.members


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

    The other new models are trained on the train split, in `members/` of `out`; an interrupted call that is repeated
    goes on where it stopped. Arguments and errors are otherwise those of `uphold.repair.bcwi.bcwi`; besides:

    Raises:
        UsageError: the new model's adapter is no plain LoRA.
    """
    return interpolate(
        "soup-bcwi",
        PAPER,
        "SoupBCWI of {members}",
        old,
        new,
        task,
        out=out,
        config=config,
        default=SoupBcwiConfig(),
        mixture=_mixture,
        contents=_contents,
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
