"""`uphold adapt`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from uphold.cli.arguments import JsonOutput, OutFolder, Quiet, Recipe, TaskName


def adapt(
    base: Annotated[str, typer.Argument(metavar="BASE", help="The base model.", show_default=False)],
    task: TaskName,
    out: OutFolder,
    recipe: Recipe = None,
    as_json: JsonOutput = False,
    quiet: Quiet = False,
    overrides: Any = None,
) -> None:
    """Train a LoRA task adapter, by the same recipe for every base."""
    from dataclasses import asdict

    from uphold.cli.console import print_result, progress_to_stderr
    from uphold.cli.options import configured
    from uphold.models.processes import is_first
    from uphold.repair.adapt import AdaptConfig
    from uphold.repair.adapt import adapt as train

    silently = quiet or not is_first()
    chosen, config = configured(AdaptConfig(), "adapt", task, recipe, overrides, silently)
    with progress_to_stderr(silently) as progress:
        result = train(base, chosen, out=out, config=config, progress=progress)
    if is_first():
        print_result(str(result), asdict(result) | {"adapter": str(result.adapter)}, as_json)
