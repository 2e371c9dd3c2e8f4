from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.conftest import make_record, make_run
from tests.gate_runs import compared, instance, scores, update
from uphold.core.errors import DataError
from uphold.measure.comparison import compare_runs
from uphold.measure.lookups import Lookups
from uphold.measure.slices import DERIVED


def test_flips_in_the_order_of_their_ids(tmp_path: Path) -> None:
    comparison = compared(update(tmp_path, negative=30, positive=5))["task"]
    parts = {(part.tag, part.value): part for part in comparison.slices}
    with Lookups(comparison) as lookups:
        assert lookups.flip_ids(None, most=3) == (instance(0), instance(1), instance(2))
        assert len(lookups.flip_ids(None, most=50)) == 30
        assert lookups.flip_ids(parts["customer", "acme"], most=2) == (instance(0), instance(4))
        # 30 negative flips; the answers that were wrong before stay the same wrong ones.
        assert len(lookups.flip_ids(None, inconsistent=True, most=500)) == 30


def test_every_slice_is_found_again_instance_by_instance(tmp_path: Path) -> None:
    old, new = [], []
    for number in range(200):
        right = number % 3 > 0
        values = [-float(number % 5), -2.0, -3.5, -1.0][: 2 + number % 3]
        if number % 19 == 1:
            # An impossible option: the margin is infinite, or with two of them not a number.
            values[:2] = [[-1.0, -math.inf], [-math.inf, -1.0], [-math.inf, -math.inf]][number % 3]
        changes = {
            "input": "x" * (number % 37 + 1),
            "options": ("right", "wrong", "other", "last")[: len(values)],
            "option_logprobs": tuple(values),
            "tags": {"half": "low"} if number % 2 else {},
        }
        old.append(make_record(number, right, "right" if right else "wrong", **changes))
        new.append(make_record(number, number % 7 > 0, "right" if number % 7 else "wrong", **changes))
    comparison = compare_runs(make_run(tmp_path / "old", old, "v1"), make_run(tmp_path / "new", new, "v2"))
    assert {part.tag for part in comparison.slices} == {"half", *DERIVED}
    with Lookups(comparison) as lookups:
        for part in comparison.slices:
            assert lookups.score_sums(part).count == part.count, part
            assert len(lookups.flip_ids(part, most=500)) == part.negative_flips, part
            assert len(lookups.flip_ids(part, inconsistent=True, most=500)) == part.inconsistent, part


def test_sums_of_continuous_scores(tmp_path: Path) -> None:
    comparison = compared(scores(tmp_path, [-0.25, 0.5, 0.0, 1e-12, None, -0.5]))["task"]
    with Lookups(comparison) as lookups:
        sums = lookups.score_sums(None)
    assert (sums.count, sums.falls, sums.rises) == (5, 2, 1)
    assert sums.total == pytest.approx(-0.25)
    assert sums.squares == pytest.approx(0.25**2 + 0.5**2 + 0.5**2)


def test_sums_by_cluster(tmp_path: Path) -> None:
    comparison = compared(update(tmp_path, count=40, right=30, negative=12, positive=5))["task"]
    with Lookups(comparison) as lookups:
        sums = lookups.cluster_sums("passage", None)
        acme = lookups.cluster_sums("passage", next(part for part in comparison.slices if part.value == "acme"))
    rows = sorted(zip(sums.sizes, sums.falls, sums.rises, sums.inconsistent, sums.totals, sums.squares, strict=True))
    assert rows == [(10, 0, 0, 0, 0, 0), (10, 0, 5, 0, 5, 5), (10, 2, 0, 2, -2, 2), (10, 10, 0, 10, -10, 10)]
    assert (acme.sizes.sum(), acme.falls.sum()) == (10, 3)


def test_clusters_need_the_tag_everywhere_and_two_values(tmp_path: Path) -> None:
    comparison = compared(update(tmp_path, count=8, right=6, negative=1))["task"]
    with Lookups(comparison) as lookups:
        with pytest.raises(DataError, match="8 instances of 'v1' have no tag 'template'"):
            lookups.cluster_sums("template", None)
        with pytest.raises(DataError, match="one cluster by the tag 'passage': at least two"):
            lookups.cluster_sums("passage", None)


def test_what_became_of_kept_instances(tmp_path: Path) -> None:
    old = [make_record(1, True, "a"), make_record(2, False, "b"), make_record(3, True, "c"), make_record(4, True, "d")]
    new = [make_record(1, False, "x"), make_record(2, False, "b"), make_record(3, None, "c"), make_record(5, True, "e")]
    runs = make_run(tmp_path / "old", old, "v1"), make_run(tmp_path / "new", new, "v2")
    comparison = compare_runs(*runs, allow_mismatch=True)
    with Lookups(comparison) as lookups:
        kept = lookups.kept([instance(number) for number in (3, 1, 2, 4, 5, 6)])
        texts = lookups.texts([instance(2), instance(1)])
    assert [(int(one.id, 16), one.scored, one.fell) for one in kept] == [
        (3, False, False),
        (1, True, True),
        (2, True, False),
        (4, False, False),
        (5, False, False),
    ]
    assert (kept[1].old_right, kept[1].new_right, kept[2].old_right) == (True, False, False)
    assert texts == [(instance(2), "question 2", "right", "b", "b"), (instance(1), "question 1", "right", "a", "x")]
