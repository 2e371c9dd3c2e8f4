from __future__ import annotations

from pathlib import Path

from tests.measure.test_history import PATTERNS
from tests.measure.test_timelines import judged_runs, score_runs
from uphold.measure.history import history
from uphold.measure.history_text import marks


def test_the_summary_says_what_was_counted(tmp_path: Path) -> None:
    text = str(history(judged_runs(tmp_path, PATTERNS)))
    lines = text.splitlines()
    assert lines[0] == "task: 10 instances, 4 versions"
    assert lines[4].split()[:3] == ["3", "v2", "50.00%"]
    assert lines[4].split()[-4:] == ["20.00%", "30.00%", "(2)", "40.00%"]
    assert "        3  lost       right in an earlier version, wrong in the last one" in lines
    assert "4 instances change twice or more; those with most changes:" in lines
    assert "  ✓✗✓✗  0000000000000004  question 4" in lines
    assert not any(line.endswith(" ") for line in lines)


def test_continuous_scores_know_neither_never_nor_gained(tmp_path: Path) -> None:
    text = str(history(score_runs(tmp_path, [[0.2, 0.4], [0.3, 0.3]])))
    assert "mean score" in text
    assert "never" not in text
    assert "in the last version below an earlier one" in text
    assert "no instance changes twice" in text


def test_marks() -> None:
    assert marks("1101") == "✓✓✗✓"
