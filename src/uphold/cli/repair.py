"""`uphold repair METHOD`: one command per registered repair method."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from uphold.cli.arguments import JsonOutput, NewModel, OldModel, OutFolder, Quiet, Recipe, TaskName


class RegisteredMethods(TyperGroup):
    """Commands made from the registry when they are asked for: `uphold --help` need not import a method."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of all registered repair methods."""
        from uphold.core.registry import methods

        return [method.name for method in methods("repair")]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of one method; an unknown name raises `UsageError` with the nearest one."""
        from uphold.core.registry import method

        single = typer.Typer(add_completion=False)
        single.command(cmd_name)(_command(method("repair", cmd_name)))
        return typer.main.get_command(single)


app = typer.Typer(
    cls=RegisteredMethods, help="Make a broken promise hold again, without giving up the gain.", no_args_is_help=True
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
        from uphold.report import write_report

        chosen: Any = task
        arguments: dict[str, Any] = {}
        if method.config is not None:
            chosen, arguments["config"] = configured(method.config(), method.name, task, recipe, overrides, quiet)
        with progress_to_stderr(quiet) as progress:
            result = method.function(old, new, chosen, out=out, progress=progress, **arguments)
        print_result(str(result), result.to_dict(), as_json)
        say(f"{result.form}: {result.artifact}\nreport: {write_report(out)}")

    run.__doc__ = f"{method.summary}{f' ({method.paper})' if method.paper else ''}"
    return with_config_options(run, method.config) if method.config else run
