"""`uphold compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from uphold.cli.arguments import BatchSize, JsonOutput, NewModel, OldModel, Quiet, Seed


def compare(
    old: OldModel,
    new: NewModel,
    task: Annotated[str | None, typer.Option(help="What to ask; 'uphold tasks' lists what there is.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the comparison and its report.")] = None,
    max_nfr: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Fail (exit code 1) when the NFR's 95% upper bound is above this share."),
    ] = None,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    noise_floor: Annotated[bool, typer.Option(help="Measure the old model against itself, too.")] = True,
    batch_size: BatchSize = 32,
    seed: Seed = 0,
    as_json: JsonOutput = False,
    quiet: Quiet = False,
) -> None:
    """Measure what an update broke, per instance and in sum.

    OLD and NEW are models, or folders with stored runs (then no task is needed).
    """
    from uphold.cli.console import print_result, progress_to_stderr, say
    from uphold.core.storage import writable_folder
    from uphold.measure.compare import compare as measure
    from uphold.measure.evaluate import Batching

    if out is not None:
        writable_folder(out)
    with progress_to_stderr(quiet) as progress:
        comparison = measure(
            old,
            new,
            task,
            split=split,  # type: ignore[arg-type]  # checked by the task
            batching=Batching(batch_size),
            noise_floor=noise_floor,
            seed=seed,
            progress=progress,
        )
    verdict = comparison.gate(max_nfr) if max_nfr is not None else None
    values = comparison.to_dict() | {
        "verdict": {"passed": verdict.passed, "reason": verdict.reason} if verdict else None
    }
    print_result(f"{comparison}\n{verdict.reason}" if verdict else str(comparison), values, as_json)
    if out is not None:
        from uphold.report import write_report

        say(f"report: {write_report(comparison.save(out))}")
    raise typer.Exit(verdict.exit_code if verdict else 0)
