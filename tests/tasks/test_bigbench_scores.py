from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.tasks.bigbench_data import only, write_task
from uphold.tasks.bigbench import bigbench_task


def test_any_of_the_best_options_is_right(tmp_path: Path) -> None:
    task, instance = only(
        tmp_path, {"input": "x", "target_scores": {"a": 0.5, "b": 1, "c": 1, "d": 0}}, "multiple_choice_grade"
    )

    assert instance.target == "b"
    assert task.score_all([instance] * 4, ["a", "b", "c", "d"]) == [
        ("a", False, 0.5), ("b", True, 1.0), ("c", True, 1.0), ("d", False, 0.0)
    ]  # fmt: skip
    assert task.scorer.startswith("bigbench.multiple_choice_grade.v1-")


@pytest.mark.parametrize(
    ("changes", "target", "output", "answer", "correct"),
    [
        ({}, "13", " 13\n", "13", True),
        ({}, "13", "13. And so on", "13", True),
        ({}, "13", "31", "31", False),
        ({}, "a  b", "a b", "a b", True),
        ({}, ["x", "y"], "y", "y", True),
        ({"output_regex": r"[-+]?\d+"}, "-4", "it is -4 or 5", "-4", True),
        ({"output_regex": r"[-+]?\d+"}, "-4", "nothing", "", False),
        ({"output_regex": r"([-+]?\d+)[.]{0,1}$"}, "7", "7.", "7", True),
        ({"output_regex": ""}, "a. b", "a. b", "a. b", True),
        ({"stop_string": "#"}, "Rg5#", "Rg5", "Rg5", True),
        ({"stop_string": "."}, "ello", "ello. More", "ello", True),
    ],
)
def test_exact_matches(
    tmp_path: Path, changes: dict[str, Any], target: Any, output: str, answer: str, correct: bool
) -> None:
    task, instance = only(tmp_path, {"input": "x", "target": target}, **changes)

    assert task.score_all([instance], [output]) == [(answer, correct, float(correct))]


@pytest.mark.parametrize(
    ("metric", "target", "output", "correct", "score"),
    [
        ("case_insensitive_str_match", "Paris", "paris", True, 1.0),
        ("numeric_match_with_0_1_relative_error", "10", "11", True, 1.0),
        ("numeric_match_with_0_1_relative_error", "10", "12", False, 0.0),
        ("numeric_match_with_0_1_relative_error", "-10", "5", False, 0.0),
        ("numeric_match_with_0_1_relative_error", "0", "0.05", True, 1.0),
        ("numeric_match_with_0_1_relative_error", "10", "ten", False, 0.0),
        ("rouge1", ["a b c d", "x"], "a b", None, 2 / 3),
        ("rouge2", "a b c", "a b", None, 2 / 3),
        ("rougeLsum", "a b c d", "a c", None, 2 / 3),
        ("rougeLsum", "runs", "running", None, 0.0),
    ],
)
def test_other_metrics(
    tmp_path: Path, metric: str, target: Any, output: str, correct: bool | None, score: float
) -> None:
    task, instance = only(tmp_path, {"input": "x", "target": target}, metric, output_regex="")

    (found,) = task.score_all([instance], [output])
    assert found.correct is correct
    assert found.score == pytest.approx(score)


def test_answers_that_the_tasks_own_rules_cut_are_counted(tmp_path: Path) -> None:
    examples = [{"input": "x", "target": "a; b"}, {"input": "y", "target": "a"}]
    task = bigbench_task(str(write_task(tmp_path, examples, "exact_str_match")))

    assert task.notes == ("1 of 2 gold answers are cut by the task's own rules, so no model can give them",)
