"""`uphold tasks` and `uphold methods`."""

from __future__ import annotations

from uphold.cli.arguments import JsonOutput


def tasks(as_json: JsonOutput = False) -> None:
    """List the tasks that have a name of their own."""
    from uphold.cli.console import print_result
    from uphold.tasks.load import task_names

    names = task_names()
    lines = [name for name in names if not name.startswith("rg:")]
    generated = [name for name in names if name.startswith("rg:")]
    lines += [
        "FILE.yaml      your own JSONL, CSV or Parquet data",
        f"rg:NAME[:option=value,...]   {len(generated)} generated tasks of reasoning-gym:",
        *(f"  {name}" for name in generated),
    ]
    print_result("\n".join(lines), {"tasks": names}, as_json)


def methods(as_json: JsonOutput = False) -> None:
    """List the registered methods of every room."""
    from uphold.cli.console import print_result
    from uphold.core.registry import methods as registered

    found = registered()
    width = max(len(f"{method.room} {method.name}") for method in found)
    lines = [f"{f'{method.room} {method.name}':<{width}}  {method.paper:<18} {method.summary}" for method in found]
    values = [
        {"room": method.room, "name": method.name, "paper": method.paper, "summary": method.summary} for method in found
    ]
    print_result("\n".join(lines), {"methods": values}, as_json)
