"""Repair from recorded answers: the old model is gone, and what is left of it is what it said.

    choice:    q = softmax(s / T) over the options of one instance, s the student's summed log-likelihoods
               L = mean over instances of  m KL(p_old || q) + (1 - m) KL(p_new || q)
               p_old = softmax(recorded log-likelihoods / T); where only the choice was recorded, 1 - e on it and e
               spread over all options
    generate:  the trained text is the recorded answer y of every instance that may be followed, the gold answer of
               the others; for each of its tokens
               L = mean over tokens of  m [a (-log q(y)) + (1 - a) KL(p_new || q)] + (1 - m) KL(p_new || q)
               (sequence-level distillation, Kim and Rush 2016, arXiv:1606.07947, held in place by the new model)

The masks m are MUSCLE's (arXiv:2407.09435, Eq. 1 and Table 7), with the recorded correctness of whole answers in place
of the old model's tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from uphold.core.errors import UsageError, unknown_name
from uphold.core.progress import Progress, silent
from uphold.core.registry import repair
from uphold.models.divergence import ForwardKL
from uphold.models.rules import Term, Tokens, Weights
from uphold.repair.result import REPAIRED, Repair
from uphold.repair.training import DistillConfig

if TYPE_CHECKING:
    import torch

    from uphold.core.records import Record
    from uphold.core.runs import RunStore
    from uphold.models.load import ModelLike
    from uphold.models.train import Example, Objective
    from uphold.repair.protocol import Setting
    from uphold.tasks.base import Task

Mask = Literal["flips", "student-wrong", "new-wrong", "old-correct", "old-only"]
MASKS: tuple[Mask, ...] = get_args(Mask)
PAPER = "arXiv:1606.07947"
NEW = 0
WRONG_ONLY: tuple[Mask, ...] = ("flips", "student-wrong")
"""Masks by which only those tokens of a written answer are followed that the student would not write."""


@dataclass(frozen=True)
class RecordedConfig(DistillConfig):
    """Options of a repair from recorded answers."""

    mask: Mask = "old-correct"
    """What follows the recorded answers: what the old model got right, what the student flips (old right, student
    wrong; of a written answer the tokens that the student would not write), what the student or the new model gets
    wrong, or all. The rest follows the new model."""
    strength: float = 0.5
    """Share a of the recorded answer against the new model where a written answer is followed."""
    label_smoothing: float = 0.1
    """Share e of the target that is spread over all options where a record has no log-likelihoods."""

    KIND: ClassVar[str] = "input"
    SEARCH: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "mask": ("old-correct", "flips"),
        "strength": (0.5, 1.0),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mask not in MASKS:
            raise unknown_name("mask", self.mask, MASKS)
        if not 0 < self.strength <= 1 or not 0 <= self.label_smoothing < 1:
            raise UsageError("recorded needs strength in (0, 1] and label_smoothing in [0, 1)")
        if self.select == "loss":
            raise UsageError("recorded answers give no loss on validation: select an epoch by nfr, accuracy or last")


@repair("recorded", paper=PAPER)
def recorded(
    old: Any,
    new: ModelLike,
    task: str | Path | Task,
    *,
    out: str | Path,
    config: RecordedConfig | None = None,
    store: RunStore | None = None,
    progress: Progress = silent,
) -> Repair:
    """Repair from the old version's recorded answers alone.

    An interrupted call that is repeated goes on where it stopped.

    Args:
        old: the recorded answers, see `uphold.repair.recorded_answers.recorded_answers`: a folder of runs, a log of
            another tool; as `PATH#MODEL` where it holds several models.
        new: the version that is to replace it; its adapter is where the student starts.
        task: the questions that were answered, in its train, validation and test splits.
        out: the folder to write the adapter, the runs and the training state to.
        config: the options; those of the recipe that belongs to the task where None.
        store: where runs are kept.
        progress: called after every step.

    Raises:
        UsageError: a split without any recorded answer, answers of several models, or a new model that is clearly
            worse than the old one, unless `config.force`.
        UpholdError: see `uphold.core.errors` for what else can go wrong.
    """
    from uphold.core.storage import writable_folder
    from uphold.repair.distill import ArmSpec, trained_repair
    from uphold.repair.protocol import begin
    from uphold.repair.recipe import configure, recipe_for
    from uphold.repair.recorded_answers import recorded_answers
    from uphold.tasks.load import load_task

    chosen = load_task(task)
    options = config or configure(RecordedConfig(), "recorded", recipe_for(chosen))
    folder = writable_folder(Path(out))
    answers = recorded_answers(old, chosen, folder / "recorded", store=store, progress=progress)
    setting = begin(
        "recorded", PAPER, answers, new, answers.task, out=folder, force=options.force, store=store, progress=progress
    )
    train = taught_options if chosen.kind == "choice" else taught_texts
    objective, examples = train(setting, answers.records("train"), options)
    own = ArmSpec(REPAIRED, "recorded answers", lambda _: objective, examples=lambda _: examples)
    return trained_repair(setting, own, options)


def taught_options(
    setting: Setting, answers: Mapping[str, Record], config: RecordedConfig
) -> tuple[Objective, Sequence[Example]]:
    """Loss and examples of a choice task; `answers` by instance id."""
    from uphold.models.option_loss import OptionDistillation
    from uphold.repair.answer_training import option_rows, option_targets

    targets = option_targets(setting, answers, config.temperature, config.label_smoothing)
    return OptionDistillation(targets, config.mask, config.temperature), option_rows(setting)


def taught_texts(
    setting: Setting, answers: Mapping[str, Record], config: RecordedConfig
) -> tuple[Objective, Sequence[Example]]:
    """Loss and examples of a task with written answers; `answers` by instance id."""
    import torch

    from uphold.models.objective import Distillation, FrozenTeacher
    from uphold.repair.training import answer_rows
    from uphold.tasks.base import required_instances

    instances = required_instances(setting.task, "train")
    new_right: list[bool] = [True] * len(instances)
    if config.mask == "new-wrong":
        found = {record.id: record.correct for record in setting.run(setting.new, "train", "new on train").records()}
        new_right = [bool(found[instance.id]) for instance in instances]
    follow, texts = [], []
    for instance, right in zip(instances, new_right, strict=True):
        answer = answers.get(instance.id)
        followed = answer is not None and bool(answer.output.strip()) and _may_follow(config.mask, answer, right)
        follow.append(followed)
        texts.append(answer.output if answer is not None and followed else instance.target)
    rows = answer_rows(setting.new, setting.task, instances, [text.strip() for text in texts])
    rule = RecordedRule(torch.tensor(follow), config.strength, config.temperature, config.mask in WRONG_ONLY)
    teacher = FrozenTeacher(setting.new.model)
    return Distillation(rule, (teacher,), config.tokens), [(row,) for row in rows]


def _may_follow(mask: Mask, answer: Record, new_right: bool) -> bool:
    """Whether an instance's answer is followed at all."""
    match mask:
        case "flips" | "old-correct":
            return bool(answer.correct)
        case "new-wrong":
            return not new_right
        case _:
            return True


@dataclass(frozen=True)
class RecordedRule:
    """The loss of written answers; teacher 0 is the new model, the trained tokens are the recorded ones."""

    follow: torch.Tensor
    """Whether each instance's answer is followed, booleans by the instance's number."""
    strength: float = 0.5
    """A."""
    temperature: float = 2.0
    wrong_only: bool = False
    """Whether only tokens are followed that the student would not write."""
    whole_sequences = False

    def __call__(self, tokens: Tokens) -> Weights:
        """See `uphold.models.rules.Rule`."""
        chosen = self.follow.to(tokens.trained.instance.device)[tokens.trained.instance] & tokens.trained.is_answer
        if self.wrong_only:
            chosen = chosen & ~tokens.student.right
        share = self.strength * chosen.to(tokens.none.dtype)
        return Weights((Term("kl_new", ForwardKL(self.temperature), NEW, 1 - share),), share)
