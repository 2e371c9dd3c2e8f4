"""`uphold repair [METHOD]`: one command per registered repair method, and `search`, which chooses among them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from uphold.cli.arguments import JsonOutput, NewModel, OldModel, OnceEach, OutFolder, Quiet, Recipe, TaskName, share

SEARCH = "search"
_ACROSS = "cross-vocabulary"
_CHOOSING = "Choosing"


class RegisteredMethods(TyperGroup):
    """Commands made from the registry when they are asked for: `uphold --help` need not import a method."""

    def list_commands(self, ctx: Any) -> list[str]:
        """`search`, then the names of all registered repair methods, those of one kind together."""
        from uphold.repair.search_plan import KINDS

        kinds = list(KINDS)
        names = sorted(_kinds().items(), key=lambda entry: (kinds.index(entry[1]), entry[0]))
        return [SEARCH, *(name for name, _ in names)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of one method; an unknown name raises `UsageError` with the nearest one."""
        from uphold.core.errors import UsageError
        from uphold.core.registry import method
        from uphold.repair.search_plan import KINDS

        single = typer.Typer(add_completion=False)
        if cmd_name == SEARCH:
            single.command(SEARCH, cls=OnceEach, rich_help_panel=_CHOOSING)(search)
        else:
            try:
                found = method("repair", cmd_name)
            except UsageError as error:
                raise UsageError(f"{error} Without a method two models are needed: uphold repair OLD NEW ...") from None
            panel = KINDS[_kinds()[cmd_name]]
            single.command(cmd_name, cls=OnceEach, rich_help_panel=panel)(_command(found))
        return typer.main.get_command(single)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """`OLD NEW ...` without a method runs the default one."""
        from uphold.repair.search_plan import DEFAULT

        if not ctx.resilient_parsing and _without_method(args, self.list_commands(ctx)):
            args = [DEFAULT, *args]
        parsed: list[str] = super().parse_args(ctx, args)
        return parsed


def _kinds() -> dict[str, Any]:
    """The kind of every registered method."""
    from uphold.core.errors import UsageError
    from uphold.core.registry import methods
    from uphold.repair.search_plan import kind_of

    found = {method.name: kind_of(method) for method in methods("repair")}
    if SEARCH in found:
        raise UsageError(f"a plug-in registers a repair method '{SEARCH}', which is a command: it needs another name")
    return found


def _without_method(args: list[str], commands: list[str]) -> bool:
    """Whether what was typed starts with two models, or with an option, rather than with a method's name."""
    from uphold.repair.search_plan import DEFAULT

    if not args or args[0] in ("--help", "-h", *commands) or DEFAULT not in commands:
        return False
    leading = next((place for place, text in enumerate(args) if text.startswith("-")), len(args))
    return leading in (0, 2)


app = typer.Typer(
    cls=RegisteredMethods,
    help="Make a broken promise hold again, without giving up the gain. OLD NEW without a method runs 'uphold'.",
    no_args_is_help=True,
)


@app.callback()
def _group() -> None:
    pass


def _command(method: Any) -> Any:
    from uphold.cli.options import configured, with_config_options

    def run(
        old: OldModel,
        new: NewModel,
        task: TaskName,
        out: OutFolder,
        recipe: Recipe = None,
        as_json: JsonOutput = False,
        quiet: Quiet = False,
        overrides: Any = None,
    ) -> None:
        from uphold.cli.console import print_result, progress_to_stderr, say
        from uphold.models.processes import is_first
        from uphold.report import write_report

        silently = quiet or not is_first()
        chosen: Any = task
        arguments: dict[str, Any] = {}
        if method.config is not None:
            chosen, arguments["config"] = configured(method.config(), method.name, task, recipe, overrides, silently)
        with progress_to_stderr(silently) as progress, _another_way(method.name):
            result = method.function(old, new, chosen, out=out, progress=progress, **arguments)
        if not is_first():
            return
        print_result(str(result), result.to_dict(), as_json)
        say(f"{result.form}: {result.artifact}\nreport: {write_report(out)}")

    run.__doc__ = f"{method.summary}{f' ({method.paper})' if method.paper else ''}"
    return with_config_options(run, method.config, method.name) if method.config else run


@contextmanager
def _another_way(method: str) -> Iterator[None]:
    """Where a method needs one tokenizer and there are two: the name of the one that does not."""
    from uphold.core.errors import TokenizerMismatchError

    try:
        yield
    except TokenizerMismatchError as error:
        if method == _ACROSS:
            raise
        raise TokenizerMismatchError(f"{error}; 'uphold repair {_ACROSS}' does without") from error


def search(
    old: OldModel,
    new: NewModel,
    task: TaskName,
    out: OutFolder,
    method: Annotated[
        list[str] | None,
        typer.Option(help="What to try; may be given often. By default all that need two models and a task."),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(help="Minutes to spend, earlier calls included; 60 without --trials.", show_default=False),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(help="Most repairs to try, earlier calls included.", show_default=False)
    ] = None,
    margin: Annotated[
        float,
        typer.Option(parser=share, metavar="SHARE", help="Loss of accuracy that the non-inferiority test tolerates."),
    ] = 0.005,
    strict: Annotated[
        bool, typer.Option("--strict", help="Choose only what is shown not to be less accurate by the margin.")
    ] = False,
    allow_pairs: Annotated[
        bool, typer.Option("--allow-pairs", help="May choose a repair that keeps both models at inference.")
    ] = False,
    controls: Annotated[bool, typer.Option(help="Train the controls of the chosen repair.")] = True,
    force: Annotated[bool, typer.Option("--force", help="Go on although the new model is worse.")] = False,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="OPTION=VALUE", help="For every method that has the option; may be given often."),
    ] = None,
    recipe: Recipe = None,
    as_json: JsonOutput = False,
    quiet: Quiet = False,
) -> None:
    """Try methods and strengths within a budget, and leave the best by validation in --out.

    Ends with 3 where no repair is to be shipped.
    """
    from uphold.cli.console import print_result, progress_to_stderr, say
    from uphold.repair.search import search as run
    from uphold.repair.search_result import SearchConfig
    from uphold.report import write_report

    config = SearchConfig(tuple(method or ()), budget, trials, float(margin), strict, allow_pairs, controls, force)
    with progress_to_stderr(quiet) as progress:
        result = run(
            old, new, task, out=out, config=config, recipe=recipe, options=_options(changes or []), progress=progress
        )
    print_result(str(result), result.to_dict(), as_json)
    page = write_report(out)
    if result.winner is None:
        say(f"search: {page}")
        raise typer.Exit(3)
    say(f"{result.winner.form}: {_artifact(out)}\nreport: {page}\nsearch: {page.with_name('search.html')}")


def _options(changes: list[str]) -> dict[str, str]:
    from uphold.core.errors import UsageError

    found: dict[str, str] = {}
    for text in changes:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise UsageError(f"--set {text}: expected OPTION=VALUE, such as epochs=3")
        found[name.strip().replace("-", "_")] = value.strip()
    return found


def _artifact(out: Path) -> Path:
    from uphold.core.storage import read_json
    from uphold.repair.result import FILE

    return out / str(read_json(out / FILE)["artifact"])
