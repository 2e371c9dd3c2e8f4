"""The command line: verbs only."""

from __future__ import annotations

import io
import os
import signal
import sys
import traceback
from typing import Annotated

import typer

from uphold.cli import (
    adapt,
    compare,
    demo,
    evaluate,
    explain,
    gate,
    history,
    lists,
    merge,
    patch,
    power,
    repair,
    report,
    serve,
)
from uphold.cli.arguments import OnceEach
from uphold.cli.console import discard_stdout, say
from uphold.cli.options import with_config_options
from uphold.core.errors import UpholdError
from uphold.repair.adapt import AdaptConfig

app = typer.Typer(
    name="uphold",
    help="Ship model updates that keep their promises: measure what an update breaks, and repair it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(compare.compare)
app.command()(gate.gate)
app.command()(history.history)
app.command()(power.power)
app.command()(evaluate.evaluate)
app.command(cls=OnceEach)(with_config_options(adapt.adapt, AdaptConfig, "adapt"))
app.add_typer(explain.app, name="explain")
app.add_typer(repair.app, name="repair")
app.add_typer(patch.app, name="patch")
app.command()(merge.merge)
app.command()(report.report)
app.command()(serve.serve)
app.command()(demo.demo)
app.command()(lists.tasks)
app.command()(lists.methods)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"uphold {version('uphold')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    _quieten_libraries()


def _quieten_libraries() -> None:
    """The libraries below talk to stderr while they load; progress and errors there are ours."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not sys.warnoptions:
        import warnings

        warnings.simplefilter("ignore")


class _InterruptedError(BaseException):
    """Ctrl-C. Not a KeyboardInterrupt, which the command-line library would answer itself, with exit code 1."""


def _interrupt(signal_number: int, frame: object) -> None:
    raise _InterruptedError


def main() -> None:
    """Run the command line; deliberate errors become one line on stderr and an exit code."""
    signal.signal(signal.SIGINT, _interrupt)
    for name in ("stdout", "stderr"):
        # Closed by whoever started us: printing to nothing would end on the other one.
        if getattr(sys, name) is None:
            setattr(sys, name, io.StringIO())
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Where the output is not Unicode, a name that does not fit in is spelt out.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app()
    except UpholdError as error:
        say(f"uphold: {error}")
        sys.exit(error.exit_code)
    except _InterruptedError:
        say("uphold: interrupted; what was finished is kept: type the same command again to go on")
        sys.exit(2)
    except BrokenPipeError:
        discard_stdout()
        sys.exit(0)
    except OSError as error:
        discard_stdout()
        say(f"uphold: the operating system refused: {error}")
        sys.exit(2)
    except Exception:  # noqa: BLE001
        # Python's own exit code would be 1, which says that a gate failed.
        traceback.print_exc()
        say("uphold: this is a bug in Uphold: please report it with the lines above")
        sys.exit(2)


if __name__ == "__main__":
    main()
