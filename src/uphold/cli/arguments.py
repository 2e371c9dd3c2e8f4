"""Arguments and options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

OldModel = Annotated[str, typer.Argument(metavar="OLD", help="The version that users have.", show_default=False)]
NewModel = Annotated[str, typer.Argument(metavar="NEW", help="The version that is to replace it.", show_default=False)]
OldVersion = Annotated[
    str,
    typer.Argument(metavar="OLD", help="The version that users have: a model, a run, or a log.", show_default=False),
]
NewVersion = Annotated[
    str, typer.Argument(metavar="NEW", help="The version that is to replace it.", show_default=False)
]
Tasks = Annotated[
    list[str] | None,
    typer.Option("--task", help="What to ask, or which task of a log; may be given often. 'uphold tasks' lists some."),
]
TaskName = Annotated[str, typer.Option("--task", help="'uphold tasks' lists what there is.", show_default=False)]
OutFolder = Annotated[Path, typer.Option("--out", help="Folder for everything that is made.", show_default=False)]
Recipe = Annotated[
    str | None,
    typer.Option(
        help="A shipped recipe or a YAML file; by default the task's own, else 'paper', whose values are shown below.",
        show_default=False,
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
AllowMismatch = Annotated[
    bool, typer.Option("--allow-mismatch", help="Compare runs that were asked differently, and say how.")
]


class OnceEach(TyperCommand):
    """A command that takes one task and one folder: of two, the first would be passed over in silence."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As always, but `--task` and `--out` may be given once."""
        from uphold.core.errors import UsageError

        _, _, given = self.make_parser(ctx).parse_args(args=list(args))
        names = [option.name for option in given]
        for name in ("task", "out"):
            if names.count(name) > 1:
                raise UsageError(f"--{name} was given {names.count(name)} times; '{ctx.command_path}' takes one")
        parsed: list[str] = super().parse_args(ctx, args)
        return parsed


def share(text: str) -> float:
    """A share as a policy writes it, `0.02` or `2%`; for `typer.Option(parser=share)`."""
    from uphold.core.policy import share as parsed

    try:
        return parsed(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


_LOGS = "Logs of other tools"
Columns = Annotated[
    str | None,
    typer.Option(
        help="What a table's columns are: id=qid,output=answer,correct=is_right; other names become tags.",
        rich_help_panel=_LOGS,
        show_default=False,
    ),
]
LogFormatName = Annotated[
    str | None,
    typer.Option(
        "--log-format", help="Where it cannot be told from the content.", rich_help_panel=_LOGS, show_default=False
    ),
]
LogFilter = Annotated[
    str | None,
    typer.Option("--filter", help="Which of several lm-eval filters.", rich_help_panel=_LOGS, show_default=False),
]
LogMetric = Annotated[
    str | None,
    typer.Option(
        "--metric", help="Which metric or scorer says what is right.", rich_help_panel=_LOGS, show_default=False
    ),
]


def log_options(columns: str | None, log_format: str | None, filter: str | None, metric: str | None) -> dict[str, Any]:
    """Those options of `uphold.importers.import_log` that were given.

    Raises:
        UsageError: `columns` is not `what=column,...`.
    """
    from uphold.core.errors import UsageError

    named: dict[str, str] = {}
    for part in columns.split(",") if columns else ():
        what, equals, column = (text.strip() for text in part.partition("="))
        if not (what and equals and column) or what in named:
            raise UsageError(f"--columns {columns}: expected WHAT=COLUMN,..., each once, such as id=qid,output=answer")
        named[what] = column
    given = {"columns": named or None, "log_format": log_format, "filter": filter, "metric": metric}
    return {name: value for name, value in given.items() if value is not None}
