"""`uphold tasks` and `uphold methods`."""

from __future__ import annotations

from uphold.cli.arguments import JsonOutput


def tasks(as_json: JsonOutput = False) -> None:
    """List the tasks that have a name of their own, and the forms of the others."""
    from uphold.cli.console import print_result
    from uphold.tasks.load import FILE_FORM, FILE_SUMMARY, SOURCES, task_names

    names = task_names()
    forms = {source.form: source.summary for source in SOURCES} | {FILE_FORM: FILE_SUMMARY}
    width = max(map(len, forms))
    generated = [name for name in names if name.startswith("rg:")]
    lines = [name for name in names if name not in generated]
    lines += [f"{form:<{width}}  {summary}" for form, summary in forms.items()]
    lines += [f"{len(generated)} generated tasks:", *(f"  {name}" for name in generated)]
    values = [{"form": form, "summary": summary} for form, summary in forms.items()]
    print_result("\n".join(lines), {"tasks": names, "forms": values}, as_json)


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
