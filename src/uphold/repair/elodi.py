"""Ensemble logit difference inhibition: follow the mean of several new models.

Zhao et al., "ELODI: Ensemble Logit Difference Inhibition for Positive-Congruent Training", arXiv:2205.06265.

    z_t = mean of the logits of M task adapters of the new base that differ by their seed alone
    LDI(z, z_t) = mean over classes c of max(|z_c - z_t,c| - xi, 0)^p
    L = 1/n sum_i  (1 - a) CE_i + a LDI_i

The classes are the vocabulary, or of each token the K that the teacher likes best; the released code picks its top K
along the batch instead. The ensemble knows nothing of the old model: flips become fewer only as far as they come from
the luck of one training, and fewest where the old model was trained in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from uphold.core.errors import UsageError, unknown_name
from uphold.core.progress import Progress, silent
from uphold.core.registry import repair
from uphold.models.divergence import LogitDifferenceInhibition
from uphold.models.rules import Term, Tokens, Weights
from uphold.repair.members import load_member, train_members
from uphold.repair.result import Repair
from uphold.repair.training import DistillConfig

if TYPE_CHECKING:
    from uphold.core.runs import RunStore
    from uphold.models.load import ModelLike
    from uphold.models.objective import Distillation
    from uphold.repair.protocol import Setting
    from uphold.tasks.base import Task

Reference = Literal["ensemble", "old"]
PAPER = "arXiv:2205.06265"


@dataclass(frozen=True)
class ElodiConfig(DistillConfig):
    """Options of ensemble logit difference inhibition. `temperature` is the controls' alone: LDI has none."""

    teacher: Reference = "ensemble"
    """Whose logits are followed: the mean of an ensemble of new models, or the old model's."""
    members: int = 4
    """Size of the ensemble; the paper has 8. Each is trained as `uphold adapt` trains, with seeds from `seed` + 1."""
    margin: float | None = None
    """Xi, by how much a logit may differ at no cost. None: 0.1 with an ensemble (the paper has 0 to 0.2), 0.5 with
    the old model."""
    power: float = 2.0
    """P, at least 1."""
    top: int = 0
    """Only the teacher's so many largest logits of each token count (the paper has 10); 0 for the whole vocabulary."""
    ldi_weight: float | None = None
    """The a of (1 - a)·cross-entropy + a·LDI, in [0, 1]. None: 0.8 with an ensemble, 0.5 with the old model."""

    SEARCH: ClassVar[Mapping[str, tuple[Any, ...]]] = {"top": (0, 10)}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.teacher not in get_args(Reference):
            raise unknown_name("teacher", self.teacher, get_args(Reference))
        if self.members < 1 or self.power < 1 or self.top < 0 or (self.margin or 0.0) < 0:
            raise UsageError("ELODI needs members and power of at least 1, top and margin of at least 0")
        if self.ldi_weight is not None and not 0 <= self.ldi_weight <= 1:
            raise UsageError(f"ELODI needs ldi_weight in [0, 1], not {self.ldi_weight}")

    @property
    def inhibition(self) -> LogitDifferenceInhibition:
        """LDI with the margin in force."""
        default = 0.1 if self.teacher == "ensemble" else 0.5
        return LogitDifferenceInhibition(default if self.margin is None else self.margin, self.power, self.top)

    @property
    def share(self) -> float:
        """The a in force."""
        default = 0.8 if self.teacher == "ensemble" else 0.5
        return default if self.ldi_weight is None else self.ldi_weight


@repair("elodi", paper=PAPER)
def elodi(
    old: ModelLike,
    new: ModelLike,
    task: str | Path | Task,
    *,
    out: str | Path,
    config: ElodiConfig | None = None,
    store: RunStore | None = None,
    progress: Progress = silent,
) -> Repair:
    """Follow the mean logits of an ensemble of new models, which knows nothing of the old one, or the old model's.

    The ensemble's members are kept under `members/` of `out`; those that are there are not trained again. Arguments
    and errors are those of `uphold.repair.muscle.muscle`.
    """
    from uphold.repair.distill import distill

    return distill(
        "elodi",
        PAPER,
        "ELODI",
        old,
        new,
        task,
        out=out,
        config=config,
        default=ElodiConfig(),
        objective=elodi_objective,
        store=store,
        progress=progress,
    )


def elodi_objective(setting: Setting, config: ElodiConfig) -> Distillation:
    """The loss with the ensemble, trained here if need be, or the old model as teacher."""
    from uphold.models.objective import Distillation, FrozenTeacher

    if config.teacher == "old":
        teachers = [setting.old]
    else:
        members = train_members(setting, config.members, config.seed + 1)
        teachers = [load_member(setting, adapter) for adapter in members]
    rule = ElodiRule(config.inhibition, config.share)
    return Distillation(rule, [FrozenTeacher(teacher.model) for teacher in teachers], config.tokens)


@dataclass(frozen=True)
class ElodiRule:
    """Cross-entropy, and LDI to the mean logits of all teachers."""

    inhibition: LogitDifferenceInhibition
    share: float = 0.8
    """A."""
    whole_sequences = False

    def __call__(self, tokens: Tokens) -> Weights:
        """See `uphold.models.rules.Rule`."""
        count = len(tokens.teachers)
        equal = tokens.none.new_full((len(tokens.none), count), 1 / count)
        term = Term("ldi", self.inhibition, equal, tokens.none + self.share, mix="logits")
        return Weights((term,), tokens.none + (1 - self.share))
