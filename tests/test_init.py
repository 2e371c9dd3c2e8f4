from __future__ import annotations

import subprocess
import sys

import uphold


def test_the_public_names_are_those_documented() -> None:
    assert dir(uphold) == [
        "Run",
        "UpholdError",
        "__version__",
        "adapt",
        "compare",
        "compare_all",
        "evaluate",
        "explain",
        "gate",
        "history",
        "import_log",
        "load",
        "load_comparison",
        "load_policy",
        "load_repair",
        "load_run",
        "load_task",
        "measure",
        "merge",
        "pass_at_k",
        "patch",
        "repair",
        "report",
        "stages",
        "write_report",
        "write_run",
    ]
    for name in dir(uphold):
        assert getattr(uphold, name) is not None
    assert uphold.repair.muscle.__name__ == "muscle"


def test_an_unknown_name_is_an_attribute_error() -> None:
    import pytest

    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        uphold.nothing  # noqa: B018


def test_importing_uphold_and_its_registry_imports_nothing_heavy() -> None:
    code = (
        "import sys, uphold, uphold.repair; from uphold.core.registry import methods; methods()\n"
        "print([name for name in ('torch', 'transformers', 'peft', 'pydantic', 'rich') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
