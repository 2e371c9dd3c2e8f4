"""MUSCLE: a compatibility adapter by masked distillation from the old and the new model.

Echterhoff et al., "MUSCLE: A Model Update Strategy for Compatible LLM Evolution", arXiv:2407.09435v2.

    M1 = old model, M2 = new model (both frozen);  MC starts as a copy of M2, only its adapter trains
    for each trained token i:   m_i = 1[argmax z_MC,i != y_i]                                  (no gradient)
    L = 1/n sum_i  m_i KL(softmax(z_M1,i/T) || softmax(z_MC,i/T)) + (1-m_i) KL(softmax(z_M2,i/T) || softmax(z_MC,i/T))

Tokens that the student gets right are anchored to the new model, tokens it gets wrong are pulled to the old one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from uphold.core.errors import UsageError, unknown_name
from uphold.core.progress import Progress, silent
from uphold.core.registry import repair
from uphold.models.divergence import ForwardKL
from uphold.models.rules import Term, Tokens, Weights
from uphold.repair.result import Repair
from uphold.repair.training import DistillConfig

if TYPE_CHECKING:
    import torch

    from uphold.core.runs import RunStore
    from uphold.models.load import ModelLike
    from uphold.models.objective import Distillation
    from uphold.repair.protocol import Setting
    from uphold.tasks.base import Task

Mask = Literal["student-wrong", "new-wrong", "old-correct", "old-only", "likelihood-token", "likelihood-sequence"]
MASKS: tuple[Mask, ...] = get_args(Mask)
PAPER = "arXiv:2407.09435"
OLD, NEW = 0, 1


@dataclass(frozen=True)
class MuscleConfig(DistillConfig):
    """Options of MUSCLE; the defaults are the paper's where it gives them (section 3.2, Table 8).

    No factor T² is applied, as in the paper's formula.
    """

    mask: Mask = "student-wrong"
    """Which tokens follow the old model (Table 7): those the student gets wrong (the default, Eq. 1), those the new
    model gets wrong, those the old model gets right, all, those whose gold token the student finds less likely than
    the old model, or all of a sequence whose gold tokens it finds less likely together."""
    kl_weight: float | None = None
    """Lambda of lambda·L + (1 - lambda)·cross-entropy. None: 1, or 0.5 with the likelihood masks, which the paper
    uses with cross-entropy only and for which it reports no lambda."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mask not in MASKS:
            raise unknown_name("mask", self.mask, MASKS)
        if self.kl_weight is not None and not 0 <= self.kl_weight <= 1:
            raise UsageError(f"MUSCLE needs kl_weight in [0, 1], not {self.kl_weight}")

    @property
    def weight(self) -> float:
        """The lambda in force."""
        if self.kl_weight is not None:
            return self.kl_weight
        return 0.5 if self.mask.startswith("likelihood") else 1.0


@repair("muscle", paper=PAPER)
def muscle(
    old: ModelLike,
    new: ModelLike,
    task: str | Path | Task,
    *,
    out: str | Path,
    config: MuscleConfig | None = None,
    store: RunStore | None = None,
    progress: Progress = silent,
) -> Repair:
    """Train a compatibility adapter by masked distillation from the old and the new model.

    An interrupted call that is repeated goes on where it stopped.

    Args:
        old: the version that users have; a model reference or a loaded model.
        new: the version that is to replace it; its adapter is where the student starts (a fresh LoRA where it has
            none). Both must share one token-id map.
        task: what to keep; trained on its train split, checkpoints chosen on its validation split, measured once on
            its test split.
        out: the folder to write the adapter, the runs and the training state to.
        config: the options; those of the recipe that belongs to the task where None.
        store: where runs are kept.
        progress: called after every step.

    Raises:
        TokenizerMismatchError: the models do not share a token-id map.
        UsageError: the new model is clearly worse than the old one, unless `config.force`.
        UpholdError: see `uphold.core.errors` for what else can go wrong.
    """
    from uphold.repair.distill import distill

    return distill(
        "muscle",
        PAPER,
        "MUSCLE",
        old,
        new,
        task,
        out=out,
        config=config,
        default=MuscleConfig(),
        objective=muscle_objective,
        store=store,
        progress=progress,
    )


def muscle_objective(setting: Setting, config: MuscleConfig) -> Distillation:
    """MUSCLE's loss with the setting's models as teachers."""
    from uphold.models.objective import Distillation, FrozenTeacher

    teachers = (FrozenTeacher(setting.old.model), FrozenTeacher(setting.new.model))
    return Distillation(MuscleRule(config.mask, config.temperature, config.weight), teachers, config.tokens)


@dataclass(frozen=True)
class MuscleRule:
    """Eq. 1 and its variants (Table 7); teacher 0 is the old model, teacher 1 the new one."""

    mask: Mask = "student-wrong"
    temperature: float = 2.0
    kl_weight: float = 1.0
    """Lambda."""

    @property
    def whole_sequences(self) -> bool:
        """See `uphold.models.distillation.Rule`."""
        return self.mask == "likelihood-sequence"

    def __call__(self, tokens: Tokens) -> Weights:
        """See `uphold.models.distillation.Rule`."""
        divergence = ForwardKL(self.temperature)
        use_old = self.kl_weight * self.follows_old(tokens).float()
        terms = (
            Term("kl_old", divergence, OLD, use_old),
            Term("kl_new", divergence, NEW, self.kl_weight - use_old),
        )
        gold = None if self.kl_weight == 1 else use_old.new_full(use_old.shape, 1 - self.kl_weight)
        return Weights(terms if self.kl_weight else (), gold)

    def follows_old(self, tokens: Tokens) -> torch.Tensor:
        """Which tokens follow the old model, booleans of shape (n,)."""
        student, old, new = tokens.student, tokens.teachers[OLD], tokens.teachers[NEW]
        match self.mask:
            case "student-wrong":
                return ~student.right
            case "new-wrong":
                return ~new.right
            case "old-correct":
                return old.right
            case "old-only":
                return old.right | True
            case "likelihood-token":
                return student.logprob < old.logprob
            case "likelihood-sequence":
                assert tokens.sequences is not None
                return (tokens.sequences.student < tokens.sequences.teachers[OLD])[tokens.trained.sequence]
