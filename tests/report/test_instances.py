from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from uphold.report.data import gather
from uphold.report.instances import repair_effect, spread_out

Save = Callable[..., Path]


def test_every_instance_is_counted_once(save_repair: Save) -> None:
    instances = gather(save_repair()).instances
    assert instances.total == 40
    assert instances.kinds == {"negative": 4, "positive": 6, "both_wrong": 17, "both_right": 13}
    assert instances.effects == {
        "fixed": 2,
        "still broken": 2,
        "newly broken": 1,
        "gain kept": 5,
        "gain lost": 1,
        "extra gain": 1,
        "stays right": 12,
        "stays wrong": 16,
    }


def test_flips_come_first_and_survive_the_limit(save_repair: Save) -> None:
    rows = gather(save_repair(), limit=6).instances.rows
    assert [row.kind for row in rows] == ["negative"] * 4 + ["both_right", "positive"]
    assert rows[4].effect == "newly broken"
    assert [row.id for row in rows[:4]] == sorted(row.id for row in rows[:4])


def test_margin_is_gold_against_the_best_other_option(save_comparison: Save) -> None:
    row = gather(save_comparison()).instances.rows[0]
    assert row.id == f"{12:016x}"
    old, new = row.answers
    assert (old.correct, new.correct) == (True, False)
    assert old.margin == pytest.approx(1.0)
    assert new.margin == pytest.approx(-1.0 - (-0.5 - 0.12))


def test_scatter_uses_margins_where_there_are_log_likelihoods(save_repair: Save) -> None:
    instances = gather(save_repair()).instances
    assert instances.before is not None
    assert instances.after is not None
    assert instances.before.margins
    assert len(instances.before.old) == 40
    right = instances.before.old > 0
    assert int(right.sum()) == 17


def test_there_is_no_scatter_of_zeros_and_ones(save_comparison: Save) -> None:
    assert gather(save_comparison(logprobs=False)).instances.before is None


def test_continuous_scores_flip_by_their_difference(save_scores: Save) -> None:
    instances = gather(save_scores([0.5, 0.5, 0.5, None], [0.4, 0.6, 0.5, 0.7])).instances
    assert instances.kinds == {"negative": 1, "positive": 1, "tie": 1, "unscored": 1}
    assert [row.kind for row in instances.rows] == ["negative", "positive", "tie", "unscored"]
    assert instances.before is not None
    assert not instances.before.margins
    np.testing.assert_allclose(instances.before.new, [0.4, 0.6, 0.5])


@pytest.mark.parametrize(
    ("kind", "after", "effect"),
    [
        ("negative", "both_right", "fixed"),
        ("negative", "tie", "fixed"),
        ("tie", "negative", "newly broken"),
        ("positive", "negative", "newly broken"),
        ("positive", "tie", "gain lost"),
        ("tie", "tie", "unchanged"),
        ("both_right", "unscored", "not scored"),
    ],
)
def test_repair_effect(kind: str, after: str, effect: str) -> None:
    assert repair_effect(kind, after) == effect


def test_a_quote_in_the_folder_name_is_only_a_quote(save_comparison: Save) -> None:
    assert gather(save_comparison("it's here")).instances.total == 40


def test_equal_points_are_spread_into_discs_by_number() -> None:
    x, y = np.array([0.0] * 90 + [1.0] * 10), np.array([1.0] * 90 + [0.0] * 10)
    spread_x, spread_y, spread = spread_out(x, y)
    assert spread
    distance = np.hypot(spread_x - x, spread_y - y)
    assert distance.max() < 0.12
    assert distance[90:].max() < distance[:90].max() / 2
    assert len(set(zip(spread_x, spread_y, strict=True))) == 100
    again = spread_out(np.linspace(0, 1, 50), np.linspace(0, 1, 50))
    assert not again[2]
    assert not spread_out(np.array([]), np.array([]))[2]
