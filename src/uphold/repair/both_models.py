"""What the repairs share that keep both models and ask them together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from uphold.repair.result import REPAIRED, Epoch, Repair

if TYPE_CHECKING:
    from uphold.models.load import Loaded
    from uphold.repair.protocol import Setting

FOLDER = "pair"
COST = "both models are asked for every answer: twice the memory and time of one"


@dataclass(frozen=True)
class BothConfig:
    """Options that every one of them has."""

    force: bool = False
    """Go on although the new model is worse than the old one on validation."""

    KIND: ClassVar[str] = "pair"


def repair_with_both(
    setting: Setting,
    config: BothConfig,
    label: str,
    pair: Loaded,
    history: Sequence[Epoch] = (),
    notes: Sequence[str] = (COST,),
) -> Repair:
    """Save a pair of models, measure it, and save the repair.

    Args:
        setting: what it was made from.
        config: the method's options.
        label: how tables call it.
        pair: the two models.
        history: of what was trained.
        notes: remarks of the method.
    """
    from uphold.models.pair import save_pair
    from uphold.repair.protocol import conclude

    folder = setting.folder / FOLDER
    arm = setting.arm(REPAIRED, label, save_pair(pair, folder), history)
    return conclude(setting, [arm], config, folder, "pair", notes)
