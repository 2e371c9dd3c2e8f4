"""Margin-preserving training: focal distillation from the old and the new model, and a margin for new classes.

Ricci et al., AAAI 2026, arXiv:2511.08322.

    L = 1/n sum_i  CE(z_i + b 1[new class]) + FD(z_old,i, z_i) + FD(z_new,i, z_i)
    FD(z_k, z) = (alpha + beta 1[model k right on i]) KL(softmax(z_k/tau) || softmax(z/tau))        no factor tau²

The second teacher is trained without the old model: here, the new model that is to be repaired. A class is a token;
new classes are the first tokens of answers that the old model never met. Adding b to their logits in cross-entropy
alone lets the student get by with lower ones, so that old classes lose fewer instances to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from uphold.core.errors import UsageError
from uphold.core.progress import Progress, silent
from uphold.core.registry import repair
from uphold.models.divergence import ForwardKL, Valued, cross_entropy
from uphold.models.rules import Term, Tokens, Trained, Weights
from uphold.repair.judging import Judge, Rightness, check_judge, recorded
from uphold.repair.result import Repair
from uphold.repair.training import DistillConfig

if TYPE_CHECKING:
    import torch

    from uphold.core.runs import RunStore
    from uphold.models.encode import Batch
    from uphold.models.load import ModelLike
    from uphold.models.objective import Distillation
    from uphold.repair.protocol import Setting
    from uphold.tasks.base import Task

PAPER = "arXiv:2511.08322"
OLD, NEW, GOLD = 0, 1, 2


@dataclass(frozen=True)
class MptConfig(DistillConfig):
    """Options of margin-preserving training; the defaults are the paper's."""

    temperature: float = 5.0
    """Tau of the softmaxes; no factor tau² is applied."""
    focal_alpha: float = 1.0
    """Weight of each distance everywhere."""
    focal_beta: float = 5.0
    """What is added to it where that teacher is right."""
    margin: float = 1.0
    """B, at least 0, added to the logits of new classes in cross-entropy; the paper tries 0, 1, 2 and 4."""
    new_answers: list[str] = field(default_factory=list)
    """Answers that the old model was never trained on; their first tokens are the new classes. None, so no margin, by
    default."""
    judge: Judge = "instance"
    """Whether a teacher is right: by its recorded score on the instance, or token by token."""

    SEARCH: ClassVar[Mapping[str, tuple[Any, ...]]] = {"focal_beta": (5.0, 1.0)}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_judge(self.judge, self.select)
        if min(self.focal_alpha, self.focal_beta, self.margin) < 0:
            raise UsageError("MPT needs focal_alpha, focal_beta and margin of at least 0")


@repair("mpt", paper=PAPER)
def mpt(
    old: ModelLike,
    new: ModelLike,
    task: str | Path | Task,
    *,
    out: str | Path,
    config: MptConfig | None = None,
    store: RunStore | None = None,
    progress: Progress = silent,
) -> Repair:
    """Fine-tune with old and new model as teachers that count most where they are right, and a margin for new answers.

    Arguments and errors are those of `uphold.repair.muscle.muscle`; besides:

    Raises:
        UsageError: a new answer occurs nowhere in the train split, or begins with the same token as a known one.
    """
    from uphold.repair.distill import distill

    return distill(
        "mpt",
        PAPER,
        "MPT",
        old,
        new,
        task,
        out=out,
        config=config,
        default=MptConfig(),
        objective=mpt_objective,
        store=store,
        progress=progress,
    )


def mpt_objective(setting: Setting, config: MptConfig) -> Distillation:
    """The loss with the setting's models as teachers."""
    from uphold.models.objective import Distillation, FrozenTeacher

    new_tokens = first_tokens(setting, config.new_answers)
    models = (setting.old, setting.new)
    old_right, new_right = (
        recorded(setting, model, index, config.judge, f"{name} model on train")
        for index, (model, name) in enumerate(zip(models, ("old", "new"), strict=True))
    )
    rule = MptRule(
        old_right, new_right, config.temperature, config.focal_alpha, config.focal_beta, config.margin, new_tokens
    )
    return Distillation(rule, [*(FrozenTeacher(model.model) for model in models), GoldTeacher()], config.tokens)


def first_tokens(setting: Setting, answers: list[str]) -> tuple[int, ...]:
    """The tokens that `answers` begin with in the train split, sorted.

    Raises:
        UsageError: an answer occurs nowhere, or begins with a token that another answer begins with too.
    """
    from uphold.repair.training import training_rows
    from uphold.tasks.base import required_instances

    if not answers:
        return ()
    targets = [instance.target for instance in required_instances(setting.task, "train")]
    first: dict[int, set[str]] = {}
    for target, row in zip(targets, training_rows(setting.new, setting.task, "train"), strict=True):
        first.setdefault(row.answer[0], set()).add(target)
    missing = sorted(set(answers) - set(targets))
    if missing:
        raise UsageError(f"no train instance has the new answer {missing[0]!r}: name answers of the train split")
    chosen = sorted(token for token, found in first.items() if found & set(answers))
    for token in chosen:
        known = sorted(first[token] - set(answers))
        if known:
            both = sorted(first[token] & set(answers))
            raise UsageError(
                f"the new answer {both[0]!r} begins with the same token as the known answer {known[0]!r}: a margin "
                "cannot tell them apart; leave it out of new_answers"
            )
    return tuple(chosen)


class GoldTeacher:
    """Hands the gold tokens on to a divergence: its "logits" are (gold token, whether it is of the answer)."""

    def logits(self, batch: Batch, trained: Trained) -> Gold:
        """See `uphold.models.objective.Teacher`."""
        return Gold(trained)


class Gold:
    """What `GoldTeacher` gives for n trained tokens."""

    def __init__(self, trained: Trained) -> None:
        self._pairs = trained.targets.new_zeros((len(trained.targets), 2))
        self._pairs[:, 0], self._pairs[:, 1] = trained.targets, trained.is_answer

    def __len__(self) -> int:
        return len(self._pairs)

    def chunk(self, part: slice) -> torch.Tensor:
        """Integers of shape (tokens, 2)."""
        return self._pairs[part]


@dataclass(frozen=True)
class MarginCrossEntropy:
    """-log softmax(z + b 1[new class])[gold] at answer tokens, -log softmax(z)[gold] elsewhere."""

    margin: float
    """B."""
    new_tokens: tuple[int, ...]
    """The new classes."""
    temperature: float = 1.0
    target: ClassVar[Literal["logits"]] = "logits"

    def __call__(self, student: torch.Tensor, target: torch.Tensor) -> Valued:
        """See `uphold.models.divergence.Divergence`; `target` is that of `GoldTeacher`."""
        gold, is_answer = target.unbind(1)
        raised = student.clone()
        raised[:, self.new_tokens] += self.margin * is_answer[:, None]
        return cross_entropy(raised, gold)


@dataclass(frozen=True, eq=False)
class MptRule:
    """Cross-entropy with a margin, and focal KL from teacher 0, the old model, and teacher 1, the new one.

    With a margin, teacher 2 must be a `GoldTeacher`.
    """

    old_right: Rightness
    new_right: Rightness
    temperature: float = 5.0
    alpha: float = 1.0
    beta: float = 5.0
    margin: float = 1.0
    new_tokens: tuple[int, ...] = ()
    whole_sequences = False

    def __call__(self, tokens: Tokens) -> Weights:
        """See `uphold.models.rules.Rule`."""
        divergence = ForwardKL(self.temperature)
        one = tokens.none + 1
        terms = [
            Term("kl_old", divergence, OLD, self.alpha + self.beta * self.old_right(tokens)),
            Term("kl_new", divergence, NEW, self.alpha + self.beta * self.new_right(tokens)),
        ]
        if not (self.margin and self.new_tokens):
            return Weights(terms, one)
        gold = MarginCrossEntropy(self.margin, self.new_tokens)
        return Weights([Term("cross_entropy", gold, GOLD, one), *terms])
