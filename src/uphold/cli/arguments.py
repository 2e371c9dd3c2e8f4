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
Split = Annotated[str, typer.Option(help="train, validation or test.")]
BatchTokens = Annotated[
    int, typer.Option(min=0, help="Padded tokens per forward pass; 0 for 2048 on a CPU, 16384 on a GPU.")
]
ExecutorName = Annotated[str, typer.Option("--executor", help="local, or ray for a cluster.")]
RayAddress = Annotated[
    str | None,
    typer.Option("--ray-address", help="Of a Ray cluster; by default one is started here.", show_default=False),
]
DeviceMap = Annotated[
    str | None,
    typer.Option(
        "--device-map", help="auto spreads a model over all GPUs; by default it is put on one.", show_default=False
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say how many requests and tokens it would take.")]
Seed = Annotated[int, typer.Option(min=0, help="Of sampled decoding.")]
JsonOutput = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")]
