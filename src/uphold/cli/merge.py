"""`uphold merge`: several models become one, as a recipe says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from uphold.cli.arguments import JsonOutput, Quiet

if TYPE_CHECKING:
    from uphold.core.progress import Progress
    from uphold.measure.evaluate import Tally
    from uphold.merge.engine.recipe import Recipe
    from uphold.merge.engine.run import Merge
    from uphold.merge.engine.synergy_result import Synergy
    from uphold.tasks.base import Task

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def size(text: str) -> int:
    """Bytes, as `5GB`, `500MB` or a plain number."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(text))
    count = float(found[1]) * _UNITS.get(found[2].upper(), 0) if found else 0
    if count < 1:
        raise typer.BadParameter(f"{text!r}; expected a size such as 5GB or 500MB")
    return int(count)


def merge(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE", help="A YAML file with mergekit's keys.", show_default=False)
    ],
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the merged model.", show_default=False)] = None,
    task: Annotated[
        list[str] | None,
        typer.Option("--task", help="Then compare the merge with all of its models on this; may be given often."),
    ] = None,
    search: Annotated[
        list[str] | None,
        typer.Option(
            "--search",
            metavar="PARAMETER=VALUE,...",
            help="Choose a value on the tasks' validation splits; of one model as PARAMETER.NUMBER. Several: a grid.",
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            help="Of --search: the model whose right answers are to stay; the first parent by default.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be read, written and needed.")
    ] = False,
    diagnostics: Annotated[
        bool, typer.Option("--diagnostics", help="Compare the models tensor by tensor: cosines, sign conflicts, norms.")
    ] = False,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Cores to use; all by default.", show_default=False)
    ] = None,
    shard_size: Annotated[
        int, typer.Option("--shard-size", parser=size, metavar="SIZE", help="Of one file of weights.")
    ] = "5GB",  # type: ignore[assignment]
    force: Annotated[
        bool, typer.Option("--force", help="Go on although the models' configs say that they do not belong together.")
    ] = False,
    as_json: JsonOutput = False,
    quiet: Quiet = False,
) -> None:
    """Merge models as a recipe says; 'uphold methods' lists the merge methods."""
    from uphold.cli.console import print_result, progress_to_stderr, say
    from uphold.core.errors import UsageError
    from uphold.measure.evaluate import Tally
    from uphold.merge.engine import run
    from uphold.merge.engine.recipe import load_recipe
    from uphold.merge.engine.synergy import synergy

    tasks = task or []
    if dry_run and (tasks or search):
        raise UsageError("--dry-run says what a merge takes: leave out --task and --search")
    if search and not tasks:
        raise UsageError("--search chooses by validation instances: add --task TASK")
    if reference is not None and not search:
        raise UsageError("--reference goes with --search PARAMETER=VALUE,...")
    if dry_run:
        estimate = run.estimate(recipe, threads=threads, force=force)
        print_result(str(estimate), estimate.to_dict(), as_json)
        return
    if out is None:
        raise UsageError("where to? Give --out FOLDER, or --dry-run to see what the merge takes")
    tally = Tally()
    how: dict[str, Any] = {"out": out, "threads": threads, "shard_size": shard_size, "diagnostics": diagnostics}
    with progress_to_stderr(quiet) as progress:
        how |= {"force": force, "progress": progress}
        values = grid(search or [])
        loaded = load_recipe(recipe)
        asked = _asked(loaded, tasks, progress) if tasks else []
        result, texts = _merged(loaded, asked, values, reference, how, tally)
        measured = synergy(out, asked, progress=progress, tally=tally) if asked else None
    for warning in result.warnings:
        say(f"warning: {warning}")
    content = result.to_dict()
    if measured is not None:
        texts.append(str(measured))
        content["measured"] = measured.to_dict()
    print_result("\n\n".join(texts), content, as_json)
    say(f"model: {result.out}")
    if measured is not None:
        _report(measured, out)
        if tally.instances and not quiet:
            say(str(tally))


def grid(texts: list[str]) -> dict[str, list[Any]]:
    """What `--search PARAMETER=VALUE,...` says, by parameter.

    Raises:
        UsageError: it is of another form, or names a parameter twice.
    """
    from uphold.core.errors import UsageError

    found: dict[str, list[Any]] = {}
    for text in texts:
        name, equals, values = (part.strip() for part in text.partition("="))
        entries = [entry.strip() for entry in values.split(",")]
        if not (name and equals and all(entries)):
            raise UsageError(f"--search {text}: expected PARAMETER=VALUE,..., such as t=0.3,0.5,0.7")
        if name in found:
            raise UsageError(f"--search names '{name}' twice: write all of its values behind one {name}=")
        found[name] = [_value(entry) for entry in entries]
    return found


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _asked(recipe: Recipe, tasks: list[str], progress: Progress) -> list[Task]:
    """The tasks, loaded once; what cannot be measured is said before anything is merged."""
    from uphold.merge.engine.parents import check_askable
    from uphold.merge.engine.synergy import asked_on

    check_askable(recipe)
    return asked_on(tasks, "test", progress)


def _merged(
    recipe: Recipe,
    tasks: list[Task],
    values: dict[str, list[Any]],
    reference: str | None,
    how: dict[str, Any],
    tally: Tally,
) -> tuple[Merge, list[str]]:
    """The merge, and what is to be printed of it."""
    from uphold.merge.engine import run
    from uphold.merge.engine.output import recipe_yaml
    from uphold.merge.engine.recipe import load_recipe
    from uphold.merge.engine.search import search

    if not values:
        result = run.merge(recipe, **how)
        return result, [str(result)]
    result, found = search(recipe, values, tasks, reference=reference, tally=tally, **how)
    return result, [str(found), recipe_yaml(load_recipe(result.facts["recipe"])).rstrip(), str(result)]


def _report(measured: Synergy, out: Path) -> None:
    from uphold.cli.console import say
    from uphold.report import write_report

    for folder in measured.save(out):
        say(f"report: {write_report(folder)}")
