"""Mixture: one student for the average of both models, or per token for the better of the two.

Running old and new model side by side and averaging their probabilities has far fewer negative flips than the new one
alone, at twice the cost. This distils that pair into one model:

    p_i = s softmax(z_old,i/T) + (1 - s) softmax(z_new,i/T)        or, with teacher "best", of the two the one that
                                                                   gives the gold token y_i more
    L   = 1/n sum_i  lambda KL(p_i || softmax(z_i/T)) + (1 - lambda) CE_i
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

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

Blend = Literal["average", "best"]
OLD, NEW = 0, 1


@dataclass(frozen=True)
class MixtureConfig(DistillConfig):
    """Options of distillation from both models."""

    temperature: float = 1.0
    """T of the softmaxes of teachers and student."""
    teacher: Blend = "average"
    """Both models' probabilities averaged, or per token those of the model that finds the gold token likelier (of
    equals the new one)."""
    share: float = 0.5
    """How much of the old model is in the average, in [0, 1]."""
    kl_weight: float = 1.0
    """Lambda of lambda·KL + (1 - lambda)·cross-entropy, in [0, 1]."""

    SEARCH: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "teacher": ("average", "best"),
        "share": (0.5, 0.7),
        "kl_weight": (1.0, 0.5),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.teacher not in get_args(Blend):
            raise unknown_name("teacher", self.teacher, get_args(Blend))
        if not (0 <= self.share <= 1 and 0 <= self.kl_weight <= 1):
            raise UsageError(
                f"a mixture needs share and kl_weight in [0, 1], not {self.share} and {self.kl_weight}",
            )


@repair("mixture")
def mixture(
    old: ModelLike,
    new: ModelLike,
    task: str | Path | Task,
    *,
    out: str | Path,
    config: MixtureConfig | None = None,
    store: RunStore | None = None,
    progress: Progress = silent,
) -> Repair:
    """Distil the average of both models' probabilities, or per token the better of them, into one adapter.

    Arguments and errors are those of `uphold.repair.muscle.muscle`.
    """
    from uphold.repair.distill import distill

    return distill(
        "mixture",
        "",
        "mixture",
        old,
        new,
        task,
        out=out,
        config=config,
        default=MixtureConfig(),
        objective=mixture_objective,
        store=store,
        progress=progress,
    )


def mixture_objective(setting: Setting, config: MixtureConfig) -> Distillation:
    """The loss with the setting's models as teachers."""
    from uphold.models.objective import Distillation, FrozenTeacher

    teachers = (FrozenTeacher(setting.old.model), FrozenTeacher(setting.new.model))
    rule = MixtureRule(config.teacher, config.share, config.kl_weight, config.temperature)
    return Distillation(rule, teachers, config.tokens)


@dataclass(frozen=True)
class MixtureRule:
    """KL from teacher 0, the old model, and teacher 1, the new one, together; and cross-entropy."""

    teacher: Blend = "average"
    share: float = 0.5
    """Of the old model."""
    kl_weight: float = 1.0
    """Lambda."""
    temperature: float = 1.0
    whole_sequences = False

    def __call__(self, tokens: Tokens) -> Weights:
        """See `uphold.models.rules.Rule`."""
        gold = None if self.kl_weight == 1 else tokens.none + (1 - self.kl_weight)
        if self.teacher == "best":
            divergence = ForwardKL(self.temperature)
            use_old = self.kl_weight * (tokens.teachers[OLD].logprob > tokens.teachers[NEW].logprob).float()
            use_new = self.kl_weight - use_old
            return Weights((Term("kl_old", divergence, OLD, use_old), Term("kl_new", divergence, NEW, use_new)), gold)
        term = average("kl_mixture", self.share, self.temperature, tokens.none + self.kl_weight)
        return Weights((term,), gold)


def average(name: str, share: float, temperature: float, weight: torch.Tensor) -> Term:
    """KL from the average of teacher 0 and teacher 1.

    Args:
        name: what it is logged as.
        share: of teacher 0, in [0, 1].
        temperature: T of all softmaxes.
        weight: how much it counts for each token, shape (n,).
    """
    shares = weight.new_tensor([share, 1 - share]).expand(len(weight), 2)
    return Term(name, ForwardKL(temperature), shares, weight)
