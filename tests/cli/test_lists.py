from __future__ import annotations

import json

from typer.testing import CliRunner

from uphold.cli.main import app
from uphold.core.registry import methods

RUNNER = CliRunner()


def test_tasks_lists_names_and_their_forms() -> None:
    text = RUNNER.invoke(app, ["tasks"]).stdout
    assert {"demo", "smollm2", "humaneval"} <= set(text.split())
    assert "rg:chain_sum" in text
    assert "FILE.yaml" in text
    assert "demo" in json.loads(RUNNER.invoke(app, ["tasks", "--json"]).stdout)["tasks"]


def test_methods_lists_what_is_registered_with_its_paper() -> None:
    text = RUNNER.invoke(app, ["methods"]).stdout
    for method in methods():
        assert f"{method.room} {method.name}" in text
        assert method.summary in text
    listed = json.loads(RUNNER.invoke(app, ["methods", "--json"]).stdout)["methods"]
    assert {"room": "repair", "name": "muscle", "paper": "arXiv:2407.09435"}.items() in [
        {key: one[key] for key in ("room", "name", "paper")}.items() for one in listed
    ]
