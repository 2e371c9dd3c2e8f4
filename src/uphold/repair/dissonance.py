"""Dissonance: a penalty for new errors on what the old model got right.

Bansal et al., "Updates in Human-AI Teams", AAAI 2019; the losses are those of Microsoft's BackwardCompatibilityML.

    L = 1/n sum_i  CE_i + lambda 1[old model right on i] D_i
    new error:          D_i = CE_i
    strict imitation:   D_i = KL(softmax(z_old,i/T) || softmax(z,i/T))

The mean is over all tokens, so the dissonance of a batch counts by the share of old-correct tokens in it. The target
of the KL are the old model's probabilities; the released code passes their logarithms as if they were probabilities.
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
from uphold.repair.judging import Judge, Rightness, check_judge, recorded
from uphold.repair.result import Repair
from uphold.repair.training import DistillConfig

if TYPE_CHECKING:
    from uphold.core.runs import RunStore
    from uphold.models.load import ModelLike
    from uphold.models.objective import Distillation
    from uphold.repair.protocol import Setting
    from uphold.tasks.base import Task

Kind = Literal["new-error", "strict-imitation"]
PAPER = "Bansal et al., AAAI 2019"
OLD = 0


@dataclass(frozen=True)
class DissonanceConfig(DistillConfig):
    """Options of training against dissonance."""

    temperature: float = 1.0
    """T of the softmaxes; for strict imitation only."""
    kind: Kind = "new-error"
    """What is penalised where the old model was right: the student's cross-entropy, or its distance from the old
    model's probabilities."""
    weight: float = 1.0
    """Lambda, at least 0."""
    judge: Judge = "instance"
    """Whether the old model was right: by its recorded score on the instance, or token by token."""

    SEARCH: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "kind": ("new-error", "strict-imitation"),
        "weight": (1.0, 4.0),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        check_judge(self.judge, self.select)
        if self.kind not in get_args(Kind):
            raise unknown_name("kind", self.kind, get_args(Kind))
        if self.weight < 0:
            raise UsageError(f"dissonance needs a weight of at least 0, not {self.weight}")


@repair("dissonance", paper=PAPER)
def dissonance(
    old: ModelLike,
    new: ModelLike,
    task: str | Path | Task,
    *,
    out: str | Path,
    config: DissonanceConfig | None = None,
    store: RunStore | None = None,
    progress: Progress = silent,
) -> Repair:
    """Fine-tune with a penalty on instances that the old model got right: for errors, or for leaving its outputs.

    Arguments and errors are those of `uphold.repair.muscle.muscle`.
    """
    from uphold.repair.distill import distill

    return distill(
        "dissonance",
        PAPER,
        "dissonance",
        old,
        new,
        task,
        out=out,
        config=config,
        default=DissonanceConfig(),
        objective=dissonance_objective,
        store=store,
        progress=progress,
    )


def dissonance_objective(setting: Setting, config: DissonanceConfig) -> Distillation:
    """The loss; the old model is read beside the student only where its outputs are needed."""
    from uphold.models.objective import Distillation, FrozenTeacher

    old_right = recorded(setting, setting.old, OLD, config.judge, "old model on train")
    rule = DissonanceRule(old_right, config.kind, config.weight, config.temperature)
    needed = config.kind == "strict-imitation" or config.judge == "token"
    return Distillation(rule, (FrozenTeacher(setting.old.model),) if needed else (), config.tokens)


@dataclass(frozen=True, eq=False)
class DissonanceRule:
    """Cross-entropy and dissonance; teacher 0, where there is one, is the old model."""

    old_right: Rightness
    kind: Kind = "new-error"
    weight: float = 1.0
    """Lambda."""
    temperature: float = 1.0
    whole_sequences = False

    def __call__(self, tokens: Tokens) -> Weights:
        """See `uphold.models.rules.Rule`."""
        penalty = self.weight * self.old_right(tokens)
        if self.kind == "new-error":
            return Weights(cross_entropy=1 + penalty)
        return Weights((Term("kl_old", ForwardKL(self.temperature), OLD, penalty),), tokens.none + 1)
