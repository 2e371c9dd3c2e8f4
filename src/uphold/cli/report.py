"""`uphold report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="The --out folder of a compare, gate, repair or demo.", show_default=False),
    ],
    out: Annotated[Path | None, typer.Option(help="Write the report here instead of into DIR.")] = None,
) -> None:
    """Write report.html, report.md and report.json from what a folder holds; of several tasks, one report each."""
    from uphold.cli.console import print_result
    from uphold.measure.several import comparison_folders
    from uphold.report import write_report

    below = comparison_folders(folder)
    # Of a repair, the folder itself is reported, which holds a comparison, too.
    folders = [folder] if folder in below or not below else below
    written = [write_report(one, out and out / one.relative_to(folder)) for one in folders]
    print_result("\n".join(map(str, written)), {}, as_json=False)
