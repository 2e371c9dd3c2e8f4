from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uphold.merge.engine.search_choice import MARGIN, Scores, Trial, choose, hopeless


def trial(score: float, nfr: float, stopped: str = "", t: float = 0.5) -> Trial:
    return Trial({"t": t}, 100, score, nfr, stopped)


def test_the_fewest_negative_flips_within_half_a_point() -> None:
    assert choose([trial(0.700, 0.03), trial(0.696, 0.01), trial(0.694, 0.0)]) == 1
    assert choose([trial(0.6, 0.02), trial(0.602, 0.02), trial(0.602, 0.02)]) == 1
    assert choose([trial(0.9, 0.0, stopped="yes"), trial(0.2, 0.5)]) == 1
    assert MARGIN == 0.005


def test_bounds() -> None:
    start = Scores.none([10, 4])
    assert (start.asked, start.left, start.highest, start.lowest) == (0, 14, 1, 0)
    some = start.plus(0, 5, 5, 3.0, 1)
    assert (some.asked, some.left, some.score, some.nfr) == (5, 9, 0.6, 0.2)
    assert some.highest == pytest.approx((0.8 + 1) / 2)
    assert some.lowest == pytest.approx((0.1 + 0) / 2)
    whole = some.plus(0, 5, 5, 3.0, 0).plus(1, 4, 2, 1.0, 1)
    assert whole.left == 0
    assert whole.score == whole.highest == pytest.approx((0.6 + 0.5) / 2)
    assert whole.nfr == whole.lowest == pytest.approx((0.1 + 0.5) / 2)


def test_what_is_given_up_and_why() -> None:
    half = Scores.none([10]).plus(0, 5, 5, 1.0, 2)
    assert half.highest == 0.6
    assert hopeless(half, [trial(0.8, 0.9)]) == "its accuracy cannot come within half a point of t = 0.5"
    assert "cannot be more accurate than t = 0.5" in hopeless(half, [trial(0.6, 0.2)])
    assert not hopeless(half, [trial(0.6, 0.3)])
    assert not hopeless(half, [trial(0.59, 0.1)])
    assert not hopeless(half, [trial(0.8, 0.0, stopped="yes")])
    assert not hopeless(half, [])


def test_trials_come_back_from_json() -> None:
    one = trial(0.5, 0.1, "because", 0.25)
    assert Trial.from_dict(one.to_dict()) == one
    assert str(one) == "t = 0.25: accuracy 50.00%, NFR 10.00%; given up: because"
    assert trial(1, 0).name == "t = 0.5"
    assert Trial({"normalize": True, "int": 3}, 1, 1.0, 0.0).name == "normalize = true, int = 3"


OUTCOMES = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=12, max_size=12)


@settings(max_examples=300, deadline=None)
@given(st.lists(OUTCOMES, min_size=1, max_size=6), st.integers(1, 6))
def test_giving_up_early_never_changes_the_choice(candidates: Any, block: int) -> None:
    """Each outcome: whether the answer is right, and whether the reference's was."""

    def tried(outcomes: Any, earlier: list[Trial]) -> Trial:
        scores, stopped = Scores.none([12]), ""
        for start in range(0, 12, block):
            part = outcomes[start : start + block]
            right = sum(new for new, _ in part)
            falls = sum(old and not new for new, old in part)
            scores = scores.plus(0, len(part), len(part), float(right), falls)
            stopped = hopeless(scores, earlier) if scores.left else ""
            if stopped:
                break
        return Trial({"n": len(earlier)}, scores.asked, scores.score, scores.nfr, stopped)

    early: list[Trial] = []
    for outcomes in candidates:
        early.append(tried(outcomes, early))
    assert choose(early) == choose([tried(outcomes, []) for outcomes in candidates])
