"""Focal distillation: imitate the old model, most of all where it was right.

Yan et al., "Positive-Congruent Training: Towards Regression-Free Model Updates", CVPR 2021, arXiv:2011.09161.

    L   = 1/n sum_i  CE_i + lambda w_i d(z_old,i, z_i)            w_i = alpha + beta 1[old model right on i]
    d_KL(z_old, z) = T² KL(softmax(z_old/T) || softmax(z/T))      d_LM(z_old, z) = 1/2 |z_old - z|²

Each weight multiplies the distance of its own token. The released code multiplies shapes (N, 1) and (N,), which makes
mean(w)·mean(d) of it and loses the focus.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from uphold.core.errors import UsageError, unknown_name
from uphold.core.progress import Progress, silent
from uphold.core.registry import repair
from uphold.models.divergence import Divergence, ForwardKL, HalfSquaredLogits
from uphold.models.rules import Term, Tokens, Weights
from uphold.repair.judging import Judge, Rightness, check_judge, recorded
from uphold.repair.result import Repair
from uphold.repair.training import DistillConfig

if TYPE_CHECKING:
    import torch

    from uphold.core.runs import RunStore
    from uphold.models.load import ModelLike
    from uphold.models.objective import Distillation
    from uphold.repair.protocol import Setting
    from uphold.tasks.base import Task

Distance = Literal["kl", "lm"]
Filter = Literal["all", "old-correct", "negative-flip", "new-incorrect"]
PAPER = "arXiv:2011.09161"
OLD = 0


@dataclass(frozen=True)
class FocalConfig(DistillConfig):
    """Options of focal distillation; the defaults are the paper's."""

    temperature: float = 100.0
    """T of the softmaxes; at 100 the KL is close to half the mean squared distance of the centred logits."""
    focal_alpha: float = 1.0
    """Weight of the distance everywhere."""
    focal_beta: float = 5.0
    """What is added to it where the old model is right."""
    distance: Distance = "kl"
    """T²·KL, or half the squared distance of the logits summed over the vocabulary."""
    focal_weight: float | None = None
    """Lambda of cross-entropy + lambda·focal. None: 1 with kl, 0.4 with lm."""
    mix: float | None = None
    """Where given, in [0, 1], the loss is (1 - mix)·cross-entropy + mix·focal instead; the authors' code has 0.9."""
    filter: Filter = "all"
    """What is distilled: all, what the old model gets right, what it gets right and the student wrong, or what the
    student gets wrong. The student is judged token by token as it trains."""
    judge: Judge = "instance"
    """Whether the old model is right: by its recorded score on the instance, or token by token."""

    SEARCH: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "focal_weight": (0.3, 1.0),
        "filter": ("all", "old-correct"),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        check_judge(self.judge, self.select)
        if self.distance not in get_args(Distance):
            raise unknown_name("distance", self.distance, get_args(Distance))
        if self.filter not in get_args(Filter):
            raise unknown_name("filter", self.filter, get_args(Filter))
        if min(self.focal_alpha, self.focal_beta, self.focal_weight or 0.0) < 0:
            raise UsageError("focal distillation needs focal_alpha, focal_beta and focal_weight of at least 0")
        if self.mix is not None and (self.focal_weight is not None or not 0 <= self.mix <= 1):
            raise UsageError(f"mix must be in [0, 1] and goes without focal_weight, not {self.mix}")

    @property
    def shares(self) -> tuple[float, float]:
        """What cross-entropy and the focal term count."""
        if self.mix is not None:
            return 1 - self.mix, self.mix
        if self.focal_weight is not None:
            return 1.0, self.focal_weight
        return 1.0, 1.0 if self.distance == "kl" else 0.4

    @property
    def divergence(self) -> Divergence:
        """The distance d."""
        if self.distance == "lm":
            return HalfSquaredLogits()
        return ForwardKL(self.temperature, scale=self.temperature**2)


@repair("focal", paper=PAPER)
def focal(
    old: ModelLike,
    new: ModelLike,
    task: str | Path | Task,
    *,
    out: str | Path,
    config: FocalConfig | None = None,
    store: RunStore | None = None,
    progress: Progress = silent,
) -> Repair:
    """Fine-tune with the old model as a teacher that counts most where it was right (positive-congruent training).

    Arguments and errors are those of `uphold.repair.muscle.muscle`.
    """
    from uphold.repair.distill import distill

    return distill(
        "focal",
        PAPER,
        "focal distillation",
        old,
        new,
        task,
        out=out,
        config=config,
        default=FocalConfig(),
        objective=focal_objective,
        store=store,
        progress=progress,
    )


def focal_objective(setting: Setting, config: FocalConfig) -> Distillation:
    """The loss with the setting's old model as teacher."""
    from uphold.models.objective import Distillation, FrozenTeacher

    old_right = recorded(setting, setting.old, OLD, config.judge, "old model on train")
    gold, focus = config.shares
    rule = FocalRule(old_right, config.divergence, config.focal_alpha, config.focal_beta, gold, focus, config.filter)
    return Distillation(rule, (FrozenTeacher(setting.old.model),), config.tokens)


@dataclass(frozen=True, eq=False)
class FocalRule:
    """Cross-entropy and a weighted distance from teacher 0, the old model."""

    old_right: Rightness
    divergence: Divergence
    alpha: float = 1.0
    beta: float = 5.0
    gold_weight: float = 1.0
    """Of cross-entropy."""
    focal_weight: float = 1.0
    """Lambda."""
    filter: Filter = "all"
    whole_sequences = False

    def __call__(self, tokens: Tokens) -> Weights:
        """See `uphold.models.rules.Rule`."""
        old_right = self.old_right(tokens)
        focus = self.focal_weight * self.kept(tokens, old_right) * (self.alpha + self.beta * old_right)
        gold = tokens.none + self.gold_weight if self.gold_weight else None
        return Weights((Term("distance_old", self.divergence, OLD, focus),), gold)

    def kept(self, tokens: Tokens, old_right: torch.Tensor) -> torch.Tensor:
        """How much of each token passes the filter, in [0, 1], shape (n,)."""
        wrong = (~tokens.student.right).to(old_right.dtype)
        match self.filter:
            case "all":
                return tokens.none + 1
            case "old-correct":
                return old_right
            case "negative-flip":
                return old_right * wrong
            case "new-incorrect":
                return wrong
