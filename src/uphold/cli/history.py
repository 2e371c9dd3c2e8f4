"""`uphold history`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from uphold.cli.arguments import (
    AllowMismatch,
    Columns,
    JsonOutput,
    LogFilter,
    LogFormatName,
    LogMetric,
    Quiet,
    log_options,
)


def history(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            help="Two versions or more, the oldest first: folders with stored runs, or other tools' logs.",
            show_default=False,
        ),
    ],
    task: Annotated[
        str | None, typer.Option(help="Which task to follow, where the runs hold several.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for history.html, history.json and history.md.", show_default=False)
    ] = None,
    allow_mismatch: AllowMismatch = False,
    columns: Columns = None,
    log_format: LogFormatName = None,
    log_filter: LogFilter = None,
    log_metric: LogMetric = None,
    as_json: JsonOutput = False,
    quiet: Quiet = False,
) -> None:
    """Follow a model through its versions: what each broke, what came back, what was lost for good."""
    from uphold.cli.console import print_result, progress_to_stderr, say
    from uphold.core.storage import writable_folder
    from uphold.measure.history import history as follow
    from uphold.measure.history import stored_versions
    from uphold.report.text import finite

    if out is not None:
        writable_folder(out)
    log = log_options(columns, log_format, log_filter, log_metric)
    with progress_to_stderr(quiet) as progress:
        found = follow(stored_versions(runs, task, log=log, progress=progress), allow_mismatch)
    print_result(str(found), finite(found.to_dict()), as_json)
    if out is not None:
        from uphold.report.history import write_history

        say(f"report: {write_history(found, out)}")
