"""Uphold's own repair: a wider student learns what the old and the new model say together.

Running both models side by side and averaging their probabilities breaks far less than the new one alone, at twice the
cost. One model comes close to that if it has room for what the old one knows, and if it is shown more than gold
answers:

    p_i = s softmax(z_old,i) + (1 - s) softmax(z_new,i)
    L   = 1/n sum_i  c_i (-log softmax(z_i)[y_i]) + (1 - c_i) KL(p_i || softmax(z_i))

The student is the new model, its adapter with a fresh one beside it, also in the embeddings: what the old model knows
of single words lies there. It reads every training prompt with the gold answer and with each model's own answer. c_i
is `gold_weight` on gold answers and 0 on the others. The learning rate falls as half a cosine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from uphold.core.errors import UsageError
from uphold.core.progress import Progress, silent
from uphold.core.registry import repair
from uphold.models.rules import Tokens, Weights
from uphold.models.train import Decay, Select
from uphold.repair.mixture import average
from uphold.repair.result import Repair
from uphold.repair.training import DistillConfig

if TYPE_CHECKING:
    from uphold.core.runs import RunStore
    from uphold.models.load import Loaded, ModelLike
    from uphold.models.objective import Distillation
    from uphold.models.train import Example
    from uphold.repair.protocol import Setting
    from uphold.tasks.base import Task


@dataclass(frozen=True)
class UpholdConfig(DistillConfig):
    """Options of Uphold's own repair."""

    temperature: float = 1.0
    """T of the softmaxes of teachers and student."""
    decay: Decay = "cosine"
    """What the learning rate does after warm-up: stay, or fall to 0 at the end, in a line or as half a cosine."""
    select: Select = "last"
    """Which epoch is kept: the last, where the learning rate has come to rest, or one by validation (`nfr`,
    `accuracy`, `loss`)."""
    share: float = 0.5
    """How much of the old model is in the average, in [0, 1]."""
    gold_weight: float = 0.3
    """How much cross-entropy counts on gold answers, in [0, 1]; the rest is the divergence from the average."""
    extra_rank: int | None = None
    """Rank of the fresh adapter beside the new model's own; `rank` where None. 0 keeps the new model's adapter as it
    is."""
    embeddings: bool = True
    """Adapt the input embeddings, too."""
    own_answers: bool = True
    """Read every prompt with each model's own answer too, where that is not the gold one."""

    SEARCH: ClassVar[Mapping[str, tuple[Any, ...]]] = {"share": (0.5, 0.3), "gold_weight": (0.3, 0.0)}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 <= self.share <= 1 and 0 <= self.gold_weight <= 1):
            raise UsageError(f"share and gold_weight must be in [0, 1], not {self.share} and {self.gold_weight}")
        if self.extra_rank is not None and self.extra_rank < 0:
            raise UsageError(f"extra_rank must be at least 0, not {self.extra_rank}")

    def student(self, new: Loaded) -> Any:
        """The new model with room beside its adapter."""
        from uphold.models.widened import widened

        extra = self.rank if self.extra_rank is None else self.extra_rank
        if not extra:
            return super().student(new)
        return widened(new, extra, self.alpha * extra / self.rank, self.dropout, self.embeddings, self.seed)


@repair("uphold")
def uphold(
    old: ModelLike,
    new: ModelLike,
    task: str | Path | Task,
    *,
    out: str | Path,
    config: UpholdConfig | None = None,
    store: RunStore | None = None,
    progress: Progress = silent,
) -> Repair:
    """Distil both models together into one with more room, on gold answers and on their own: the default.

    Arguments and errors are those of `uphold.repair.muscle.muscle`; a new model whose adapter is not a plain LoRA is
    refused unless `extra_rank` is 0.
    """
    from uphold.repair.distill import distill

    return distill(
        "uphold",
        "",
        "uphold",
        old,
        new,
        task,
        out=out,
        config=config,
        default=UpholdConfig(),
        objective=uphold_objective,
        examples=_examples,
        store=store,
        progress=progress,
    )


def uphold_objective(setting: Setting, config: UpholdConfig) -> Distillation:
    """The loss with the setting's models as teachers."""
    from uphold.models.objective import Distillation, FrozenTeacher

    teachers = (FrozenTeacher(setting.old.model), FrozenTeacher(setting.new.model))
    return Distillation(UpholdRule(config.share, config.gold_weight, config.temperature), teachers, config.tokens)


@dataclass(frozen=True)
class UpholdRule:
    """KL from the average of teacher 0, the old model, and teacher 1, the new one; cross-entropy where gold is known.

    Rows without an instance number carry a model's own answer, not the gold one.
    """

    share: float = 0.5
    gold_weight: float = 0.3
    temperature: float = 1.0
    whole_sequences = False

    def __call__(self, tokens: Tokens) -> Weights:
        """See `uphold.models.rules.Rule`."""
        gold = self.gold_weight * (tokens.trained.instance >= 0).float()
        term = average("kl_average", self.share, self.temperature, 1 - gold)
        return Weights((term,), gold if self.gold_weight else None)


def _examples(setting: Setting, config: UpholdConfig) -> Sequence[Example]:
    """Every instance of the train split with its gold answer, and with what each model says where that differs."""
    from uphold.models.encode import Encoded
    from uphold.repair.training import answer_rows, training_rows
    from uphold.tasks.base import required_instances

    rows = training_rows(setting.new, setting.task, "train")
    if not config.own_answers:
        return [(row,) for row in rows]
    instances = required_instances(setting.task, "train")
    told = {index: {instance.target} for index, instance in enumerate(instances)}
    pairs = []
    for name, model in (("old", setting.old), ("new", setting.new)):
        outputs = {
            record.id: record.output for record in setting.run(model, "train", f"{name} model on train").records()
        }
        for index, instance in enumerate(instances):
            answer = outputs[instance.id]
            if answer.strip() and answer not in told[index]:
                told[index].add(answer)
                pairs.append((instance, answer))
    own = answer_rows(setting.new, setting.task, [instance for instance, _ in pairs], [text for _, text in pairs])
    return [(row,) for row in (*rows, *(Encoded(row.prompt, row.answer) for row in own))]
