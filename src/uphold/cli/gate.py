"""`uphold gate`: may this update ship?"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from uphold.cli.arguments import JsonOutput, Quiet

if TYPE_CHECKING:
    from uphold.core.policy import Policy
    from uphold.measure.comparison import Comparison
    from uphold.measure.gate import GateResult


def gate(
    policy: Annotated[
        Path, typer.Argument(metavar="POLICY.yml", help="What the update must keep.", show_default=False)
    ],
    old: Annotated[
        str | None,
        typer.Argument(
            metavar="OLD",
            help="The version that users have; by default what the policy names. Without NEW, a folder of saved "
            "comparisons.",
            show_default=False,
        ),
    ] = None,
    new: Annotated[
        str | None, typer.Argument(metavar="NEW", help="The version that is to replace it.", show_default=False)
    ] = None,
    task: Annotated[
        list[str] | None, typer.Option(help="What to ask, instead of the policy's tasks; may be repeated.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for gate.json, the comparisons and their reports.")] = None,
    junit: Annotated[Path | None, typer.Option(help="Write the checks as JUnit XML to this file.")] = None,
    comment: Annotated[Path | None, typer.Option(help="Write a Markdown comment for a pull request here.")] = None,
    allow_inconclusive: Annotated[
        bool, typer.Option("--allow-inconclusive", help="Exit with 0 instead of 3 where there is too little data.")
    ] = False,
    allow_mismatch: Annotated[
        bool, typer.Option("--allow-mismatch", help="Compare runs that were asked differently; noted in the verdict.")
    ] = False,
    as_json: JsonOutput = False,
    quiet: Quiet = False,
) -> None:
    """Hold an update against a policy: exit code 0 pass, 1 fail, 3 inconclusive.

    OLD and NEW are models, stored runs or logs, as for 'uphold compare'.
    """
    from uphold.cli.console import print_result, say
    from uphold.core.policy import load_policy
    from uphold.measure.gate import gate as decide

    rules = load_policy(policy)
    _check_writable(out, junit, comment)
    # Rules that a search finds stand in reports only, and take longer than all the rest.
    how = {"allow_mismatch": allow_mismatch, "discover": out is not None}
    comparisons = _comparisons(rules, old, new, task or [], quiet, how)
    result = decide(rules, comparisons, allow_inconclusive=allow_inconclusive)
    _write(result, comparisons, out, junit, comment)
    _tell_github(result)
    print_result(str(result), result.to_dict(), as_json)
    if out is not None and not quiet:
        say(f"gate and report: {out}")
    raise typer.Exit(result.exit_code)


def _check_writable(out: Path | None, *files: Path | None) -> None:
    """Refuse what could not be written before anything is evaluated."""
    from uphold.core.errors import UsageError
    from uphold.core.storage import writable_folder

    for file in files:
        if file is not None and file.is_dir():
            raise UsageError(f"{file} is a folder, but a file is needed: name one in it")
    for folder in (out, *(file.parent for file in files if file is not None)):
        if folder is not None:
            writable_folder(folder)


def _comparisons(
    policy: Policy, old: str | None, new: str | None, tasks: list[str], quiet: bool, how: dict[str, Any]
) -> dict[str, Comparison]:
    """What the policy is held against; `tasks` are those of the command line, `how` goes to `compare_all`."""
    from uphold.cli.console import progress_to_stderr
    from uphold.core.errors import UsageError, unknown_name
    from uphold.measure.compare import compare_all
    from uphold.measure.several import load_comparisons

    if old is not None and new is None:
        if not Path(old).is_dir():
            raise UsageError(
                f"'{old}' alone cannot be compared: give OLD and NEW, or only a folder with saved comparisons"
            )
        saved = load_comparisons(old)
        for name in tasks:
            if name not in saved:
                raise unknown_name("task", name, saved)
        return {name: saved[name] for name in tasks} or saved
    versions = (old, new) if old is not None else (policy.old, policy.new)
    if versions[0] is None or versions[1] is None:
        raise UsageError("the policy does not name both old and new: write them there, or after the policy's name")
    with progress_to_stderr(quiet) as progress:
        return compare_all(
            versions[0], versions[1], tasks or policy.tasks, cluster=policy.cluster, progress=progress, **how
        )


def _write(
    result: GateResult, comparisons: dict[str, Comparison], out: Path | None, junit: Path | None, comment: Path | None
) -> None:
    from uphold.core.storage import write_json, write_text
    from uphold.measure.gate import FILE
    from uphold.report.github import markdown_comment
    from uphold.report.junit import junit_xml

    if out is not None:
        write_json(out / FILE, result.to_dict())
        write_reports(comparisons, result, out)
    if junit is not None:
        write_text(junit, junit_xml(result))
    if comment is not None:
        write_text(comment, markdown_comment(result, comparisons))


def write_reports(comparisons: dict[str, Comparison], result: GateResult | None, out: Path) -> dict[Path, Path]:
    """Save every comparison in `out` with the gate's verdict and a report; the reports by the folders of theirs."""
    from uphold.core.storage import write_json
    from uphold.measure.gate import FILE
    from uphold.measure.several import save_comparisons
    from uphold.report import write_report

    reports = {}
    for folder in save_comparisons(comparisons, out).values():
        if result is not None:
            write_json(folder / FILE, result.to_dict())
        reports[folder] = write_report(folder)
    return reports


def _tell_github(result: GateResult) -> None:
    """Annotations on stderr, which the runner reads as well as stdout, and the summary of the step."""
    from uphold.cli.console import say
    from uphold.core.storage import disk_errors
    from uphold.report.github import annotations, step_summary

    if os.environ.get("GITHUB_ACTIONS") == "true":
        for line in annotations(result):
            say(line)
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        path = Path(summary)
        with disk_errors(path), path.open("a", encoding="utf-8") as file:
            file.write(step_summary(result) + "\n")
