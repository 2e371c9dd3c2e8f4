from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from uphold import demo
from uphold.core.errors import UsageError
from uphold.demo import PRESETS, run_demo
from uphold.repair import recipe


def test_the_embedded_demo_end_to_end_in_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped models and recipe, one epoch on a cut of the task; repeated, it reads what is there."""

    def short(default: Any, section: str, name: str, overrides: Any = None) -> Any:
        return replace(recipe.configure(default, section, name, overrides), epochs=1)

    def small(name: str) -> Any:
        from uphold.tasks.load import load_task

        task = load_task(name)
        return replace(task, splits={split: task.instances(split)[:128] for split in ("train", "validation", "test")})

    monkeypatch.setattr(demo, "configure", short)
    monkeypatch.setattr(demo, "load_task", small)
    result = run_demo("embedded", tmp_path / "demo")
    assert result.splits == {"train": 128, "validation": 128, "test": 128}
    assert (result.before["accuracy_old"].value or 0) > 0.4
    assert [arm.name for arm in result.arms] == ["repaired", "control-ce", "control-new"]
    for name in ("report.html", "report.md", "report.json", "adapter/README.md"):
        assert (tmp_path / "demo" / name).stat().st_size > 500
    steps: list[str] = []

    def report(what: str, done: int, total: int, note: str = "") -> None:
        steps.extend([] if note == "stored" else [what])

    again = run_demo("embedded", tmp_path / "demo", progress=report)
    assert str(again) == str(result)
    assert not [what for what in steps if what.startswith(("adapting", "MUSCLE", "control"))]


def test_an_unknown_preset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'smollm2'"):
        run_demo("smolm2", tmp_path)
    assert set(PRESETS) == {"embedded", "smollm2"}
