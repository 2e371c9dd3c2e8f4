"""`uphold serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def serve(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder that holds results, at any depth.", show_default=False)
    ],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Where to listen; 0 takes a free port.")] = 8321,
    browser: Annotated[bool, typer.Option("--open/--no-open", help="Open the list in a browser.")] = False,
) -> None:
    """Show all comparisons, repairs and histories in a folder as a web page, on this machine only."""
    import webbrowser

    from uphold.cli.console import say
    from uphold.report.serve import report_server, serve_until_stopped

    with report_server(folder, port) as server:
        print(server.url, flush=True)
        say("Ctrl-C ends it")
        if browser:
            webbrowser.open(server.url)
        serve_until_stopped(server)
