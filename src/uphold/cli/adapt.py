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

    from uphold.cli.console import print_result, progress_to_stderr, say
    from uphold.repair.adapt import AdaptConfig
    from uphold.repair.adapt import adapt as train
    from uphold.repair.recipe import configure, recipe_for
    from uphold.tasks.load import load_task

    chosen = load_task(task)
    name = recipe or recipe_for(chosen)
    config = configure(AdaptConfig(), "adapt", name, overrides)
    if not quiet:
        say(f"recipe: {name}")
    with progress_to_stderr(quiet) as progress:
        result = train(base, chosen, out=out, config=config, progress=progress)
    print_result(str(result), asdict(result) | {"adapter": str(result.adapter)}, as_json)
