"""Repair by interpolating weights: what BCWI and its variants share.

Any mixture of an old and a new model is searched in the same way: weights for each alpha of a grid are written into
one copy of the model, which answers the validation split; the chosen one is saved and measured on the test split.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeVar, get_args

from uphold.core.errors import UsageError, unknown_name

if TYPE_CHECKING:
    from uphold.core.progress import Progress
    from uphold.core.runs import RunStore
    from uphold.models.load import Loaded, ModelLike
    from uphold.repair.protocol import Setting
    from uphold.repair.result import Epoch, Form, Repair
    from uphold.tasks.base import Task

C = TypeVar("C", bound="InterpolationConfig")
Choose = Literal["largest", "nfr"]
SEARCH_FILE = "interpolation.json"
_TIE = 1e-9
"""Validation accuracies that differ by less are equal."""


@dataclass(frozen=True)
class InterpolationConfig:
    """Options that every repair by interpolation has."""

    KIND: ClassVar[str] = "weights"
    SEARCH: ClassVar[Mapping[str, tuple[Any, ...]]] = {"choose": ("nfr", "largest")}

    old_share: float | None = None
    """The paper's alpha, the share of the old model, in [0, 1); None: chosen on validation from a grid."""
    choose: Choose = "nfr"
    """Which alpha of the grid is kept, by validation: the one with the lowest NFR among those about as accurate as the
    new model (as epochs are chosen), or the largest that is not less accurate than it."""
    step: float = 0.1
    """Distance between the grid's values."""
    force: bool = False
    """Go on although the new model is worse than the old one on validation."""

    def __post_init__(self) -> None:
        if self.old_share is not None and not 0 <= self.old_share < 1:
            hint = ": 1 is the old model itself; keep that one, or choose less" if self.old_share == 1 else ""
            raise UsageError(f"old_share must be in [0, 1), not {self.old_share:g}{hint}")
        if not 0 < self.step <= 0.5:
            raise UsageError(f"step must be in (0, 0.5], not {self.step}")
        if self.choose not in get_args(Choose):
            raise unknown_name("choose", self.choose, get_args(Choose))

    @property
    def grid(self) -> tuple[float, ...]:
        """The values that are tried, from 0 to below 1."""
        found = (round(index * self.step, 9) for index in range(int(1 / self.step) + 1))
        return tuple(alpha for alpha in found if alpha < 1)

    @property
    def models(self) -> int:
        """How many new models are averaged; alpha 0 is the new model itself where it is one."""
        return 1


@dataclass(frozen=True)
class Point:
    """One alpha and what it gives on the validation split."""

    alpha: float
    accuracy: float
    """Accuracy, or the mean score."""
    nfr: float


class Mixture(Protocol):
    """An old and a new model as one, with a share of each."""

    model: Any
    """Carries the weights of the alpha that was set last."""

    @property
    def form(self) -> Form:
        """What is saved of it."""
        ...

    @property
    def notes(self) -> Sequence[str]:
        """What its user should know."""
        ...

    def set(self, alpha: float) -> None:
        """Write the weights of a share `alpha` of the old model."""
        ...


def interpolate(
    method: str,
    paper: str,
    label: str,
    old: ModelLike,
    new: ModelLike,
    task: str | Path | Task,
    *,
    out: str | Path,
    config: C | None,
    default: C,
    mixture: Callable[[Setting, C], Mixture],
    contents: Callable[[Setting, C], Any],
    store: RunStore | None,
    progress: Progress,
) -> Repair:
    """Repair by interpolation: measure the plain update, choose alpha on validation, save and measure the mixture.

    What was searched before is read from `interpolation.json`, and an artifact that is there already is not made again.

    Args:
        method: registered name; the recipe's section of this name gives the options where `config` is None.
        paper: its source.
        label: how tables call the method; `{OPTION}` stands for the value of that option.
        old: the version that users have.
        new: the version that is to replace it.
        task: gives validation and test instances, and what a mixture may need of its train split.
        out: gets `adapter/` or `weights/`, `interpolation.json`, `runs/`, `validation/`, `comparison.json` and
            `repair.json`.
        config: the options.
        default: the options before any recipe.
        mixture: makes the mixture; called only where a weight is needed.
        contents: what decides its weights beside models, task and alpha, as plain JSON.
        store: where runs are kept.
        progress: called while models are evaluated.

    Raises:
        TokenizerMismatchError: the models do not share a token-id map.
        UsageError: they are of two architectures, or the new one is clearly worse and `config.force` is not set.
        UpholdError: see `uphold.core.errors` for what else can go wrong.
    """
    from uphold.repair.protocol import begin, conclude
    from uphold.repair.recipe import configure, recipe_for
    from uphold.repair.result import REPAIRED
    from uphold.tasks.load import load_task

    chosen = load_task(task)
    options = config or configure(default, method, recipe_for(chosen))
    setting = begin(
        method, paper, *_alike(old, new), chosen, out=out, force=options.force, store=store, progress=progress
    )
    named = label.format_map(asdict(options))
    made_once = cache(lambda: mixture(setting, options))
    search = _Search(setting, named, options, made_once, contents(setting, options))
    alpha, points = options.old_share, list[Point]()
    if alpha is None:
        points = search.points()
        alpha = choose_alpha(points, _new_point(setting).accuracy, options)
    artifact, form, made, notes = search.artifact(alpha)
    arm = setting.arm(REPAIRED, f"{named}, alpha {alpha:g}", made, _history(points, alpha))
    return conclude(setting, [arm], options, artifact, form, notes)


def _alike(old: ModelLike, new: ModelLike) -> tuple[Loaded, Loaded]:
    """Both models loaded, and found to have the same tokens and shapes before anything is evaluated."""
    from uphold.models.load import check_same_tokenizer
    from uphold.models.shared import load_pair
    from uphold.models.weights import check_same_shapes

    pair = load_pair(old, new)
    check_same_tokenizer(*pair)
    check_same_shapes(*pair)
    return pair


def choose_alpha(points: Sequence[Point], new_accuracy: float, config: InterpolationConfig) -> float:
    """The alpha that `config.choose` asks for.

    Where no point is accurate enough it is the most accurate one; of equals, the larger alpha for `largest` and the
    smaller one for `nfr`.

    Args:
        points: what was measured on validation.
        new_accuracy: that of the plain update.
        config: says how to choose.
    """
    from uphold.models.train import NFR_TOLERANCE

    floor = new_accuracy - (NFR_TOLERANCE if config.choose == "nfr" else 0) - _TIE
    accurate = [point for point in points if point.accuracy >= floor]
    if not accurate:
        return max(points, key=lambda point: (point.accuracy, point.alpha)).alpha
    if config.choose == "largest":
        return max(point.alpha for point in accurate)
    return min(accurate, key=lambda point: (point.nfr, -point.accuracy, point.alpha)).alpha


@dataclass(frozen=True)
class _Search:
    """Makes points and the artifact, and reads them where they are there already."""

    setting: Setting
    label: str
    config: InterpolationConfig
    mixture: Callable[[], Mixture]
    contents: Any

    @property
    def zero_is_new(self) -> bool:
        """Whether alpha 0 is the new model itself."""
        return self.config.models == 1

    @property
    def key(self) -> str:
        """Hash of everything but alpha that decides the mixture's weights and points."""
        from uphold.core.hashing import sha256_of
        from uphold.models.fingerprint import nameless
        from uphold.models.load import library_versions, numerics
        from uphold.tasks.base import task_fingerprint

        setting = self.setting
        models = [nameless(model.fingerprint) for model in (setting.old, setting.new)]
        tasks = [task_fingerprint(setting.task, split) for split in ("train", "validation")]
        return sha256_of(
            [setting.method, models, tasks, self.contents, numerics(setting.new.model), library_versions()]
        )

    def points(self) -> list[Point]:
        """The grid, measured on the validation split."""
        from uphold.core.storage import read_json, write_json

        path = self.setting.folder / SEARCH_FILE
        saved = read_json(path) if path.is_file() else {}
        known = {entry["alpha"]: Point(**entry) for entry in saved["points"]} if saved.get("key") == self.key else {}
        grid = self.config.grid
        for done, alpha in enumerate(grid, start=1):
            if alpha not in known:
                known[alpha] = _new_point(self.setting) if self.zero_is_new and alpha == 0 else self._measured(alpha)
                entries = [asdict(point) for _, point in sorted(known.items())]
                write_json(path, {"key": self.key, "points": entries})
            note = f"alpha {alpha:g}: accuracy {known[alpha].accuracy:.1%}, NFR {known[alpha].nfr:.1%}"
            self.setting.progress(self.label, done, len(grid), note)
        return [known[alpha] for alpha in grid]

    def artifact(self, alpha: float) -> tuple[Path, Form, ModelLike, Sequence[str]]:
        """Folder, form, model and notes of what is to be deployed."""
        from uphold.core.hashing import sha256_of
        from uphold.models.adapter import base_name

        setting = self.setting
        key = sha256_of([self.key, alpha])
        places: dict[Form, Path] = {"adapter": setting.folder / "adapter", "weights": setting.folder / "weights"}
        for form, folder in places.items():
            facts = _facts(folder)
            if facts.get("key") == key and (form == "weights" or setting.new.files is not None):
                name = str(folder) if form == "weights" else f"{base_name(setting.new)}+{folder}"
                return folder, form, name, facts["notes"]
        return self._save(alpha, key, places)

    def _measured(self, alpha: float) -> Point:
        from uphold.measure.answer import answer
        from uphold.measure.pairs import TIE
        from uphold.models.engine import LocalEngine
        from uphold.repair.training import mean_score
        from uphold.tasks.base import required_instances

        setting, mixture = self.setting, self.mixture()
        mixture.set(alpha)
        engine = LocalEngine(setting.new._replace(model=mixture.model))
        records = answer(engine, setting.task, required_instances(setting.task, "validation"))
        worse = sum((record.score or 0.0) < setting.old_scores[record.id] - TIE for record in records)
        return Point(alpha, mean_score(records), worse / len(records))

    def _save(self, alpha: float, key: str, places: Mapping[Form, Path]) -> tuple[Path, Form, ModelLike, Sequence[str]]:
        from uphold.models.adapter import adapted, base_name, is_adapted, save_adapter
        from uphold.models.weights import save_weights

        setting = self.setting
        form: Form
        notes: Sequence[str]
        if alpha == 0 and self.zero_is_new:
            model: Any = setting.new.model
            form = "adapter" if is_adapted(setting.new) else "weights"
            notes = ("alpha 0 is the new model itself: no share of the old one was better on validation",)
            if self.config.old_share is not None:
                notes = ("alpha 0 is the new model itself",)
        else:
            mixture = self.mixture()
            mixture.set(alpha)
            model, form, notes = mixture.model, mixture.form, mixture.notes
        facts = {"method": setting.method, "task": setting.task.name, "alpha": alpha, "key": key, "notes": list(notes)}
        card = f"# {self.label}, alpha {alpha:g}\n\nFor `{base_name(setting.new)}`.\n"
        folder = places[form]
        for other in places.values():
            if other != folder and _facts(other).get("method") == setting.method:
                shutil.rmtree(other)
        if form == "weights":
            save_weights(model, setting.new.tokenizer, folder, card, facts)
            return folder, form, str(folder), notes
        save_adapter(model, setting.new, folder, card, facts)
        name = f"{base_name(setting.new)}+{folder}"
        made = name if setting.new.files is not None else adapted(model, setting.new, folder, name)
        return folder, form, made, notes


def _history(points: Sequence[Point], alpha: float) -> list[Epoch]:
    from uphold.repair.result import Epoch

    return [
        Epoch(number, {"alpha": one.alpha}, {"accuracy": one.accuracy, "nfr": one.nfr}, chosen=one.alpha == alpha)
        for number, one in enumerate(points)
    ]


def _facts(folder: Path) -> dict[str, Any]:
    """What the side file of an artifact says; nothing where there is none."""
    from uphold.core.storage import read_json
    from uphold.models.load import ADAPTER_FACTS

    path = folder / ADAPTER_FACTS
    return dict(read_json(path)) if path.is_file() else {}


def _new_point(setting: Setting) -> Point:
    """The plain update on validation."""
    from uphold.repair.result import headline
    from uphold.repair.training import mean_score

    nfr = headline(setting.validation).nfr.value
    assert nfr is not None
    return Point(0.0, mean_score(list(setting.validation.new.records())), nfr)
