"""`uphold compare`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from uphold.cli.arguments import (
    AllowMismatch,
    BatchTokens,
    Columns,
    DeviceMap,
    DryRun,
    ExecutorName,
    JsonOutput,
    LogFilter,
    LogFormatName,
    LogMetric,
    NewVersion,
    OldVersion,
    Quiet,
    RayAddress,
    Seed,
    Split,
    Tasks,
    log_options,
    share,
)

if TYPE_CHECKING:
    from uphold.core.policy import Policy
    from uphold.measure.comparison import Comparison
    from uphold.measure.gate import GateResult


def compare(
    old: OldVersion,
    new: NewVersion,
    task: Tasks = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the comparison and its report.")] = None,
    max_nfr: Annotated[
        float | None,
        typer.Option(
            parser=share, metavar="SHARE", help="A gate: the NFR may be at most this (0.02, 2%), with 95% confidence."
        ),
    ] = None,
    policy: Annotated[
        Path | None, typer.Option(help="A gate: the limits in this file, see 'uphold gate'.", show_default=False)
    ] = None,
    until_decided: Annotated[
        bool, typer.Option("--until-decided", help="Evaluate in random order only until the gate is decided.")
    ] = False,
    cluster: Annotated[
        str | None, typer.Option(help="Tag by which instances belong together (same passage).", show_default=False)
    ] = None,
    allow_mismatch: AllowMismatch = False,
    columns: Columns = None,
    log_format: LogFormatName = None,
    log_filter: LogFilter = None,
    log_metric: LogMetric = None,
    split: Split = "test",
    noise_floor: Annotated[bool, typer.Option(help="Measure the old model against itself, too.")] = True,
    again: Annotated[
        str | None,
        typer.Option(help="Of stored runs and logs: OLD once more, for the noise floor.", show_default=False),
    ] = None,
    discover: Annotated[bool, typer.Option(help="Look for kinds of instances in which flips pile up.")] = True,
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

    OLD and NEW are models, folders with stored runs, or logs of lm-eval, inspect, promptfoo, OpenAI evals or your own
    JSONL or CSV (then no task is needed).
    """
    from uphold.cli.console import progress_to_stderr, say
    from uphold.cli.evaluate import print_estimates
    from uphold.core.errors import UsageError
    from uphold.core.storage import writable_folder
    from uphold.measure.compare import compare_all, comparison_jobs
    from uphold.measure.evaluate import Tally
    from uphold.measure.executors import executor as executor_called
    from uphold.measure.gate import gate
    from uphold.measure.jobs import Batching, Job
    from uphold.measure.stored import stored_runs

    rules = _policy(policy, max_nfr, cluster)
    if until_decided and (rules is None or len(task or []) != 1):
        raise UsageError("--until-decided needs one --task and a gate to decide: add --policy FILE or --max-nfr SHARE")
    if until_decided and again is not None:
        raise UsageError("--again goes with two stored runs: leave out --until-decided, which evaluates models")
    if out is not None and not dry_run:
        writable_folder(out)
    tally, work, tasks = Tally(), executor_called(executor, device_map, ray_address), task or []
    how: dict[str, Any] = {"split": split, "batching": Batching(batch_tokens), "seed": seed, "executor": work}
    result: GateResult | None = None
    with progress_to_stderr(quiet) as progress:
        log = log_options(columns, log_format, log_filter, log_metric)
        if dry_run:
            sides = (stored_runs(old, progress=progress, **log), stored_runs(new, progress=progress, **log))
            how |= {"sides": sides, "noise_floor": noise_floor, "progress": progress}
            plan = {} if all(sides) else comparison_jobs(old, new, tasks, **how)
            print_estimates([job for job in plan.values() if isinstance(job, Job)], work, as_json)
            return
        if until_decided:
            from uphold.measure.sequential import compare_until_decided

            assert rules is not None
            one, result = compare_until_decided(old, new, tasks[0], rules, progress=progress, tally=tally, **how)
            comparisons = {tasks[0]: one}
        else:
            comparisons = compare_all(
                old,
                new,
                tasks,
                noise_floor=noise_floor,
                again=again,
                discover=discover,
                allow_mismatch=allow_mismatch,
                cluster=rules.cluster if rules else cluster,
                log=log,
                progress=progress,
                tally=tally,
                **how,
            )
            result = gate(rules, comparisons) if rules else None
    _print(comparisons, result, as_json)
    if out is not None:
        _report(comparisons, result, out)
    if tally.instances and not quiet:
        say(str(tally))
    raise typer.Exit(result.exit_code if result else 0)


def _policy(path: Path | None, max_nfr: float | None, cluster: str | None) -> Policy | None:
    """The gate that was asked for, if any."""
    if path is None and max_nfr is None:
        return None
    from uphold.core.errors import UsageError
    from uphold.core.policy import Limit, Policy, load_policy

    if path is None:
        if max_nfr == 0:
            raise UsageError("--max-nfr 0: no number of instances can show that a share is 0; write a small one")
        return Policy(limits=(Limit(max_nfr=max_nfr),), cluster=cluster)
    found = load_policy(path)
    if max_nfr is not None:
        found = found.model_copy(update={"limits": (*found.limits, Limit(max_nfr=max_nfr))})
    return found.model_copy(update={"cluster": cluster}) if cluster else found


def _print(comparisons: dict[str, Comparison], result: GateResult | None, as_json: bool) -> None:
    from uphold.cli.console import print_result, say

    for note in dict.fromkeys(note for one in comparisons.values() for note in one.notes):
        if note.startswith("mismatch allowed"):
            say(note)
    verdict = {"verdict": result.to_dict() if result else None}
    if result is not None:
        said = {note for one in comparisons.values() for note in one.notes}
        said |= {f"{name}: {note}" for name, one in comparisons.items() for note in one.notes}
        result = replace(result, notes=tuple(note for note in result.notes if note not in said))
    if len(comparisons) == 1:
        [comparison] = comparisons.values()
        text, values = str(comparison), comparison.to_dict() | verdict
    else:
        from uphold.measure.several import overview

        blocks = [f"{name}\n{comparison}" for name, comparison in comparisons.items()]
        text = "\n\n".join(["\n".join(overview(comparisons)), *blocks])
        values = {"comparisons": {name: one.to_dict() for name, one in comparisons.items()}} | verdict
    print_result(f"{text}\n\n{result}" if result else text, values, as_json)


def _report(comparisons: dict[str, Comparison], result: GateResult | None, out: Path) -> None:
    from uphold.cli.console import say
    from uphold.cli.gate import write_reports
    from uphold.measure.several import comparison_folders

    reports = write_reports(comparisons, result, out)
    for report in reports.values():
        say(f"report: {report}")
    for folder in comparison_folders(out):
        if folder not in reports:
            say(f"note: {folder} holds an older comparison, which a gate on {out} would count as well")
