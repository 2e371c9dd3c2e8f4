"""Which strength to merge with: every candidate is merged, and asked the validation split only.

Chosen is the candidate with the fewest negative flips against a reference (what users have), of those at most half a
point less accurate than the most accurate one; of equals the more accurate, then the first. The test split is looked at
by whoever measures the chosen merge, after the choice.

A candidate is given up early only where nothing that it may still answer could make it the chosen one. The choice is
therefore the same as if all had answered everything.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from uphold.core.errors import UsageError, unknown_name
from uphold.core.hashing import sha256_of
from uphold.core.progress import Progress, silent
from uphold.core.runs import Run, RunStore
from uphold.core.storage import read_json, write_json
from uphold.measure.evaluate import Tally, evaluate_all
from uphold.measure.executors import LocalExecutor
from uphold.measure.flips import flip_matrix
from uphold.measure.jobs import Batching, Job
from uphold.measure.pairs import join
from uphold.merge.engine.execute import InputHashes, facts_of
from uphold.merge.engine.output import FACTS
from uphold.merge.engine.parents import parents_of
from uphold.merge.engine.recipe import Recipe, load_recipe
from uphold.merge.engine.run import Merge, check_folder, merge, method_of, prepared
from uphold.merge.engine.search_choice import Scores, Trial, choose, hopeless
from uphold.merge.engine.search_result import Search
from uphold.merge.engine.settings import typed
from uphold.merge.engine.synergy import asked_on
from uphold.merge.protocol import MergeMethod
from uphold.models.checkpoint_writer import SHARD_SIZE
from uphold.models.fingerprint import nameless
from uphold.models.load import fingerprint_of
from uphold.tasks.base import Instance, Task, subset, task_fingerprint

if TYPE_CHECKING:
    from uphold.measure.executors import Executor

MOST = 64
"""Candidates of one search."""
BLOCKS, LEAST = 8, 50
"""Into how many blocks the validation split is cut at most, and how many instances a block has at least: after each of
them a candidate may be given up."""
_STATE = "trials.json"
Grid = Mapping[str, Sequence[Any]]
"""Values to try by parameter, or by `parameter.NUMBER` for the recipe's model of that number, from 1."""


class Searched(NamedTuple):
    """The merge that was chosen, and how."""

    merge: Merge
    search: Search


def search(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    grid: Grid,
    tasks: Sequence[str | Path | Task],
    *,
    out: str | Path,
    reference: str | Path | None = None,
    threads: int | None = None,
    shard_size: int = SHARD_SIZE,
    diagnostics: bool = False,
    force: bool = False,
    store: RunStore | None = None,
    batching: Batching | None = None,
    seed: int = 0,
    executor: Executor | None = None,
    progress: Progress = silent,
    tally: Tally | None = None,
) -> Searched:
    """Try all combinations of some parameters' values, and merge with the best by validation.

    One candidate at a time is merged into a hidden folder beside `out`, and removed when it is scored. A repeated call
    goes on where an interrupted one stopped, and finds what is finished.

    Args:
        recipe: see `merge`; what it says of a searched parameter is replaced.
        grid: the values to try.
        tasks: what to ask; with several, means over the tasks count.
        out: the folder for the chosen merge.
        reference: the model whose right answers are to stay right; the recipe's first parent by default.
        threads: see `merge`, as for `shard_size`, `diagnostics` and `force`.
        shard_size: bytes in one file of weights.
        diagnostics: of the chosen merge.
        force: go on with models that do not belong together.
        store: where runs are kept.
        batching: how instances share forward passes.
        seed: of sampled decoding.
        executor: who evaluates.
        progress: called while candidates are merged and asked.
        tally: where instances, tokens and time are added up.

    Raises:
        UsageError: a parameter that the method does not have, or more than `MOST` candidates.
        DataError: a value is of the wrong type or out of range.
        EmptyError: a task has no validation instances.
        UpholdError: see `merge` and `uphold.measure.evaluate.evaluate`.
    """
    loaded, folder = load_recipe(recipe), Path(out)
    candidates = candidates_of(loaded, grid)
    asked = asked_on(tasks, "validation", progress)
    who = str(reference) if reference is not None else parents_of(loaded).parents[0]
    hashes = InputHashes()
    with prepared(candidates[0][1], force) as (_, inputs):
        check_folder(folder, inputs)
        facts = facts_of(inputs, hashes)
    batches = batching or Batching()
    about = [task_fingerprint(task, "validation") for task in asked]
    context = sha256_of([version("uphold"), facts, about, nameless(fingerprint_of(who)), seed, batches.tokens])
    key = sha256_of([context, [one.to_dict() for _, one in candidates]])
    found = _finished(folder, key)
    how: dict[str, Any] = {"threads": threads, "shard_size": shard_size, "force": force, "hashes": hashes}
    scratch = folder.resolve().parent / f".{folder.resolve().name}.search"
    if found is None:
        work = _Search(candidates, _Asking(asked, who, batches, seed, store, executor, tally), scratch, how, progress)
        trials = work.run(context, key)
        found = Search(key, tuple(task.name for task in asked), who, work.asking.total, tuple(trials), choose(trials))
    chosen = candidates[found.chosen][1]
    made = merge(chosen, out=folder, diagnostics=diagnostics, search=found.to_dict(), progress=progress, **how)
    shutil.rmtree(scratch, ignore_errors=True)
    return Searched(made, found)


def candidates_of(recipe: Recipe, grid: Grid) -> list[tuple[dict[str, Any], Recipe]]:
    """Every combination of values, with the recipe that has them.

    Raises:
        UsageError: a parameter that the method does not have, or too many candidates.
        DataError: a value is of the wrong type or out of range.
    """
    method = method_of(recipe.merge_method)
    if not grid:
        raise UsageError("a search needs a parameter and its values, such as t=0.3,0.5,0.7")
    values = {name: _values(recipe, method, name, entries) for name, entries in grid.items()}
    combinations = [dict(zip(values, one, strict=True)) for one in itertools.product(*values.values())]
    if len(combinations) > MOST:
        raise UsageError(f"the search has {len(combinations):,} candidates; at most {MOST}: name fewer values")
    return [(one, _with_values(recipe, one)) for one in combinations]


def _values(recipe: Recipe, method: MergeMethod, key: str, entries: Sequence[Any]) -> list[Any]:
    name, dot, number = key.partition(".")
    known = {parameter.name: parameter for parameter in method.parameters}
    if name not in known:
        raise unknown_name(f"parameter of '{recipe.merge_method}'", name, known)
    if not entries:
        raise UsageError(f"the search has no values for '{key}': write such as {key}=0.3,0.5,0.7")
    if dot and not known[name].per_model:
        raise UsageError(f"'{name}' is one for all models of '{recipe.merge_method}': search it as {name}=VALUE,...")
    if dot and not recipe.models:
        raise UsageError(f"'{key}' names a model by its number, which needs a recipe with 'models'")
    if dot and (not number.isdecimal() or not 1 <= int(number) <= len(recipe.models)):
        raise UsageError(f"'{key}': expected {name}.NUMBER with the number of a model, 1 to {len(recipe.models)}")
    return list(dict.fromkeys(typed(known[name], value, "of the search") for value in entries))


def _with_values(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    content = recipe.to_dict()
    for key in sorted(values, key=lambda key: "." in key):
        name, _, number = key.partition(".")
        if number:
            content["models"][int(number) - 1].setdefault("parameters", {})[name] = values[key]
        else:
            _remove(content, name)
            content.setdefault("parameters", {})[name] = values[key]
    return load_recipe(content)


def _remove(content: Any, name: str) -> None:
    """Forget what a recipe says of a parameter, wherever it does."""
    if isinstance(content, dict):
        parameters = content.get("parameters")
        if isinstance(parameters, dict):
            parameters.pop(name, None)
    for value in content.values() if isinstance(content, dict) else content if isinstance(content, list) else ():
        _remove(value, name)


def _finished(folder: Path, key: str) -> Search | None:
    path = folder / FACTS
    facts = read_json(path) if path.is_file() else None
    saved = facts.get("search") if isinstance(facts, dict) else None
    return Search.from_dict(saved) if isinstance(saved, dict) and saved.get("key") == key else None


class _Asking:
    """The validation splits of the tasks, in blocks, and the reference's answers to them."""

    def __init__(
        self,
        tasks: Sequence[Task],
        reference: str,
        batching: Batching,
        seed: int,
        store: RunStore | None,
        executor: Executor | None,
        tally: Tally | None,
    ) -> None:
        self.tasks, self.reference, self.batching, self.seed = tasks, reference, batching, seed
        # One executor for all: it keeps the model of the last block.
        self.how: dict[str, Any] = {"store": store, "executor": executor or LocalExecutor(), "tally": tally}
        # Ids are hashes of content: in their order, instances are in no order of their own.
        ordered = [sorted(task.instances("validation"), key=lambda instance: instance.id) for task in tasks]
        count = min(BLOCKS, max(1, max(map(len, ordered)) // LEAST))
        self.blocks: list[list[tuple[int, list[Instance]]]] = [
            [(index, part) for index, one in enumerate(ordered) if (part := one[number::count])]
            for number in range(count)
        ]
        self.sizes = [len(one) for one in ordered]
        self.total = sum(self.sizes)
        self._before: list[list[Run]] | None = None

    def before(self, progress: Progress) -> list[list[Run]]:
        """The reference's runs by block."""
        if self._before is None:
            jobs = [self._jobs(self.reference, number, self.reference) for number in range(len(self.blocks))]
            flat = [job for part in jobs for job in part]
            made = iter(evaluate_all(flat, progress=_summed(progress, self.reference, 0, self.total), **self.how))
            self._before = [[next(made) for _ in part] for part in jobs]
        return self._before

    def ask(self, model: str, number: int, label: str, scores: Scores, progress: Progress) -> Scores:
        """The scores with one more block."""
        before = self.before(progress)[number]
        jobs = self._jobs(model, number, label)
        watch = _summed(progress, label, scores.asked, self.total)
        for (index, part), old, new in zip(
            self.blocks[number], before, evaluate_all(jobs, progress=watch, **self.how), strict=True
        ):
            pairs = join(old, new)
            matrix = flip_matrix(pairs)
            right, falls = pairs.moments["new"].mean * len(pairs), pairs.moments["loss"].n
            if matrix is not None:
                right, falls = float(matrix.both_right + matrix.positive_flips), matrix.negative_flips
            scores = scores.plus(index, len(part), len(pairs), right, falls)
        return scores

    def _jobs(self, model: str, number: int, label: str) -> list[Job]:
        return [
            Job(model, subset(self.tasks[index], "validation", part), "validation", self.batching, self.seed, label)
            for index, part in self.blocks[number]
        ]


class _Search:
    def __init__(
        self,
        candidates: Sequence[tuple[dict[str, Any], Recipe]],
        asking: _Asking,
        scratch: Path,
        how: dict[str, Any],
        progress: Progress,
    ) -> None:
        self.candidates, self.asking, self.scratch = candidates, asking, scratch
        self.how, self.progress = how, progress

    def run(self, context: str, key: str) -> list[Trial]:
        """Score every candidate, or find that it was scored; what is finished is written down at once."""
        known = self._read(context, key)
        trials: list[Trial] = []
        for number, (values, recipe) in enumerate(self.candidates):
            name = sha256_of(recipe.to_dict())
            if name in known:
                trial = Trial.from_dict(known[name])
            else:
                trial = self._try(number, values, recipe, trials)
                known[name] = trial.to_dict()
                write_json(self.scratch / _STATE, {"context": context, "key": key, "trials": known})
            trials.append(trial)
            self.progress("search", number + 1, len(self.candidates), str(trial))
        return trials

    def _read(self, context: str, key: str) -> dict[str, Any]:
        path = self.scratch / _STATE
        saved = read_json(path) if path.is_file() else {}
        if saved.get("context") != context:
            shutil.rmtree(self.scratch, ignore_errors=True)
            return {}
        # Among other candidates, one that was given up might have been chosen.
        same = saved["key"] == key
        return {name: one for name, one in saved["trials"].items() if same or not one["stopped"]}

    def _try(self, number: int, values: dict[str, Any], recipe: Recipe, others: Sequence[Trial]) -> Trial:
        label = f"candidate {number + 1}/{len(self.candidates)}"
        folder = self.scratch / f"candidate-{number + 1}"
        merge(recipe, out=folder, progress=_called(self.progress, f"{label}: merging"), **self.how)
        scores, stopped = Scores.none(self.asking.sizes), ""
        for block in range(len(self.asking.blocks)):
            scores = self.asking.ask(str(folder), block, label, scores, self.progress)
            stopped = hopeless(scores, others) if scores.left else ""
            if stopped:
                break
        shutil.rmtree(folder, ignore_errors=True)
        return Trial(values, scores.asked, scores.score, scores.nfr, stopped)


def _called(progress: Progress, name: str) -> Progress:
    def renamed(what: str, done: int, total: int, note: str = "") -> None:
        progress(name, done, total, note)

    return renamed


def _summed(progress: Progress, label: str, before: int, whole: int) -> Progress:
    """One line for all jobs of a model: each of them counts from where the one before it ended."""
    ended = before

    def summed(what: str, done: int, total: int, note: str = "") -> None:
        nonlocal ended
        progress(label, min(whole, ended + done), whole, note)
        if done >= total:
            ended += total

    return summed
