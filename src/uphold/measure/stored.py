"""What was measured before: stored runs, and other tools' logs."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from uphold.core.errors import NotComparableError, UsageError, unknown_name
from uphold.core.progress import Progress, silent
from uphold.core.runs import Run, RunStore, is_run, load_run

RunsByTask = dict[str, Run]


def stored_runs(
    what: Any,
    *,
    store: RunStore | None = None,
    progress: Progress = silent,
    **options: Any,
) -> RunsByTask | None:
    """The runs that `what` holds, by the name of their task; None where it is a model.

    Args:
        what: a `Run`, a folder with a run, a folder of such folders, or another tool's log (`uphold.importers`).
        store: where the records of a log are kept.
        progress: called while a log is read.
        options: how a log is to be read, see `uphold.importers.import_log`.

    Raises:
        UsageError: two runs are of one task.
        DataError: a run or a log cannot be read.
    """
    if isinstance(what, Run):
        return _by_task([what], what.name)
    if not isinstance(what, str | Path) or "\0" in str(what):
        return None
    folder = Path(what)
    if is_run(folder):
        return _by_task([load_run(folder)], str(what))
    children = sorted(child for child in folder.iterdir() if is_run(child)) if folder.is_dir() else []
    if children:
        return _by_task([load_run(child) for child in children], str(what))
    from uphold.importers import import_log, is_log

    if not is_log(what):
        return None
    return _by_task(import_log(what, store=store, progress=progress, **options), str(what))


def _by_task(runs: Sequence[Run], where: str) -> RunsByTask:
    found: RunsByTask = {}
    for run in runs:
        name = run.task
        if name in found:
            raise UsageError(
                f"{where} holds two runs of the task '{name}' ({found[name].path.name} and {run.path.name}): "
                "name one of them"
            )
        found[name] = run
    return found


def chosen(runs: RunsByTask, patterns: Sequence[str], where: str) -> RunsByTask:
    """Those of `runs` whose task has one of the names; all of them where none is given.

    Raises:
        UsageError: a name (shell wild cards allowed) fits none.
    """
    if not patterns:
        return runs
    for pattern in patterns:
        if not any(fits(name, pattern) for name in runs):
            raise unknown_name("task", pattern, runs, f"It is looked for in {where}.")
    return {name: run for name, run in runs.items() if any(fits(name, pattern) for pattern in patterns)}


def fits(name: str, pattern: str) -> bool:
    """Whether `pattern` is the name, or matches it with `*`, `?` and `[...]`."""
    return name == pattern or fnmatchcase(name, pattern)


def matched(old: RunsByTask, new: RunsByTask, allow_mismatch: bool) -> tuple[dict[str, tuple[Run, Run]], list[str]]:
    """The runs of both sides by task, and remarks on what was left out.

    One run on each side is a pair whatever its task is called; what differs between the two is for
    `uphold.measure.comparable.check_comparable` to say.

    Raises:
        NotComparableError: no task is on both sides, or one is on one side only and `allow_mismatch` is not set.
    """
    if len(old) == len(new) == 1:
        [(name, run)] = old.items()
        return {name: (run, next(iter(new.values())))}, []
    both = [name for name in old if name in new]
    lonely = [
        f"only the {side} side has the task{'s' if len(names) > 1 else ''} {', '.join(names)}"
        for side, names in (
            ("old", [name for name in old if name not in new]),
            ("new", [name for name in new if name not in old]),
        )
        if names
    ]
    if not both:
        raise NotComparableError(f"no task is on both sides: old has {', '.join(old)}; new has {', '.join(new)}")
    if lonely and not allow_mismatch:
        raise NotComparableError(
            f"{'; '.join(lonely)}: name the tasks to compare with --task, or leave these out with --allow-mismatch"
        )
    return {name: (old[name], new[name]) for name in both}, [f"mismatch allowed: {line}" for line in lonely]
