from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.models.test_teacher_cache import ROWS, Only
from uphold.models import teacher_choice
from uphold.models.divergence import ForwardKL
from uphold.models.fingerprint import module_fingerprint
from uphold.models.load import load
from uphold.models.objective import Distillation, FrozenTeacher
from uphold.models.teacher_cache import CachedTeacher, CacheSpec, Cost
from uphold.models.teacher_choice import Plan, keep_teachers


@pytest.fixture(scope="module")
def old(model_v1: Path) -> FrozenTeacher:
    return FrozenTeacher(load(model_v1).model)


@pytest.mark.parametrize(("keep", "asked", "kept"), [("never", 1.0, 0.1), ("auto", 1.0, 0.1), ("auto", 1.0, 0.95)])
def test_teachers_are_kept_where_that_is_faster(
    old: FrozenTeacher,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    keep: Any,
    asked: float,
    kept: float,
) -> None:
    calls = []

    def measured(*_: Any) -> Any:
        calls.append(1)
        return Cost(10, 100 * asked, 100 * kept, 100 * asked, 1)

    monkeypatch.setattr(teacher_choice, "measured_cost", measured)
    plan = Plan(keep, CacheSpec(), 10, tmp_path)
    chosen = []
    for _ in range(2):
        objective = Distillation(Only(ForwardKL()), (old,), "all")
        keep_teachers(objective, ROWS, plan, lambda model: module_fingerprint(model, "")["weights"])
        chosen.append(isinstance(objective.teachers[0], CachedTeacher))
    assert chosen == [keep == "auto" and kept < 0.5] * 2
    assert len(calls) == (keep == "auto")


def test_what_takes_no_time_is_not_kept(old: FrozenTeacher, tmp_path: Path) -> None:
    objective = Distillation(Only(ForwardKL()), (old,), "all")
    keep_teachers(objective, ROWS, Plan("auto", CacheSpec(), 3, tmp_path), lambda model: "x")
    assert objective.teachers == (old,)
    assert not list(tmp_path.glob("*/"))
