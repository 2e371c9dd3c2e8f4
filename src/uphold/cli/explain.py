"""`uphold explain`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from uphold.cli.arguments import JsonOutput, Quiet
from uphold.cli.options import with_config_options
from uphold.explain.flips import FlipsConfig

app = typer.Typer(no_args_is_help=True, help="Say where in the network an update changed things.")


def _flips(
    comparison: Annotated[
        Path, typer.Argument(metavar="COMPARISON", help="The --out folder of a compare or repair.", show_default=False)
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder for explanation.json and its pictures; COMPARISON where left out.")
    ] = None,
    old: Annotated[
        str | None, typer.Option(help="The old model, where its name does not lead to it.", show_default=False)
    ] = None,
    new: Annotated[str | None, typer.Option(help="The new model, likewise.", show_default=False)] = None,
    task: Annotated[str | None, typer.Option(help="The task, likewise.", show_default=False)] = None,
    as_json: JsonOutput = False,
    quiet: Quiet = False,
    overrides: Any = None,
) -> None:
    """Find the sites of the old model that bring negative flips back in the new one.

    A site holds what the old model holds there, on the same input; a flip is restored when the old answer is preferred
    again. Sites are chosen on one half of the flips and measured on the other, beside random sites.
    """
    from uphold.cli.console import print_result, progress_to_stderr, say
    from uphold.core.storage import writable_folder
    from uphold.explain.flips import flips
    from uphold.measure.comparison import FILE as COMPARISON
    from uphold.report import write_report
    from uphold.report.explanation import write_pictures

    folder = writable_folder(out or comparison)
    with progress_to_stderr(quiet) as progress:
        found = flips(
            comparison, old=old, new=new, task=task, config=FlipsConfig(**(overrides or {})), progress=progress
        )
    found.save(folder)
    print_result(str(found), found.to_dict(), as_json)
    for path in write_pictures(found, folder):
        say(f"picture: {path}")
    if (folder / COMPARISON).is_file():
        say(f"report: {write_report(folder)}")
    if found.sites:
        models = f"{old or found.old} {new or found.new} --task {task or found.task}"
        say(f"to repair there: uphold repair muscle {models} --out REPAIR --sites {found.sites[0].sites[0]}")


app.command("flips")(with_config_options(_flips, FlipsConfig))
