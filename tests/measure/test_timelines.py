from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import make_record, make_run
from uphold.core.errors import DataError
from uphold.core.runs import Run
from uphold.measure.pairs import TIE
from uphold.measure.timelines import KINDS, changes, kind, timelines


def judged_runs(folder: Path, patterns: list[str]) -> list[Run]:
    """One run per version; `patterns[i]` says where instance i is right."""
    return [
        make_run(
            folder / f"v{k}",
            [make_record(i, pattern[k] == "1", f"said {pattern[k]}") for i, pattern in enumerate(patterns)],
            f"v{k}",
        )
        for k in range(len(patterns[0]))
    ]


def score_runs(folder: Path, scores: list[list[float | None]]) -> list[Run]:
    """One run per version of continuous scores; `scores[k][i]` is version k's on instance i."""
    return [
        make_run(folder / f"v{k}", [make_record(i, None, f"v{k}", score) for i, score in enumerate(column)], f"v{k}")
        for k, column in enumerate(scores)
    ]


patterns_of = st.integers(2, 5).flatmap(
    lambda n: st.lists(st.text(alphabet="01", min_size=n, max_size=n), min_size=1, max_size=24)
)


@pytest.mark.parametrize(
    ("pattern", "expected", "turns"),
    [
        ("111", "kept", 0),
        ("000", "never", 0),
        ("001", "gained", 1),
        ("101", "recovered", 2),
        ("0101", "recovered", 3),
        ("110", "lost", 1),
        ("0100", "lost", 2),
    ],
)
def test_kinds_and_changes(pattern: str, expected: str, turns: int) -> None:
    assert (kind(pattern), changes(pattern)) == (expected, turns)


@settings(max_examples=15, deadline=None)
@given(patterns=patterns_of)
def test_counts_are_those_of_a_plain_loop(tmp_path_factory: pytest.TempPathFactory, patterns: list[str]) -> None:
    runs = judged_runs(tmp_path_factory.mktemp("runs"), patterns)
    versions = len(runs)
    pairs = [(i, j) for j in range(versions) for i in range(j)]
    with timelines(runs) as lines:
        assert (lines.judged, lines.count, lines.joined) == (True, len(patterns), len(patterns))
        assert [mean for mean, _ in lines.means()] == pytest.approx(
            [sum(pattern[k] == "1" for pattern in patterns) / len(patterns) for k in range(versions)]
        )
        assert lines.flips(pairs) == {
            (i, j): tuple(sum(p[i] + p[j] == turn for p in patterns) for turn in ("10", "01")) for i, j in pairs
        }
        assert lines.debts() == [sum(p[k] == "0" and "1" in p[:k] for p in patterns) for k in range(versions)]
        assert lines.kinds() == {name: sum(kind(p) == name for p in patterns) for name in KINDS}
        lost = [p for p in patterns if kind(p) == "lost"]
        assert lines.broken_since() == [sum(p.rindex("1") + 1 == k for p in lost) for k in range(versions)]
        often = Counter(changes(p) for p in patterns if changes(p) >= 2)
        assert lines.oscillating() == dict(often)
        shown, total = lines.patterns(1000)
        assert (dict(shown), total) == (dict(Counter(patterns)), len(set(patterns)))
        told = lines.instances(1000)
    assert sorted(int(entry.id, 16) for entry in told) == [
        i for i, p in enumerate(patterns) if changes(p) >= 2 or kind(p) == "lost"
    ]
    for entry in told:
        assert entry.pattern == patterns[int(entry.id, 16)]
        assert [answer.text for answer in entry.answers] == [f"said {mark}" for mark in entry.pattern]
        assert [answer.correct for answer in entry.answers] == [mark == "1" for mark in entry.pattern]


def test_instances_come_in_order_and_up_to_a_limit_of_each_sort(tmp_path: Path) -> None:
    runs = judged_runs(tmp_path, ["1010", "1101", "1110", "1000", "1111", "0101", "1011"])
    with timelines(runs) as lines:
        assert [entry.pattern for entry in lines.instances(10)] == ["0101", "1010", "1101", "1011", "1110", "1000"]
        assert [entry.pattern for entry in lines.instances(1)] == ["0101", "1110"]
        assert lines.patterns(2)[1] == 7


def test_continuous_scores_hold_while_no_earlier_version_scored_higher(tmp_path: Path) -> None:
    scores: list[list[float | None]] = [
        [0.5, 0.5, 0.5, 0.5],
        [0.7, 0.4, 0.5, 0.5 - TIE / 2],
        [0.6, 0.5, 0.4, 0.5],
    ]
    with timelines(score_runs(tmp_path, scores)) as lines:
        assert not lines.judged
        assert dict(lines.patterns(9)[0]) == {"110": 2, "101": 1, "111": 1}
        assert lines.flips([(0, 1), (1, 2), (0, 2)]) == {(0, 1): (1, 1), (1, 2): (2, 1), (0, 2): (1, 1)}
        assert lines.debts() == [0, 1, 2]
        mean, deviation = lines.means()[1]
    assert mean == pytest.approx((0.7 + 0.4 + 0.5 + 0.5) / 4)
    assert deviation == pytest.approx(0.1258306, rel=1e-5)


def test_partial_credit_does_not_make_a_judged_task_continuous(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / name, [make_record(0, right, "x", 0.3), make_record(1, True, "y", 1.0)], name)
        for name, right in (("a", True), ("b", False))
    ]
    with timelines(runs) as lines:
        assert dict(lines.patterns(9)[0]) == {"10": 1, "11": 1}


def test_what_lacks_a_score_somewhere_is_left_out(tmp_path: Path) -> None:
    with timelines(score_runs(tmp_path, [[0.1, None, float("nan"), 0.5], [0.1, 0.2, 0.3, None]])) as lines:
        assert (lines.joined, lines.count) == (4, 1)


def test_a_folder_may_have_any_name(tmp_path: Path) -> None:
    judged_runs(tmp_path / "it's v x=1", ["00", "00", "00"])
    judged_runs(tmp_path / "it's vv? x=1", ["00", "00", "00"])
    with timelines(judged_runs(tmp_path / "it's [v]*? x=1", ["10", "11"])) as lines:
        assert dict(lines.patterns(9)[0]) == {"10": 1, "11": 1}


def test_records_that_cannot_be_read_are_one_line(tmp_path: Path) -> None:
    runs = judged_runs(tmp_path, ["10", "11"])
    runs[1].records_path.write_bytes(b"PAR1 broken PAR1")
    with pytest.raises(DataError, match="cannot be joined"), timelines(runs):
        pass
