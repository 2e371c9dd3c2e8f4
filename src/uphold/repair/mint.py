"""MINT: what an update got wrong that was right before, repaired by editing single neurons of the new model.

Gu et al., "Neuron Patching: Semantic-based Neuron-level Language Model Repair for Code Generation", arXiv:2312.05356.

    neuron (l, j)   column j of the feed-forward down-projection of layer l
    w <- (w + f p) / (1 + f)      p: what the right token means less what the wrong one does, scaled to a range of 1

Failures are the negative flips of the train split, with the gold answer as the right continuation. A guard set of
answers that both models have right on the validation split undoes every edit that costs more than it may.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from uphold.core.errors import EmptyError, UsageError
from uphold.core.progress import Progress, silent
from uphold.core.registry import repair
from uphold.models.neurons.config import NeuronConfig
from uphold.repair.result import Repair

if TYPE_CHECKING:
    from uphold.core.runs import RunStore
    from uphold.models.encode import Encoded
    from uphold.models.load import Loaded, ModelLike
    from uphold.models.neurons.config import Failure, Guard
    from uphold.models.neurons.report import NeuronReport
    from uphold.repair.protocol import Setting
    from uphold.tasks.base import Instance, Task

PAPER = "arXiv:2312.05356"
PATCH_FILE = "patch.safetensors"
REPORT_FILE = "neurons.json"
JOURNAL_FILE = "neurons.journal"


@dataclass(frozen=True)
class MintConfig(NeuronConfig):
    """Options of MINT as a repair of an update."""

    KIND: ClassVar[str] = "other"

    failures: int = 50
    """How many negative flips are repaired at most, the first of the train split. 0: all."""
    guard: int = 200
    """How many answers the guard set has at most, the first of the validation split. 0: all."""
    force: bool = False
    """Go on although the new model is worse than the old one on validation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.failures < 0 or self.guard < 0:
            raise UsageError(f"failures and guard must be 0 or more, not {self.failures} and {self.guard}")

    @property
    def neurons(self) -> NeuronConfig:
        """The options of the edits themselves."""
        return NeuronConfig(**{entry.name: getattr(self, entry.name) for entry in fields(NeuronConfig)})


@repair("mint", paper=PAPER)
def mint(
    old: ModelLike,
    new: ModelLike,
    task: str | Path | Task,
    *,
    out: str | Path,
    config: MintConfig | None = None,
    store: RunStore | None = None,
    progress: Progress = silent,
) -> Repair:
    """Edit a few neurons of the new model until it answers again what the old one had right.

    An interrupted call that is repeated goes on where it stopped.

    Args:
        old: the version that users have; it says which failures are regressions.
        new: the version that is to replace it; an adapter is merged into its weights first.
        task: failures come from its train split, the guard set from its validation split; the patched model is
            measured once on its test split.
        out: the folder to write to: `weights/`, the patched model; `patch.safetensors`, which makes it of the new one
            and comes off again; `neurons.json`, what happened to each failure.
        config: the options; those of the recipe that belongs to the task where None.
        store: where runs are kept.
        progress: called after every failure and while models are evaluated.

    Raises:
        EmptyError: the new model has nothing wrong on the train split that the old one has right.
        ModelError: the new model's feed-forward layers are of no kind that is known.
        UsageError: the new model is clearly worse, and `config.force` is not set.
        UpholdError: see `uphold.core.errors` for what else can go wrong.
    """
    from uphold.repair.protocol import begin, conclude
    from uphold.repair.recipe import configure, recipe_for
    from uphold.repair.result import REPAIRED
    from uphold.tasks.load import load_task

    chosen = load_task(task)
    options = config or configure(MintConfig(), "mint", recipe_for(chosen))
    setting = begin(
        "mint",
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
    key = _key(setting, options)
    folder = setting.folder / "weights"
    notes = _kept_notes(setting, key)
    if notes is None:
        notes = _make(setting, options, folder, key)
    arm = setting.arm(REPAIRED, "MINT", str(folder))
    return conclude(setting, [arm], options, folder, "weights", notes)


def regressions(setting: Setting) -> list[Instance]:
    """Instances of the train split that the old model has right, or better, and the new one wrong.

    Raises:
        EmptyError: there are none.
    """
    from uphold.measure.pairs import TIE
    from uphold.tasks.base import required_instances

    old = {record.id: record for record in setting.run(setting.old, "train", "old model on train").records()}
    new = {record.id: record for record in setting.run(setting.new, "train", "new model on train").records()}
    instances = required_instances(setting.task, "train")
    found = [
        one
        for one in instances
        if (new[one.id].score or 0.0) < (old[one.id].score or 0.0) - TIE and not new[one.id].correct
    ]
    if not found:
        raise EmptyError(
            f"the new model gets nothing wrong on the {len(instances)} train instances of '{setting.task.name}' that "
            "the old one has right: there is nothing to repair"
        )
    return found


def _make(setting: Setting, options: MintConfig, folder: Path, key: str) -> list[str]:
    """Repair, and save weights, patch and report; the notes for the repair."""
    from contextlib import nullcontext

    from uphold.core.storage import write_json
    from uphold.models.adapter import base_name, is_adapted
    from uphold.models.neurons.repair import repair_failures
    from uphold.models.patches.apply import apply
    from uphold.models.patches.file import save_patch
    from uphold.models.weights import merged, save_weights

    loaded = setting.new
    found = regressions(setting)
    failures = _failures(loaded, setting.task, found[: options.failures or None])
    guard = _guard(setting, options)
    if is_adapted(loaded):
        loaded = loaded._replace(model=merged(loaded.model), files=None)
    journal = setting.folder / JOURNAL_FILE
    patch, report = repair_failures(
        loaded, failures, options.neurons, guard=guard, journal=journal, progress=setting.progress
    )
    notes = _notes(report, len(found), guard is not None, is_adapted(setting.new))
    write_json(setting.folder / REPORT_FILE, report.to_dict())
    path = setting.folder / PATCH_FILE
    if patch is None:
        path.unlink(missing_ok=True)
    else:
        save_patch(patch, path)
    facts = {"method": "mint", "task": setting.task.name, "key": key, "notes": notes}
    with nullcontext() if patch is None else apply(loaded.model, patch):
        save_weights(loaded.model, loaded.tokenizer, folder, f"# MINT\n\nFor `{base_name(setting.new)}`.\n", facts)
    journal.unlink(missing_ok=True)
    return notes


def _failures(loaded: Loaded, task: Task, instances: Sequence[Instance]) -> list[Failure]:
    from uphold.models.neurons.config import Failure

    return [
        Failure(tuple(row.prompt), tuple(row.answer), name=instance.id)
        for instance, row in zip(instances, _rows(loaded, task, instances), strict=True)
    ]


def _guard(setting: Setting, options: MintConfig) -> Guard | None:
    """What both models have right on the validation split; None where that is nothing."""
    from uphold.models.neurons.config import Guard
    from uphold.tasks.base import required_instances

    right = {record.id for record in setting.validation.new.records() if record.correct}
    both = {record.id for record in setting.validation.old.records() if record.correct and record.id in right}
    kept = [one for one in required_instances(setting.task, "validation") if one.id in both]
    if not kept:
        return None
    return Guard(tuple(_rows(setting.new, setting.task, kept[: options.guard or None])))


def _rows(loaded: Loaded, task: Task, instances: Sequence[Instance]) -> list[Encoded]:
    """Prompts and gold answers as the task asks them; generated answers end with end-of-text."""
    from uphold.measure.answer import questions
    from uphold.models.encode import Encoder
    from uphold.repair.training import answer_rows

    if task.kind == "generate":
        return answer_rows(loaded, task, instances, [one.target for one in instances])
    asked = questions(task, instances)
    pairs = [question[one.options.index(one.target)] for question, one in zip(asked, instances, strict=True)]
    return Encoder(loaded.tokenizer).pairs(pairs)


def _notes(report: NeuronReport, found: int, guarded: bool, was_adapted: bool) -> list[str]:
    total = len(report.failures)
    counts = {what: report.count(what) for what in ("repaired", "failed", "vetoed", "stopped", "right")}
    neurons = f", by {report.median_neurons:g} neurons each (median)" if report.median_neurons is not None else ""
    notes = [
        f"{counts['repaired']} of {total} failures repaired{neurons}; {counts['failed']} could not be, "
        f"{counts['vetoed']} were undone for what they did to others or to the guard set, {counts['stopped']} were not "
        f"tried, {counts['right']} were right token by token"
    ]
    if found > total:
        notes.append(f"{found - total} more failures of the train split were left out: raise failures to repair them")
    if not guarded:
        notes.append("no answer of the validation split is right in both models: side effects were not watched")
    if was_adapted:
        notes.append(f"the new model's adapter was merged into its weights, and {PATCH_FILE} is for these")
    if not counts["repaired"]:
        notes.append("nothing was repaired: the artifact is the new model itself")
    return notes


def _key(setting: Setting, options: MintConfig) -> str:
    """Hash of everything that decides the edits."""
    from uphold.core.hashing import sha256_of
    from uphold.models.load import library_versions, numerics
    from uphold.tasks.base import task_fingerprint

    models = [
        {name: value for name, value in one.fingerprint.items() if name != "name"} for one in (setting.old, setting.new)
    ]
    tasks = [task_fingerprint(setting.task, split) for split in ("train", "validation")]
    return sha256_of([models, tasks, asdict(options), numerics(setting.new.model), library_versions()])


def _kept_notes(setting: Setting, key: str) -> list[str] | None:
    """The notes of an artifact that an earlier call made by the same options; None where there is none."""
    from uphold.core.storage import read_json
    from uphold.models.load import ADAPTER_FACTS

    path = setting.folder / "weights" / ADAPTER_FACTS
    facts = read_json(path) if path.is_file() else {}
    return list(facts["notes"]) if facts.get("key") == key else None
