from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from uphold.report.data import gather
from uphold.report.text import short
from uphold.report.verdict import remarks, verdict

Save = Callable[..., Path]


def test_verdict_of_a_repair(save_repair: Save) -> None:
    data = gather(save_repair())
    assert verdict(data) == (
        "The update gains 5.0 points of accuracy (42.5% → 47.5%) and breaks 10.0% of instances; "
        "MUSCLE brings that down to 7.5% (−25.0%) at 50.0% accuracy."
    )
    assert remarks(data) == (
        "The change of accuracy is within chance (exact McNemar p = 0.75).",
        "The NFR of the plain update is beyond its noise floor of 0.0% (the old model against itself).",
        f"With 40 instances an NFR of {short(data.before.smallest_visible_nfr)} would be seen with 80% power.",
        "The accuracy of MUSCLE is 2.5 points above that of the plain update.",
        "The repair fixes 2 of 4 negative flips and newly breaks 1: a difference within chance (exact McNemar p = 1).",
    )


def test_verdict_of_a_comparison_without_flips(save_comparison: Save) -> None:
    data = gather(save_comparison(again=False, outcomes=[(True, True), (False, False), (False, False)]))
    assert verdict(data) == "The update leaves accuracy at 33.3% and breaks no instance."
    assert "No noise floor was measured" in remarks(data)[1]


def test_verdict_when_the_repair_makes_it_worse(save_repair: Save) -> None:
    outcomes = [(True, False, False), (True, True, False), (True, True, True), (True, True, True)]
    assert verdict(gather(save_repair(outcomes=outcomes))) == (
        "The update loses 25.0 points of accuracy (100.0% → 75.0%) and breaks 25.0% of instances; "
        "MUSCLE raises that to 50.0% (+100.0%) at 50.0% accuracy."
    )


def test_verdict_when_the_repair_changes_nothing(save_repair: Save) -> None:
    data = gather(save_repair(outcomes=[(True, False, False), (True, True, True)]))
    assert verdict(data).endswith("; MUSCLE leaves that at 50.0%, at 50.0% accuracy.")


def test_verdict_of_continuous_scores(save_scores: Save) -> None:
    data = gather(save_scores([0.5, 0.5, 0.5, 0.5], [0.4, 0.9, 0.5, 0.5]))
    assert (
        verdict(data)
        == "The update gains 0.075 of mean score (0.500 → 0.575) and lowers the score of 25.0% of instances."
    )


def test_the_test_of_continuous_scores_is_named(save_scores: Save) -> None:
    line = remarks(gather(save_scores([0.5, 0.5, 0.5, 0.5], [0.4, 0.9, 0.5, 0.5])))[0]
    assert line.startswith("The change of the mean score is within chance (sign-flip permutation test p = ")


def test_what_cannot_be_seen_is_not_promised(save_comparison: Save) -> None:
    data = gather(save_comparison())
    assert not [
        line
        for line in remarks(replace(data, before=replace(data.before, smallest_visible_nfr=None)))
        if "power" in line
    ]
