"""Arguments and options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

OldModel = Annotated[str, typer.Argument(metavar="OLD", help="The version that users have.", show_default=False)]
NewModel = Annotated[str, typer.Argument(metavar="NEW", help="The version that is to replace it.", show_default=False)]
TaskName = Annotated[str, typer.Option("--task", help="'uphold tasks' lists what there is.", show_default=False)]
OutFolder = Annotated[Path, typer.Option("--out", help="Folder for everything that is made.", show_default=False)]
Recipe = Annotated[
    str | None,
    typer.Option(
        help="A shipped recipe or a YAML file; by default the task's own, else the paper's.", show_default=False
    ),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Rows per forward pass.")]
Seed = Annotated[int, typer.Option(min=0, help="Of sampled decoding.")]
JsonOutput = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")]
