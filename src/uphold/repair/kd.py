"""Knowledge distillation from the old model into the new one.

Xie et al., "Regression Bugs Are In Your Model! Measuring, Reducing and Analyzing Regressions In NLP Model Updates",
ACL 2021, arXiv:2105.03048.

    L = 1/n sum_i  (1 - a) CE_i + a T² KL(softmax(z_old,i/T) || softmax(z,i/T))

The conditional form distils only what the old model finds at least as likely as the student does; the rest is
trained by cross-entropy alone, at full weight:

    a_i = a 1[log p_old(y) >= log p(y)]        of token i, or of all trained tokens of its sequence together

KL(old || student) makes the student cover all that the old model might say. In its place may stand KL(student || old),
which lets it keep to some of that, or the Jensen-Shannon divergence between the two (GKD, Agarwal et al., ICLR 2024,
arXiv:2306.13649).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from uphold.core.errors import UsageError, unknown_name
from uphold.core.progress import Progress, silent
from uphold.core.registry import repair
from uphold.models.divergence import ForwardKL, JensenShannon, ReverseKL
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

Conditional = Literal["never", "token", "sequence"]
Kind = Literal["forward-kl", "reverse-kl", "jensen-shannon"]
DIVERGENCES: Mapping[Kind, type[ForwardKL | ReverseKL | JensenShannon]] = {
    "forward-kl": ForwardKL,
    "reverse-kl": ReverseKL,
    "jensen-shannon": JensenShannon,
}
PAPER = "arXiv:2105.03048"
OLD = 0


@dataclass(frozen=True)
class KdConfig(DistillConfig):
    """Options of distillation from the old model."""

    kl_weight: float = 0.5
    """The a of (1 - a)·cross-entropy + a·T²·KL, in [0, 1]."""
    conditional: Conditional = "never"
    """Distil only tokens, or only whole sequences, whose gold tokens the old model finds at least as likely as the
    student does; the others are trained by cross-entropy alone."""
    divergence: Kind = "forward-kl"
    """How far the student is from the old model: KL(old || student), KL(student || old), or Jensen-Shannon's."""

    SEARCH: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "kl_weight": (0.5, 0.9),
        "conditional": ("never", "sequence"),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.conditional not in get_args(Conditional):
            raise unknown_name("conditional", self.conditional, get_args(Conditional))
        if self.divergence not in DIVERGENCES:
            raise unknown_name("divergence", self.divergence, DIVERGENCES)
        if not 0 <= self.kl_weight <= 1:
            raise UsageError(f"distillation needs kl_weight in [0, 1], not {self.kl_weight}")


@repair("kd", paper=PAPER)
def kd(
    old: ModelLike,
    new: ModelLike,
    task: str | Path | Task,
    *,
    out: str | Path,
    config: KdConfig | None = None,
    store: RunStore | None = None,
    progress: Progress = silent,
) -> Repair:
    """Distil the old model into the new one beside cross-entropy, wholly or where the old one is at least as good.

    Arguments and errors are those of `uphold.repair.muscle.muscle`.
    """
    from uphold.repair.distill import distill

    return distill(
        "kd",
        PAPER,
        "KD",
        old,
        new,
        task,
        out=out,
        config=config,
        default=KdConfig(),
        objective=kd_objective,
        store=store,
        progress=progress,
    )


def kd_objective(setting: Setting, config: KdConfig) -> Distillation:
    """The loss with the setting's old model as teacher."""
    from uphold.models.objective import Distillation, FrozenTeacher

    rule = KdRule(config.kl_weight, config.temperature, config.conditional, config.divergence)
    return Distillation(rule, (FrozenTeacher(setting.old.model),), config.tokens)


@dataclass(frozen=True)
class KdRule:
    """Cross-entropy and KL from teacher 0, the old model."""

    kl_weight: float = 0.5
    """A."""
    temperature: float = 2.0
    conditional: Conditional = "never"
    divergence: Kind = "forward-kl"

    @property
    def whole_sequences(self) -> bool:
        """See `uphold.models.rules.Rule`."""
        return self.conditional == "sequence"

    def __call__(self, tokens: Tokens) -> Weights:
        """See `uphold.models.rules.Rule`."""
        distilled = self.kl_weight * self.distils(tokens).float()
        divergence = DIVERGENCES[self.divergence](self.temperature, scale=self.temperature**2)
        return Weights((Term("kl_old", divergence, OLD, distilled),), 1 - distilled)

    def distils(self, tokens: Tokens) -> torch.Tensor:
        """Which tokens are distilled, booleans of shape (n,)."""
        match self.conditional:
            case "never":
                return tokens.none == 0
            case "token":
                return tokens.teachers[OLD].logprob >= tokens.student.logprob
            case "sequence":
                assert tokens.sequences is not None
                return (tokens.sequences.teachers[OLD] >= tokens.sequences.student)[tokens.trained.sequence]
