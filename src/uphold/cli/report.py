"""`uphold report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="The --out folder of a compare, repair or demo.", show_default=False)
    ],
    out: Annotated[Path | None, typer.Option(help="Write the report here instead of into DIR.")] = None,
) -> None:
    """Write report.html, report.md and report.json from what a folder holds."""
    from uphold.report import write_report

    print(write_report(folder, out))
