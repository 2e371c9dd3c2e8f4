"""`uphold evaluate`: models on tasks."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from uphold.cli.arguments import (
    BatchTokens,
    DeviceMap,
    DryRun,
    ExecutorName,
    JsonOutput,
    Quiet,
    RayAddress,
    Seed,
    Split,
)


def evaluate(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Models, or endpoints.", show_default=False)],
    tasks: Annotated[list[str], typer.Option("--task", help="'uphold tasks' lists what there is; may be given often.")],
    split: Split = "test",
    batch_tokens: BatchTokens = 0,
    executor: ExecutorName = "local",
    ray_address: RayAddress = None,
    device_map: DeviceMap = None,
    seed: Seed = 0,
    dry_run: DryRun = False,
    as_json: JsonOutput = False,
    quiet: Quiet = False,
) -> None:
    """Evaluate models on tasks, and keep every answer.

    What was evaluated before is found in the store; what was interrupted goes on where it stopped.
    """
    from uphold.cli.console import print_result, progress_to_stderr, say
    from uphold.measure.evaluate import Tally, evaluate_all
    from uphold.measure.executors import executor as executor_called
    from uphold.measure.jobs import Batching, Job
    from uphold.measure.summary import summarise, summary_table
    from uphold.tasks.load import load_task

    work = executor_called(executor, device_map, ray_address)
    tally = Tally()
    with progress_to_stderr(quiet) as progress:
        asked = [load_task(task, progress) for task in tasks]
        jobs = [
            Job(model, task, split, Batching(batch_tokens), seed, f"{model} on {task.name}")  # type: ignore[arg-type]
            for model in models
            for task in asked
        ]
        if not dry_run:
            runs = evaluate_all(jobs, executor=work, progress=progress, tally=tally)
    if dry_run:
        print_estimates(jobs, work, as_json)
        return
    summaries = [summarise(run) for run in runs]
    lines = [summary_table(summaries), *(f"records: {summary.path}" for summary in summaries)]
    print_result("\n".join(lines), {"runs": [summary.to_dict() for summary in summaries]}, as_json)
    if not quiet:
        say(str(tally))


def print_estimates(jobs: list[Any], executor: Any, as_json: bool) -> None:
    """What `jobs` would take, on stdout."""
    from uphold.cli.console import print_result
    from uphold.measure.estimate import estimate

    estimates = [estimate(job, numerics=executor.numerics()) for job in jobs]
    print_result(
        "\n".join(map(str, estimates)) or "nothing to evaluate",
        {"estimates": [one.to_dict() for one in estimates]},
        as_json,
    )
