"""One trainer for all repairs by distillation: a method is a rule, its teachers, and its options.

Every arm starts from the same copy of the new model, sees the same instances in the same order for the same
number of steps, chooses its epoch by the same rule, and is compared with the old model on the same test split.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from uphold.core.hashing import sha256_of
from uphold.core.progress import Progress, silent
from uphold.core.runs import RunStore
from uphold.models.adapter import adapted, base_name, save_adapter
from uphold.models.divergence import ForwardKL
from uphold.models.fingerprint import module_fingerprint, nameless
from uphold.models.load import ModelLike, fingerprint_of
from uphold.models.processes import current
from uphold.models.rules import Term, Tokens, Weights
from uphold.models.train import Example, Objective, decisive, train
from uphold.repair.adapt import epochs
from uphold.repair.protocol import Setting, begin, conclude
from uphold.repair.recipe import configure, recipe_for
from uphold.repair.result import REPAIRED, Arm, Repair
from uphold.repair.training import DistillConfig, Validation, training_rows
from uphold.tasks.base import Task, task_fingerprint
from uphold.tasks.load import load_task

if TYPE_CHECKING:
    from uphold.models.teacher_choice import Plan

Config = TypeVar("Config", bound=DistillConfig)


@dataclass(frozen=True)
class ArmSpec:
    """One arm to train."""

    name: str
    """`REPAIRED`, or the control's name."""
    label: str
    objective: Callable[[Setting], Objective]
    control: bool = False
    examples: Callable[[Setting], Sequence[Example]] | None = None
    """What is trained on; the gold answers of the train split where None."""


def distill(
    method: str,
    paper: str,
    label: str,
    old: ModelLike,
    new: ModelLike,
    task: str | Path | Task,
    *,
    out: str | Path,
    config: Config | None,
    default: Config,
    objective: Callable[[Setting, Config], Objective],
    examples: Callable[[Setting, Config], Sequence[Example]] | None = None,
    store: RunStore | None = None,
    progress: Progress = silent,
) -> Repair:
    """Repair by training: measure the plain update, train the method and its controls, measure each, save it all.

    An interrupted call that is repeated goes on where it stopped.

    Args:
        method: registered name; the recipe's section of this name gives the options where `config` is None.
        paper: its source.
        label: how tables call the method.
        old: the version that users have.
        new: the version that is to replace it.
        task: gives train, validation and test instances.
        out: gets `adapter/`, `controls/`, `training/`, `runs/`, `validation/`, `comparison.json` and `repair.json`.
        config: the options.
        default: the options before any recipe.
        objective: the method's loss.
        examples: what the method trains on; the gold answers of the train split where None.
        store: where runs are kept.
        progress: called while models are trained and evaluated.

    Raises:
        TokenizerMismatchError: the models do not share a token-id map.
        UsageError: the new model is clearly worse than the old one, unless `config.force`.
        UpholdError: see `uphold.core.errors` for what else can go wrong.
    """
    chosen = load_task(task)
    options = config or configure(default, method, recipe_for(chosen))
    setting = begin(method, paper, old, new, chosen, out=out, force=options.force, store=store, progress=progress)
    own = ArmSpec(
        REPAIRED,
        label,
        lambda where: objective(where, options),
        examples=None if examples is None else lambda where: examples(where, options),
    )
    return trained_repair(setting, own, options)


def trained_repair(setting: Setting, own: ArmSpec, config: DistillConfig, notes: Sequence[str] = ()) -> Repair:
    """Train a method's arm and its controls, measure each, and save it all.

    Args:
        setting: what the method starts from.
        own: the method's arm.
        config: its options.
        notes: its remarks.
    """
    specs = [own, *(control_arms(config) if config.controls else ())]
    arms = trained_arms(setting, specs, config)
    return conclude(setting, arms, config, setting.folder / "adapter", notes=notes)


def control_arms(config: DistillConfig) -> list[ArmSpec]:
    """What a method is to be told from: as much training on gold answers, with cross-entropy or the new teacher only.

    They start where the method with these options starts.
    """
    from uphold.models.objective import Distillation, FrozenTeacher, cross_entropy

    def gold_only(setting: Setting) -> Objective:
        return cross_entropy(config.tokens)

    def new_only(setting: Setting) -> Objective:
        return Distillation(OneTeacher(config.temperature), (FrozenTeacher(setting.new.model),), config.tokens)

    return [
        ArmSpec("control-ce", "control: cross-entropy only", gold_only, control=True),
        ArmSpec("control-new", "control: new teacher only", new_only, control=True),
    ]


def trained_arms(setting: Setting, specs: Sequence[ArmSpec], config: DistillConfig) -> list[Arm]:
    """Train arms one after the other; what was kept of their teachers goes when all of them are done."""
    arms = [_trained_arm(setting, spec, config) for spec in specs]
    current().once(lambda: shutil.rmtree(_caches(setting), ignore_errors=True))
    return arms


@dataclass(frozen=True)
class OneTeacher:
    """The rule KL(teacher || student) at temperature T for every token."""

    temperature: float
    whole_sequences = False

    def __call__(self, tokens: Tokens) -> Weights:
        """See `uphold.models.distillation.Rule`."""
        return Weights((Term("kl", ForwardKL(self.temperature), 0, tokens.none + 1),))


def _trained_arm(setting: Setting, spec: ArmSpec, config: DistillConfig) -> Arm:
    """Train one arm, or read it from the setting's folder when it is there, and measure it."""
    from uphold.models.objective import Distillation
    from uphold.models.sites.site import parse_site
    from uphold.models.sites.weights import train_only
    from uphold.models.teacher_choice import keep_teachers

    new, task, folder = setting.new, setting.task, setting.folder
    student = config.student(new)
    if config.sites:
        train_only(student, [parse_site(one) for one in config.sites])
    objective = spec.objective(setting)
    validation = Validation(task, new, config, objective, setting.old_scores)
    examples: Sequence[Example] = (
        [(row,) for row in training_rows(new, task, "train")] if spec.examples is None else spec.examples(setting)
    )
    place = folder / "adapter" if spec.name == REPAIRED else folder / "controls" / spec.name
    finished = (folder / "training" / spec.name / "done").is_dir()
    if isinstance(objective, Distillation) and not finished:
        plan = _plan(setting, config)
        rows = [row for example in examples for row in example]
        keep_teachers(objective, rows, plan, lambda model: _identity(setting, model), setting.progress)
    history = train(
        student,
        examples,
        objective,
        config,
        lambda epoch: validation.measure(student),
        folder / "training" / spec.name,
        key=_key(setting, spec, config),
        what=spec.label,
        progress=setting.progress,
    )
    facts = {"method": setting.method, "arm": spec.name, "task": task.name, "config": asdict(config)}
    card = f"# {spec.label}\n\nAdapter for `{base_name(new)}`.\n"
    current().once(lambda: save_adapter(student, new, place, card, facts))
    made = adapted(student, new, place, f"{base_name(new)}+{place}")
    return setting.arm(spec.name, spec.label, made, epochs(history), spec.control)


def _caches(setting: Setting) -> Path:
    """Where teachers are kept until the repair is done; arms with the same teacher share what is kept of it."""
    return setting.folder / "training" / "teachers"


def _plan(setting: Setting, config: DistillConfig) -> Plan:
    from uphold.models.teacher_cache import CacheSpec
    from uphold.models.teacher_choice import Plan

    spec = CacheSpec(config.cache_top, (1.0, config.temperature), config.tokens, config.micro_batch)
    return Plan(config.teacher_cache, spec, config.epochs, _caches(setting))


def _identity(setting: Setting, model: Any) -> str:
    """The hash of what decides what a teacher says."""
    for loaded in (setting.new, setting.old):
        if getattr(loaded, "model", None) is model:
            return sha256_of(nameless(fingerprint_of(loaded)))
    return str(module_fingerprint(model, "")["weights"])


def _key(setting: Setting, spec: ArmSpec, config: DistillConfig) -> str:
    """What decides the outcome of a training."""
    models = [nameless(one.fingerprint) for one in (setting.old, setting.new)]
    tasks = [task_fingerprint(setting.task, split) for split in ("train", "validation")]
    return sha256_of([setting.method, spec.name, models, tasks, decisive(config)])
