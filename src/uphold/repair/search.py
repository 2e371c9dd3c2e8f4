"""Search: try repairs and their strengths within a budget, and ship the best one by validation.

    round 1:  every method with the options of its recipe, the cheapest kind first
    round 2:  around the best half of the methods: one option changed at a time, see `SEARCH` of their configs
    round 3+: around the best half of those, from the best options found so far, until nothing new is left

Each trial is an ordinary repair in a folder of its own. The choice is that of `uphold.repair.search_choice`, which
sees validation runs only; test runs are made for the report and looked at after the choice.
"""

from __future__ import annotations

import inspect
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uphold.core.errors import StorageError, UsageError, unknown_name
from uphold.core.hashing import sha256_of
from uphold.core.progress import Progress, silent
from uphold.core.storage import disk_errors, read_json, write_json
from uphold.repair.recipe import recipe_for
from uphold.repair.result import Arm, Repair, headline, load_repair
from uphold.repair.search_budget import Budget, OutOfTimeError
from uphold.repair.search_choice import Candidate, candidate, choose, ranked
from uphold.repair.search_notes import notes_on
from uphold.repair.search_plan import Proposal, first_proposal, kind_of, neighbours, searched_methods
from uphold.repair.search_result import TRIALS, Control, Measured, Search, SearchConfig, Skipped, Status, Trial
from uphold.repair.search_ship import has_controls, ship, train_controls, withdraw

if TYPE_CHECKING:
    from uphold.core.registry import Method
    from uphold.core.runs import RunStore
    from uphold.models.load import ModelLike
    from uphold.repair.protocol import Setting
    from uphold.tasks.base import Task

TRIAL_FILE = "trial.json"
_RAN_OUT = "the budget was spent; a larger one goes on where it stopped"


def search(
    old: ModelLike,
    new: ModelLike,
    task: str | Path | Task,
    *,
    out: str | Path,
    config: SearchConfig | None = None,
    recipe: str | Path | None = None,
    options: Mapping[str, Any] | None = None,
    store: RunStore | None = None,
    progress: Progress = silent,
    clock: Callable[[], float] = time.monotonic,
) -> Search:
    """Try repairs within a budget, choose one by validation, and leave it in `out` like any repair.

    A call that is repeated with the same `out` reads finished trials instead of repeating them, and goes on where an
    interrupted one stopped; with a larger budget it goes on where the smaller one ended.

    Args:
        old: the version that users have.
        new: the version that is to replace it.
        task: what to keep; trained on its train split, chosen on its validation split, reported on its test split.
        out: gets `trials/`, `search.json`, and of the chosen repair all that a repair has.
        config: the options of the search.
        recipe: a shipped recipe or a YAML file, for every method; the task's own, else the paper's, where None.
        options: values that win over the recipe, for every method that has such an option.
        store: where runs are kept.
        progress: called while models are trained and evaluated.
        clock: seconds that only grow; the budget is read off it.

    Raises:
        UsageError: an unknown method or option, the new model is clearly worse than the old one, no trial finished
            within the budget, all of them failed, `out` holds a search of other models or another task, or there are
            several processes, which would not agree on the time that is left.
        StorageError: the disk refused a write.
        UpholdError: see `uphold.core.errors` for what else can go wrong.
    """
    from uphold.models import processes
    from uphold.repair.protocol import begin
    from uphold.tasks.load import load_task

    if processes.current().count > 1:
        raise UsageError("a search runs in one process: start it without 'accelerate launch' or 'torchrun'")
    started, asked, chosen = clock(), load_task(task), config or SearchConfig()
    found = searched_methods(chosen.methods)
    _check_options(options or {}, found)
    proposals = [first_proposal(one, recipe or recipe_for(asked), options or {}, chosen.force) for one in found]
    setting = begin(
        "search", "", old, new, asked, out=out, force=chosen.force, store=store, progress=progress, one_tokenizer=False
    )
    work = _Search(setting, chosen, proposals, (old, new), Budget(chosen.seconds, chosen.trials, clock, started))
    work.run()
    return work.conclude()


def _check_options(options: Mapping[str, Any], found: Sequence[Method]) -> None:
    known = {entry.name for one in found if one.config is not None for entry in fields(one.config)}
    for name in options:
        if name not in known:
            raise unknown_name("option of the methods to try", name, sorted(known))


class _Search:
    def __init__(
        self,
        setting: Setting,
        config: SearchConfig,
        proposals: Sequence[Proposal],
        given: tuple[ModelLike, ModelLike],
        budget: Budget,
    ) -> None:
        self.setting, self.config, self.given, self.budget = setting, config, given, budget
        self.defaults = {one.method.name: one for one in proposals}
        self.models = setting.old, setting.new
        self.key = _key(setting)
        self.trials: dict[str, Trial] = {}
        self.tried: dict[str, Proposal] = {}
        self.skipped: dict[str, Skipped] = {}
        self.full = False
        """Whether the budget kept anything from being tried."""

    # -- rounds ----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Try the methods, then variations of the better ones, until the budget or the variations end."""
        self._round(list(self.defaults.values()))
        left = self._best()
        while left and not self.full:
            left = left[: -(-len(left) // 2)]
            if not self._round(list(self._variations(left))) and len(left) == 1:
                return
            left = [name for name in self._best() if name in left]
        if left:
            rest = f"variations of {', '.join(left)}"
            self.skipped.setdefault(rest, Skipped(rest, "the budget was spent before"))

    def _round(self, proposals: Sequence[Proposal]) -> int:
        """Try all that the budget allows; how many there were that had not been tried."""
        fresh = [one for one in proposals if one.name not in self.tried]
        for one in fresh:
            self._attempt(one)
        return len(fresh)

    def _best(self) -> list[str]:
        """The methods that may be chosen and have strengths to try, the best first."""
        order = [self.tried[one.name].method.name for one in ranked(self._candidates(), self.config.strict)]
        return [name for name in dict.fromkeys(order) if getattr(self.defaults[name].config, "SEARCH", None)]

    def _candidates(self) -> list[Candidate]:
        """All that may be chosen, on the validation split."""
        open_ = (trial for trial in self.trials.values() if self.config.pairs or not trial.paragon)
        return [trial.validation for trial in open_ if trial.validation is not None]

    def _variations(self, names: Sequence[str]) -> Iterator[Proposal]:
        """Neighbours of the best trial of each method, in turn."""
        order = [one.name for one in ranked(self._candidates(), self.config.strict)]
        around = []
        for name in names:
            best = next(one for one in order if self.tried[one].method.name == name)
            around.append(list(neighbours(self.tried[best], self.defaults[name])))
        for one in itertools.chain.from_iterable(itertools.zip_longest(*around)):
            if isinstance(one, Proposal):
                yield one
            elif one is not None:
                self.skipped.setdefault(one[0], Skipped(*one))

    # -- one trial -------------------------------------------------------------------------------------------------

    def _attempt(self, proposal: Proposal) -> None:
        self.tried[proposal.name] = proposal
        folder = self._folder(proposal)
        spent, trial = self._read(proposal, folder)
        self.budget.earlier += spent
        if trial is None:
            reason = self._refusal(proposal)
            if reason:
                self.full = True
                self.skipped[proposal.label] = Skipped(proposal.label, reason)
                return
            trial = self._try(proposal, folder, spent)
        self.trials[proposal.name] = trial
        if trial.status == "finished":
            self.budget.costs.add(proposal, trial.seconds)
        done = len(self.trials)
        self.setting.progress("search", done, max(done, len(self.tried)), f"{trial.label}: {_outcome(trial)}")

    def _folder(self, proposal: Proposal) -> Path:
        return self.setting.folder / TRIALS / proposal.name

    def _read(self, proposal: Proposal, folder: Path) -> tuple[float, Trial | None]:
        """Seconds already spent on a trial, and the trial itself where it need not be repeated."""
        if not (folder / TRIAL_FILE).is_file():
            return 0.0, None
        saved = read_json(folder / TRIAL_FILE)
        if saved["key"] != self.key:
            raise UsageError(
                f"{self.setting.folder} holds a search of other models or another task: choose another --out folder, "
                "or remove that one"
            )
        if saved["status"] == "unfinished":
            return float(saved["seconds"]), None
        repair = load_repair(folder) if saved["status"] == "finished" else None
        return float(saved["seconds"]), self._trial(proposal, saved["status"], saved["seconds"], saved["error"], repair)

    def _refusal(self, proposal: Proposal) -> str:
        """Why there is no budget left for a trial, the controls of what would now be chosen included."""
        best = choose(self._candidates(), self.config.strict)
        reserved = 0.0
        if best is not None and self.config.controls and has_controls(self.tried[best.name].config):
            reserved = 2 * self.trials[best.name].seconds
        return self.budget.refusal(proposal, len(self.trials), reserved)

    def _try(self, proposal: Proposal, folder: Path, spent: float) -> Trial:
        begun = self.budget.clock()
        repair: Repair | None = None
        status: Status = "unfinished"
        error = ""
        try:
            repair = self._call(proposal, folder)
            status = "finished"
        except OutOfTimeError:
            error = _RAN_OUT
            self.full = True
            self.skipped[proposal.label] = Skipped(proposal.label, error)
        except StorageError:
            raise
        except Exception as failure:  # noqa: BLE001 a method's failure, whatever it is, is one of the results
            status, error = "failed", " ".join(f"{type(failure).__name__}: {failure}".split())
        finally:
            seconds = spent + self.budget.clock() - begun
            values = {"key": self.key, "label": proposal.label, "status": status, "seconds": seconds, "error": error}
            write_json(folder / TRIAL_FILE, values)
        if repair is None:
            self._reload()
        return self._trial(proposal, status, seconds, error, repair)

    def _call(self, proposal: Proposal, folder: Path) -> Repair:
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        function = proposal.method.function
        progress = self.budget.watch(self.setting.progress, proposal.label)
        values = {"config": proposal.config, "store": self.setting.store, "progress": progress}
        known = inspect.signature(function).parameters
        own = {name: value for name, value in values.items() if name in known and (name != "config" or value)}
        made: Repair = function(*self.models, self.setting.task, out=folder, **own)
        return made

    def _reload(self) -> None:
        """Read the models anew: what a trial left in them when it failed must not reach the next one."""
        from uphold.models.load import load

        old, new = (
            load(given) if isinstance(given, str | Path) else loaded
            for given, loaded in zip(self.given, self.models, strict=True)
        )
        self.models = old, new

    def _trial(self, proposal: Proposal, status: Status, seconds: float, error: str, repair: Repair | None) -> Trial:
        options = proposal.config
        return Trial(
            name=proposal.name,
            label=proposal.label,
            method=proposal.method.name,
            kind=kind_of(proposal.method),
            config=asdict(options) if is_dataclass(options) and not isinstance(options, type) else {},
            status=status,
            seconds=seconds,
            error=error,
            form=repair.form if repair else "",
            validation=self._candidate(proposal.name, repair) if repair else None,
            test=Measured.of(headline(repair.repaired.comparison)) if repair else None,
        )

    def _candidate(self, name: str, repair: Repair) -> Candidate:
        runs = repair.validation.old, repair.validation.new, repair.repaired.validation.new
        return candidate(name, *runs, margin=self.config.margin)

    # -- the end ---------------------------------------------------------------------------------------------------

    def conclude(self) -> Search:
        """Choose, put the chosen repair in its place, and save the search."""
        if not any(trial.status == "finished" for trial in self.trials.values()):
            raise UsageError(self._nothing())
        best = choose(self._candidates(), self.config.strict)
        shipped = None if best is None else self._ship(self.trials[best.name])
        if shipped is None:
            withdraw(self.setting.folder)
        before = self.setting.before
        continuous = before.matrix is None
        result = Search(
            task=before.old.task,
            old=before.old.name,
            new=before.new.name,
            config=self.config,
            count=before.count,
            old_score=before["score_old" if continuous else "accuracy_old"],
            plain=Measured.of(headline(before)),
            trials=tuple(self.trials.values()),
            chosen=best.name if best else None,
            on_test=self._on_test(shipped) if shipped else None,
            controls=tuple(
                Control(arm.label, Measured.of(headline(arm.comparison)))
                for arm in (shipped.arms if shipped else ())
                if arm.control
            ),
            skipped=tuple(self.skipped.values()),
            seconds=self.budget.spent,
            continuous=continuous,
            folder=self.setting.folder,
        )
        result = replace(result, notes=tuple(notes_on(result)))
        result.save()
        return result

    def _nothing(self) -> str:
        failed = [trial for trial in self.trials.values() if trial.status == "failed"]
        if not failed:
            return "no trial finished within the budget: type the same command with a larger one to go on"
        reasons = dict.fromkeys(trial.error for trial in failed)
        named = "; ".join(
            f"{', '.join(trial.label for trial in failed if trial.error == reason)}: {reason}" for reason in reasons
        )
        return f"no trial finished, and {len(failed)} failed ({named}): mend that, or try other methods"

    def _on_test(self, repair: Repair) -> Any:
        comparison, arm = repair.before, repair.repaired.comparison
        return candidate("test", comparison.old, comparison.new, arm.new, self.config.margin).test

    def _ship(self, trial: Trial) -> Repair:
        """The chosen repair in its place, with controls where it is a trained one and there is time."""
        setting = replace(self.setting, old=self.models[0], new=self.models[1])
        config = self.tried[trial.name].config
        controls: tuple[Arm, ...] = ()
        if self.config.controls and has_controls(config):
            label = f"controls of {trial.label}"
            watched = self.budget.watch(setting.progress, label)
            try:
                controls = train_controls(setting, trial, config, watched)
            except OutOfTimeError:
                self.skipped[label] = Skipped(label, _RAN_OUT)
        return ship(setting, trial, len(self.trials), controls)


def _key(setting: Setting) -> str:
    """What decides the outcome of every trial, besides its method and options."""
    from uphold.models.fingerprint import nameless
    from uphold.tasks.base import SPLITS, task_fingerprint

    models = [nameless(one.fingerprint) for one in (setting.old, setting.new)]
    tasks = [nameless(task_fingerprint(setting.task, split)) for split in SPLITS]
    return sha256_of([models, tasks])


def _outcome(trial: Trial) -> str:
    one = trial.validation
    if one is None:
        return f"{trial.status}: {trial.error}"
    return f"validation NFR {one.plain_nfr:.2%} -> {one.nfr:.2%}, accuracy {one.plain_score:.2%} -> {one.score:.2%}"
