"""What every repair goes through, however it is made.

The plain update is measured, arms are made, each arm is measured against the OLD model on the same validation and
test splits, and all of it is saved in one form. How an arm is made is the method's own business. Of several processes
the first one evaluates and writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from uphold.core.errors import UsageError
from uphold.core.progress import Progress, silent
from uphold.core.runs import Run, RunStore
from uphold.core.storage import writable_folder, write_text
from uphold.measure.compare import compare
from uphold.measure.comparison import Comparison, compare_runs
from uphold.measure.evaluate import evaluate
from uphold.models.adapter import base_name
from uphold.models.load import Loaded, ModelLike, check_same_tokenizer, check_single, load
from uphold.models.processes import current
from uphold.models.shared import load_pair
from uphold.models.train import NFR_TOLERANCE
from uphold.repair.card import repair_card
from uphold.repair.out_folder import check_out_folder
from uphold.repair.recorded_answers import RecordedAnswers
from uphold.repair.result import Arm, Epoch, Form, Repair, headline
from uphold.tasks.base import Split, Task, required_instances, split_sizes

WORSE_MARGIN = 0.02
"""A new model whose validation accuracy is lower than the old one's by more than this is refused."""


@dataclass(frozen=True)
class Setting:
    """What a method starts from."""

    method: str
    """Registered name."""
    paper: str
    old: Loaded
    """In a repair from records a `RecordedAnswers` stands here: of a `Loaded` it has `name` and `fingerprint` only."""
    new: Loaded
    task: Task
    folder: Path
    """Gets everything that is made."""
    before: Comparison
    """The old model against the plain update, on the test split."""
    validation: Comparison
    """The same on the validation split: all that a method may choose by."""
    store: RunStore | None
    progress: Progress

    @cached_property
    def old_scores(self) -> Mapping[str, float]:
        """The old model's scores on the validation split by instance id; 0 where an answer could not be scored."""
        return {record.id: record.score or 0.0 for record in self.validation.old.records()}

    def run(self, model: ModelLike, split: Split, what: str) -> Run:
        """The run of a model on a split of the task; of several processes all must ask."""
        with current().first():
            return evaluate(model, self.task, split=split, store=self.store, progress=self.progress, what=what)

    def scores(self, model: ModelLike, split: Split, what: str) -> list[float]:
        """A model's scores on a split, in the order of the task's instances; 0 where one could not be scored."""
        found = {record.id: record.score or 0.0 for record in self.run(model, split, what).records()}
        return [found[instance.id] for instance in required_instances(self.task, split)]

    def arm(self, name: str, label: str, model: ModelLike, history: Sequence[Epoch] = (), control: bool = False) -> Arm:
        """Measure a model that a method has made.

        Args:
            name: `REPAIRED`, or the control's name.
            label: how a table calls it.
            model: what to measure.
            history: of its training, where it was trained.
            control: whether it is a control.
        """
        validated = self.run(model, "validation", f"{label} on validation")
        tested = self.run(model, "test", f"{label} on test")
        return Arm(
            name,
            label,
            compare_runs(self.before.old, tested, self.before.again, discover=False),
            compare_runs(self.validation.old, validated, discover=False),
            tuple(history),
            control,
        )


def begin(
    method: str,
    paper: str,
    old: ModelLike,
    new: ModelLike,
    task: Task,
    *,
    out: str | Path,
    force: bool = False,
    store: RunStore | None = None,
    progress: Progress = silent,
    one_tokenizer: bool = True,
) -> Setting:
    """Load both models and measure the plain update.

    Args:
        method: registered name.
        paper: its source.
        old: the version that users have, or what is left of it (`RecordedAnswers`).
        new: the version that is to replace it.
        task: gives train, validation and test instances.
        out: the folder of the repair.
        force: go on although the new model is worse than the old one.
        store: where runs are kept.
        progress: called while models are evaluated.
        one_tokenizer: whether the method needs both models to share one token-id map.

    Raises:
        TokenizerMismatchError: the models do not share a token-id map, and the method needs it.
        UsageError: the new model is clearly worse than the old one, unless `force`; or `out` holds what something else
            made.
    """
    check_out_folder(Path(out), method)
    folder = writable_folder(Path(out))
    recorded = isinstance(old, RecordedAnswers)
    frozen_old, frozen_new = (old, load(new)) if recorded else load_pair(old, new)
    for one in (frozen_new, *(() if recorded else (frozen_old,))):
        check_single(one)
    if one_tokenizer and not recorded:
        check_same_tokenizer(frozen_old, frozen_new)
    with current().first():
        before = compare(old.run("test") if recorded else frozen_old, frozen_new, task, store=store, progress=progress)
        asked: dict[str, Any] = {"split": "validation", "store": store, "progress": progress}
        validation = compare_runs(
            old.run("validation") if recorded else evaluate(frozen_old, task, what="old model on validation", **asked),
            evaluate(frozen_new, task, what="new model on validation", **asked),
            discover=False,
        )
    if not force:
        _check_gain(validation)
    return Setting(method, paper, frozen_old, frozen_new, task, folder, before, validation, store, progress)


def conclude(
    setting: Setting,
    arms: Sequence[Arm],
    config: Any,
    artifact: Path,
    form: Form = "adapter",
    notes: Sequence[str] = (),
) -> Repair:
    """Save the repair, with its card, to the setting's folder.

    Args:
        setting: what it started from.
        arms: the repair first, then its controls.
        config: the method's options, a dataclass.
        artifact: the folder with what is to be deployed.
        form: what that is.
        notes: remarks of the method.
    """
    repair = Repair(
        method=setting.method,
        paper=setting.paper,
        before=setting.before,
        validation=setting.validation,
        arms=tuple(arms),
        config=asdict(config),
        splits=split_sizes(setting.task),
        artifact=artifact,
        form=form,
        notes=(*setting.task.notes, *notes, *_doubts(setting, arms)),
    )

    def save() -> None:
        repair.save(setting.folder)
        write_text(artifact / "README.md", repair_card(repair, base_name(setting.new)))

    current().once(save)
    return repair


def _check_gain(validation: Comparison) -> None:
    old = validation["score_old" if validation.matrix is None else "accuracy_old"].value or 0.0
    new = headline(validation).score.value or 0.0
    if new < old - WORSE_MARGIN:
        raise UsageError(
            f"the new model is worse than the old one on validation ({new:.1%} against {old:.1%}): repairing would "
            "make it a copy of the old one; improve the update first, or go on with --force (force=True)"
        )


def _doubts(setting: Setting, arms: Sequence[Arm]) -> list[str]:
    """Warn of a repair that its own validation does not bear out."""
    score, nfr = (rate.value or 0.0 for rate in headline(setting.validation))
    notes = []
    for arm in arms:
        own_score, own_nfr = (rate.value or 0.0 for rate in headline(arm.validation))
        if not arm.control and (own_nfr >= nfr or own_score < score - NFR_TOLERANCE):
            notes.append(
                f"{arm.label} did not help on validation (NFR {nfr:.2%} -> {own_nfr:.2%}, accuracy "
                f"{score:.2%} -> {own_score:.2%}): ship the plain update, or try other options"
            )
    return notes
