"""Self-distillation: the new model taught again by itself.

Furlanello et al., "Born-Again Neural Networks", ICML 2018, arXiv:1805.04770.

    L = 1/n sum_i  (1 - a) CE_i + a T² KL(softmax(z_new,i/T) || softmax(z,i/T))

It knows nothing of the old model: it is the measure of what distillation as such does to negative flips.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from uphold.core.errors import UsageError
from uphold.core.progress import Progress, silent
from uphold.core.registry import repair
from uphold.models.divergence import ForwardKL
from uphold.models.rules import Term, Tokens, Weights
from uphold.repair.result import Repair
from uphold.repair.training import DistillConfig

if TYPE_CHECKING:
    from uphold.core.runs import RunStore
    from uphold.models.load import ModelLike
    from uphold.models.objective import Distillation
    from uphold.repair.protocol import Setting
    from uphold.tasks.base import Task

PAPER = "arXiv:1805.04770"
NEW = 0


@dataclass(frozen=True)
class SelfDistillationConfig(DistillConfig):
    """Options of self-distillation."""

    kl_weight: float = 0.5
    """The a of (1 - a)·cross-entropy + a·T²·KL, in [0, 1]; at 1 nothing moves, since the student starts where its
    teacher stands."""

    SEARCH: ClassVar[Mapping[str, tuple[Any, ...]]] = {"kl_weight": (0.5, 0.9)}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.kl_weight <= 1:
            raise UsageError(f"self-distillation needs kl_weight in [0, 1], not {self.kl_weight}")


@repair("self-distillation", paper=PAPER)
def self_distillation(
    old: ModelLike,
    new: ModelLike,
    task: str | Path | Task,
    *,
    out: str | Path,
    config: SelfDistillationConfig | None = None,
    store: RunStore | None = None,
    progress: Progress = silent,
) -> Repair:
    """Distil the new model into itself beside cross-entropy; the old model is used for measuring only.

    Arguments and errors are those of `uphold.repair.muscle.muscle`.
    """
    from uphold.repair.distill import distill

    return distill(
        "self-distillation",
        PAPER,
        "self-distillation",
        old,
        new,
        task,
        out=out,
        config=config,
        default=SelfDistillationConfig(),
        objective=self_distillation_objective,
        store=store,
        progress=progress,
    )


def self_distillation_objective(setting: Setting, config: SelfDistillationConfig) -> Distillation:
    """The loss with the setting's new model as teacher."""
    from uphold.models.objective import Distillation, FrozenTeacher

    rule = SelfDistillationRule(config.kl_weight, config.temperature)
    return Distillation(rule, (FrozenTeacher(setting.new.model),), config.tokens)


@dataclass(frozen=True)
class SelfDistillationRule:
    """Cross-entropy and KL from teacher 0, the new model."""

    kl_weight: float = 0.5
    """A."""
    temperature: float = 2.0
    whole_sequences = False

    def __call__(self, tokens: Tokens) -> Weights:
        """See `uphold.models.rules.Rule`."""
        divergence = ForwardKL(self.temperature, scale=self.temperature**2)
        term = Term("kl_new", divergence, NEW, tokens.none + self.kl_weight)
        return Weights((term,), tokens.none + (1 - self.kl_weight))
