from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from uphold.measure.slices import DERIVED, LENGTH
from uphold.report import explorer
from uphold.report.data import gather
from uphold.report.derived import with_derived

Save = Callable[..., Path]


def test_every_derived_slice_holds_as_many_rows_as_it_counts(save_comparison: Save) -> None:
    data = gather(save_comparison())
    tags = explorer.row_tags(data)
    derived = [pair.before for pair in data.slices if pair.before.tag in DERIVED]
    assert {part.tag for part in derived} >= {LENGTH, "old margin"}
    for part in derived:
        assert sum(own.get(part.tag) == part.value for own in tags) == part.count, part


def test_a_tag_of_the_same_name_stays_what_it_is(save_comparison: Save) -> None:
    data = gather(save_comparison())
    rows = [replace(row, tags={LENGTH: "short"}) for row in data.instances.rows]
    assert {own[LENGTH] for own in with_derived(rows, [pair.before for pair in data.slices])} == {"short"}
