"""`uphold demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from uphold.cli.arguments import JsonOutput, Quiet


def demo(
    preset: Annotated[
        str, typer.Option(help="embedded (minutes) or smollm2 (a real LLM, under an hour).")
    ] = "embedded",
    out: Annotated[Path | None, typer.Option(help="Folder for everything that is made; default demo-PRESET.")] = None,
    as_json: JsonOutput = False,
    quiet: Quiet = False,
) -> None:
    """Run the main job on a pair of models that needs no download: adapt, compare, repair, report."""
    from uphold.cli.console import print_result, progress_to_stderr, say
    from uphold.demo import run_demo

    folder = out or Path(f"demo-{preset}")
    with progress_to_stderr(quiet) as progress:
        result = run_demo(preset, folder, progress=progress)
    print_result(f"{result.before}\n\n{result}", result.to_dict(), as_json)
    say(f"{result.form}: {result.artifact}\nreport: {folder / 'report.html'}")
