from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from uphold.report.data import gather
from uphold.report.instances import read_instances, repair_effect
from uphold.report.text import clip

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


def test_quotes_and_wildcards_in_a_folder_name_are_only_characters(save_repair: Save) -> None:
    save_repair("it's at")
    assert gather(save_repair("it's [a]*")).instances.total == 40


def test_the_others_are_an_even_sample(save_comparison: Save) -> None:
    """Not the first ids only, and of both kinds: both wrong and both right."""
    outcomes = [(True, False)] * 3 + [(True, True)] * 200 + [(False, False)] * 200
    rows = gather(save_comparison(outcomes=outcomes), limit=103).instances.rows
    assert [row.kind for row in rows[:3]] == ["negative"] * 3
    right = [row for row in rows if row.kind == "both_right"]
    assert len(rows) == 103
    assert 30 < len(right) < 70
    assert max(int(row.id, 16) for row in right) > 150


@pytest.mark.parametrize("length", [0, 100, 2419, 2420, 2421, 5000])
def test_long_texts_are_cut_as_clip_does(save_comparison: Save, length: int) -> None:
    text = "".join(chr(0x4E00 + n % 500) for n in range(length))
    instances = gather(save_comparison(text=text)).instances
    assert instances.limits == (2000, 1000)
    row = instances.rows[0]
    assert row.input == clip(f"question 12{text}", 2000)
    assert row.answers[0].text == clip(f"red{text}", 1000)


def test_texts_are_cut_further_when_there_are_many(save_comparison: Save) -> None:
    comparison = gather(save_comparison(text="x" * 3000)).before
    found = {
        budget: read_instances(comparison.old, comparison.new, None, True, budget=budget).limits
        for budget in (10**9, 80_000, 30_000, 10)
    }
    assert found == {10**9: (2000, 1000), 80_000: (1000, 500), 30_000: (200, 100), 10: (200, 100)}


def test_options_and_their_likelihoods_come_along(save_comparison: Save) -> None:
    row = gather(save_comparison()).instances.rows[0]
    assert row.options == ("red", "green", "blue")
    assert row.answers[0].logprobs == pytest.approx((-1.0, -2.0, -4.0))
    assert gather(save_comparison("bare", logprobs=False)).instances.rows[0].answers[0].logprobs == ()


def test_kinds_before_and_after_a_repair(save_repair: Save) -> None:
    rows = gather(save_repair()).instances.rows
    fixed = next(row for row in rows if row.effect == "fixed")
    assert (fixed.kind, fixed.after) == ("negative", "both_right")
    assert {row.after for row in rows if row.effect == "newly broken"} == {"negative"}


def test_an_output_equal_to_its_answer_is_said_once(save_comparison: Save) -> None:
    assert {answer.output for row in gather(save_comparison()).instances.rows for answer in row.answers} == {None}
