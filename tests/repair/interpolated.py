"""Tiny adapted models for the tests of repairs by interpolation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import write_task
from uphold.core.runs import RunStore
from uphold.measure.evaluate import evaluate
from uphold.repair import AdaptConfig, Repair, adapt

TINY = AdaptConfig(epochs=2, learning_rate=5e-3, warmup_steps=2, batch_size=16, micro_batch=16, rank=4, alpha=6)


@dataclass(frozen=True)
class Scene:
    """Three adapted models: `old` and `new` on one base, `other` on another one."""

    folder: Path
    task: Path
    old: str
    new: str
    other: str


def make_scene(folder: Path, model_v1: Path, model_v2: Path) -> Scene:
    from dataclasses import replace

    task = write_task(folder, 120)
    made = [
        adapt(base, task, out=folder / name, config=replace(TINY, seed=seed)).reference
        for name, base, seed in (("old", model_v1, 0), ("new", model_v1, 1), ("other", model_v2, 0))
    ]
    return Scene(folder, task, *made)


def check_reloaded(result: Repair, reference: str, task: Path, tmp_path: Path) -> None:
    """The saved artifact, read by its reference and asked again, gives the very records of the repair."""
    again = evaluate(reference, task, store=RunStore(tmp_path / "again"))
    assert list(again.records()) == list(result.repaired.comparison.new.records())


def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where a point is measured or an artifact made."""

    def fail(*_: Any) -> None:
        pytest.fail("made again")

    monkeypatch.setattr("uphold.repair.interpolation._Search._measured", fail)
    monkeypatch.setattr("uphold.repair.interpolation._Search._save", fail)
