from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.conftest import make_record, make_run
from uphold.measure.paired_records import SCORED, paired_records


@pytest.mark.parametrize(
    ("target", "options", "logprobs", "margin"),
    [
        ("b", ("a", "b", "c"), (-3.0, -1.0, -1.5), 0.5),
        ("a", ("a", "b", "c"), (-3.0, -1.0, -1.5), -2.0),
        ("d", ("a", "b", "c"), (-3.0, -1.0, -1.5), None),  # the gold text is no option
        ("a", ("a",), (-3.0,), None),
        ("a", ("a", "b"), (), None),
        ("b", ("a", "b"), (-math.inf, -1.0), math.inf),
    ],
)
def test_the_gold_margin(
    target: str, options: tuple[str, ...], logprobs: tuple[float, ...], margin: float | None, tmp_path: Path
) -> None:
    record = make_record(1, True, "a", target=target, options=options, option_logprobs=logprobs)
    run = make_run(tmp_path / "run", [record])

    with paired_records(run, run) as connection:
        found = connection.execute("SELECT gold_margin(options, target, option_logprobs) FROM old_run").fetchall()

    assert found == [(margin,)]


def test_scored_means_scored_in_both(tmp_path: Path) -> None:
    scores = [(0.0, 1.0), (None, 1.0), (1.0, None), (math.nan, 1.0)]
    runs = [
        make_run(tmp_path / str(side), [make_record(n, None, "a", pair[side]) for n, pair in enumerate(scores)])
        for side in (0, 1)
    ]

    with paired_records(*runs) as connection:
        query = f"SELECT {SCORED} FROM old_run o JOIN new_run n USING (id) ORDER BY id"
        found = connection.execute(query).fetchall()

    assert found == [(True,), (False,), (False,), (False,)]
