"""`uphold merge`: several models become one, as a recipe says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from uphold.cli.arguments import JsonOutput, Quiet

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
    from uphold.merge.engine import run

    if dry_run:
        estimate = run.estimate(recipe, threads=threads, force=force)
        print_result(str(estimate), estimate.to_dict(), as_json)
        return
    if out is None:
        raise UsageError("where to? Give --out FOLDER, or --dry-run to see what the merge takes")
    with progress_to_stderr(quiet) as progress:
        result = run.merge(
            recipe,
            out=out,
            threads=threads,
            shard_size=shard_size,
            diagnostics=diagnostics,
            force=force,
            progress=progress,
        )
    for warning in result.warnings:
        say(f"warning: {warning}")
    print_result(str(result), result.to_dict(), as_json)
    say(f"model: {result.out}")
