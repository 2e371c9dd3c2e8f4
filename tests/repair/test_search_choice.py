from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import make_record, make_run
from uphold.core.errors import DataError, UsageError
from uphold.core.runs import Run
from uphold.core.stats import MarginTest, non_inferiority_paired
from uphold.repair.search_choice import Candidate, candidate, choose, ranked, tier


def made(
    name: str, nfr: float, score: float, holds: bool = False, high: float = 0.1, plain: float = 0.7, changed: int = 50
) -> Candidate:
    return Candidate(
        name, 1000, score, nfr, plain, 0.06, changed, MarginTest(0.01 if holds else 0.3, -0.02, high, holds), 0.005
    )


def binary(folder: Path, name: str, right: set[int], count: int = 10) -> Run:
    return make_run(folder / name, [make_record(i, i in right, "x") for i in range(count)], name, split="validation")


def test_a_candidate_counts_flips_against_old_and_accuracy_against_new(tmp_path: Path) -> None:
    old, new = binary(tmp_path, "old", set(range(6))), binary(tmp_path, "new", set(range(2, 8)))
    one = candidate("one", old, new, binary(tmp_path, "one", {1, 2, 3, 4, 5, 6, 8}))
    assert (one.count, one.score, one.nfr) == (10, 0.7, 0.1)
    assert (one.plain_score, one.plain_nfr, one.changed) == (0.6, 0.2, 3)
    assert one.test == non_inferiority_paired(both_right=5, negative=1, positive=2, both_wrong=2, margin=0.005)


def test_scores_between_0_and_1_use_a_test_that_needs_no_counts(tmp_path: Path) -> None:
    def scores(name: str, values: list[float]) -> Run:
        records = [make_record(i, None, "x", score=value) for i, value in enumerate(values)]
        return make_run(tmp_path / name, records, name, split="validation")

    old, new = scores("old", [0.5] * 100), scores("new", [0.4, 0.7] * 50)
    one = candidate("one", old, new, scores("one", [0.6, 0.9] * 50), margin=0.05)
    assert (one.plain_nfr, one.nfr) == (0.5, 0.0)
    assert one.score == pytest.approx(0.75)
    assert one.test.holds
    assert one.standing == "kept"


def test_standings() -> None:
    assert made("kept", 0.05, 0.69, holds=True).standing == "kept"
    assert made("level", 0.05, 0.70).standing == "level"
    assert made("near", 0.05, 0.695).standing == "near"
    assert made("below", 0.05, 0.694).standing == "below"
    assert made("lost", 0.05, 0.60, high=-0.01).standing == "lost"


def test_the_lowest_nfr_of_the_admissible_is_chosen() -> None:
    inert = made("inert", 0.058, 0.701, holds=True, changed=3)
    level = made("level", 0.030, 0.700)
    near = made("near", 0.020, 0.699)
    below = made("below", 0.010, 0.690)
    lost = made("lost", 0.000, 0.500, high=-0.1)
    worse = made("worse", 0.060, 0.750, holds=True)
    everything = [inert, level, near, below, lost, worse]
    assert choose(everything) is level
    assert choose(everything, strict=True) is inert
    assert choose([near, below, lost, worse]) is near
    assert choose([near, below, lost, worse], strict=True) is None
    assert choose([below, lost, worse]) is None
    assert [tier(one) for one in everything] == [0, 0, 1, None, None, None]
    assert [one.name for one in ranked(everything)] == ["level", "inert", "near", "worse", "below", "lost"]


def test_of_equals_the_more_accurate_then_the_earlier() -> None:
    first, second, better = (made(name, 0.03, score) for name, score in (("a", 0.7), ("b", 0.7), ("c", 0.71)))
    assert choose([first, second]) is first
    assert choose([second, first, better]) is better


def test_how_many_instances_would_show_it() -> None:
    """d = 0.08 of 1,000 instances changed: n = 0.08 (1.645 / 0.005)^2 = 8,658."""
    one = made("one", 0.03, 0.7, changed=80)
    assert one.needed == 8658
    n = 8658
    half = round(0.04 * n)
    shown = non_inferiority_paired(n - 2 * half - 1000, half, half, 1000, 0.005)
    assert shown.p == pytest.approx(0.05, abs=0.01)
    assert made("none", 0.03, 0.7, changed=0).needed is None


def test_impossible_margins_and_empty_runs_are_refused(tmp_path: Path) -> None:
    old, new = binary(tmp_path, "old", {1}), binary(tmp_path, "new", {2})
    with pytest.raises(UsageError, match="margin"):
        candidate("one", old, new, new, margin=1.0)
    nothing = make_run(tmp_path / "none", [make_record(i, None, "x") for i in range(10)], "none")
    with pytest.raises(DataError, match="no validation instance is scored"):
        candidate("one", old, new, nothing)
