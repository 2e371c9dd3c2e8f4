"""`uphold compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from uphold.cli.arguments import (
    BatchTokens,
    DeviceMap,
    DryRun,
    ExecutorName,
    JsonOutput,
    NewModel,
    OldModel,
    Quiet,
    RayAddress,
    Seed,
    Split,
)


def compare(
    old: OldModel,
    new: NewModel,
    task: Annotated[str | None, typer.Option(help="What to ask; 'uphold tasks' lists what there is.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the comparison and its report.")] = None,
    max_nfr: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Fail (exit code 1) when the NFR's 95% upper bound is above this share."),
    ] = None,
    split: Split = "test",
    noise_floor: Annotated[bool, typer.Option(help="Measure the old model against itself, too.")] = True,
    batch_tokens: BatchTokens = 0,
    executor: ExecutorName = "local",
    ray_address: RayAddress = None,
    device_map: DeviceMap = None,
    seed: Seed = 0,
    dry_run: DryRun = False,
    as_json: JsonOutput = False,
    quiet: Quiet = False,
) -> None:
    """Measure what an update broke, per instance and in sum.

    OLD and NEW are models, or folders with stored runs (then no task is needed).
    """
    from uphold.cli.console import print_result, progress_to_stderr, say
    from uphold.cli.evaluate import print_estimates
    from uphold.core.storage import writable_folder
    from uphold.measure.compare import compare as measure
    from uphold.measure.compare import comparison_jobs
    from uphold.measure.evaluate import Tally
    from uphold.measure.executors import executor as executor_called
    from uphold.measure.jobs import Batching

    if out is not None:
        writable_folder(out)
    tally = Tally()
    how: dict[str, Any] = {
        "split": split,
        "batching": Batching(batch_tokens),
        "noise_floor": noise_floor,
        "seed": seed,
        "executor": executor_called(executor, device_map, ray_address),
    }
    with progress_to_stderr(quiet) as progress:
        if dry_run and task is not None:
            jobs = comparison_jobs(old, new, task, progress=progress, **how)
            print_estimates(list(jobs.values()), how["executor"], as_json)
            return
        comparison = measure(old, new, task, progress=progress, tally=tally, **how)
    verdict = comparison.gate(max_nfr) if max_nfr is not None else None
    values = comparison.to_dict() | {
        "verdict": {"passed": verdict.passed, "reason": verdict.reason} if verdict else None
    }
    print_result(f"{comparison}\n{verdict.reason}" if verdict else str(comparison), values, as_json)
    if out is not None:
        from uphold.report import write_report

        say(f"report: {write_report(comparison.save(out))}")
    if tally.instances and not quiet:
        say(str(tally))
    raise typer.Exit(verdict.exit_code if verdict else 0)
