"""Repair across vocabularies: old and new do not share a token-id map, so that texts are compared in place of tokens.

    choice:    the old model's log-likelihoods of the options are measured once; the rest is `repair recorded`:
               L = mean over instances of  m KL(p_old || q) + (1 - m) KL(p_new || q),  distributions over the options
    generate:  both tokenisations of prompt + answer are cut into segments where tokens of both end
               L = 1/n [ sum over segments with m = 1 of D(old, student)  +  sum over other tokens of KL(p_new || q) ]
               D compares the first token of a segment through the tokens that both vocabularies have, what is left as
               one event, and segments of several tokens by their probability as a whole (`uphold.models.aligned_loss`)

The masks m are MUSCLE's (arXiv:2407.09435) for instances and segments. Matched tokens and sorted rest: universal logit
distillation (Boizard et al. 2024, arXiv:2402.12030) as in GOLD (Patiño et al. 2025, in TRL). With one vocabulary the
loss of `generate` is MUSCLE's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from uphold.core.errors import UsageError, unknown_name
from uphold.core.progress import Progress, silent
from uphold.core.registry import repair
from uphold.repair.result import REPAIRED, Repair
from uphold.repair.training import DistillConfig

if TYPE_CHECKING:
    from uphold.core.runs import RunStore
    from uphold.models.aligned_objective import AlignedText
    from uphold.models.load import ModelLike
    from uphold.models.train import Example, Objective
    from uphold.repair.protocol import Setting
    from uphold.tasks.base import Task

Mask = Literal["flips", "student-wrong", "new-wrong", "old-correct", "old-only"]
MASKS: tuple[Mask, ...] = get_args(Mask)
Answers = Literal["gold", "old"]
PAPER = "arXiv:2402.12030"


@dataclass(frozen=True)
class CrossVocabularyConfig(DistillConfig):
    """Options of a repair across vocabularies."""

    mask: Mask = "student-wrong"
    """What follows the old model, instances of a choice and segments of a written answer: what the student gets wrong,
    what it flips (old right, student wrong), what the new model gets wrong, what the old model gets right, or all. The
    rest follows the new model."""
    unmatched: float = 0.0
    """How much the sorted probabilities of the tokens that only one vocabulary has count (w); of written answers."""
    top: int = 64
    """How many of these probabilities are compared one by one; the rest of them is compared as a sum."""
    answers: Answers = "gold"
    """The texts that are compared: the gold answers, or what the old model wrote (gold where it wrote nothing)."""

    KIND: ClassVar[str] = "input"
    SEARCH: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "mask": ("student-wrong", "old-correct"),
        "temperature": (1.0, 2.0),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mask not in MASKS:
            raise unknown_name("mask", self.mask, MASKS)
        if self.answers not in get_args(Answers):
            raise unknown_name("answers", self.answers, get_args(Answers))
        if self.unmatched < 0 or self.top < 1:
            raise UsageError("cross-vocabulary needs unmatched >= 0 and top >= 1")
        if self.select == "loss":
            raise UsageError("cross-vocabulary has no loss on validation: select an epoch by nfr, accuracy or last")


@repair("cross-vocabulary", paper=PAPER)
def cross_vocabulary(
    old: ModelLike,
    new: ModelLike,
    task: str | Path | Task,
    *,
    out: str | Path,
    config: CrossVocabularyConfig | None = None,
    store: RunStore | None = None,
    progress: Progress = silent,
) -> Repair:
    """Distil from an old model with another tokenizer, through the texts that both read.

    An interrupted call that is repeated goes on where it stopped.

    Args:
        old: the version that users have.
        new: the version that is to replace it; its adapter is where the student starts (a fresh LoRA where it has
            none). The two may have any tokenizers that know where in a text their tokens stand.
        task: what to keep; trained on its train split, checkpoints chosen on its validation split, measured once on
            its test split.
        out: the folder to write the adapter, the runs and the training state to.
        config: the options; those of the recipe that belongs to the task where None.
        store: where runs are kept.
        progress: called after every step.

    Raises:
        ModelError: a tokenizer does not say where its tokens stand.
        UsageError: the new model is clearly worse than the old one, unless `config.force`.
        UpholdError: see `uphold.core.errors` for what else can go wrong.
    """
    from uphold.repair.distill import ArmSpec, trained_repair
    from uphold.repair.protocol import begin
    from uphold.repair.recipe import configure, recipe_for
    from uphold.tasks.load import load_task

    chosen = load_task(task)
    options = config or configure(CrossVocabularyConfig(), "cross-vocabulary", recipe_for(chosen))
    setting = begin(
        "cross-vocabulary",
        PAPER,
        old,
        new,
        chosen,
        out=out,
        force=options.force,
        store=store,
        progress=progress,
        one_tokenizer=False,
    )
    train = taught_options if chosen.kind == "choice" else taught_texts
    objective, examples, notes = train(setting, options)
    own = ArmSpec(REPAIRED, "across vocabularies", lambda _: objective, examples=lambda _: examples)
    return trained_repair(setting, own, options, notes)


Taught = tuple["Objective", Sequence["Example"], Sequence[str]]
"""A loss, what it is trained on, and remarks."""


def taught_options(setting: Setting, config: CrossVocabularyConfig) -> Taught:
    """What a choice task is trained with: the old model's answers to the train split, measured once."""
    from uphold.models.option_loss import OptionDistillation
    from uphold.repair.answer_training import option_rows, option_targets

    answers = {record.id: record for record in setting.run(setting.old, "train", "old model on train").records()}
    targets = option_targets(setting, answers, config.temperature, 0.0)
    return OptionDistillation(targets, config.mask, config.temperature), option_rows(setting), ()


def taught_texts(setting: Setting, config: CrossVocabularyConfig) -> Taught:
    """What a task with written answers is trained with."""
    from uphold.models.aligned_loss import AcrossVocabularies, Vocabularies
    from uphold.models.aligned_objective import AlignedDistillation
    from uphold.models.alignment import same_tokens

    texts = aligned_texts(setting, config.answers)
    same = same_tokens(setting.new.tokenizer, setting.old.tokenizer)
    sizes = [int(one.model.config.get_text_config().vocab_size) for one in (setting.new, setting.old)]
    divergence = AcrossVocabularies(Vocabularies(same, *sizes), config.temperature, config.unmatched, config.top)
    objective = AlignedDistillation(texts, setting.old.model, setting.new.model, divergence, config.mask, config.tokens)
    segments = [one for text in texts for one in text.segments]
    single = sum(len(one.student) == len(one.teacher) == 1 for one in segments)
    note = (
        f"{len(same.student):,} tokens of {sizes[0]:,} (new) and {sizes[1]:,} (old) stand for the same text; of "
        f"{len(segments):,} segments of the training texts {single:,} are one token on both sides"
    )
    return objective, [(text.student.row,) for text in texts], (note,)


def aligned_texts(setting: Setting, answers: Answers) -> list[AlignedText]:
    """The training texts as both models read them, by the instance's number."""
    from uphold.models.aligned_objective import AlignedText
    from uphold.models.alignment import segments, tokenised
    from uphold.tasks.base import required_instances

    task = setting.task
    instances = required_instances(task, "train")
    said = {}
    if answers == "old":
        said = {
            record.id: record.output.strip() for record in setting.run(setting.old, "train", "old on train").records()
        }
    texts = []
    for number, instance in enumerate(instances):
        answer = task.delimiter + (said.get(instance.id) or instance.target)
        mine, theirs = (
            tokenised(one.tokenizer, instance.prompt, answer, number, ends=True) for one in (setting.new, setting.old)
        )
        texts.append(AlignedText(mine, theirs, segments(mine.spans, theirs.spans)))
    return texts
