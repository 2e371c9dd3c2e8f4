from __future__ import annotations

import numpy as np
import pytest

from tests.conftest import make_record
from uphold.core.errors import UsageError
from uphold.core.policy import Limit, Policy
from uphold.core.records import Record
from uphold.measure.watch import Watch, watches
from uphold.tasks.base import Instance


def pair(number: int, old: bool | None, new: bool | None, tag: str = "a") -> tuple[Record, Record]:
    """Answers that are right or wrong; None for a score of 0.5 that is neither."""
    tags = {"kind": tag}
    return (
        make_record(number, old, str(old), 0.5 if old is None else None, tags=tags),
        make_record(number, new, str(new), 0.5 if new is None else None, tags=tags),
    )


def test_a_share_is_kept_after_enough_instances_without_a_flip() -> None:
    watch = Watch.over("max_nfr", 0.05)

    watch.see([pair(n, True, True) for n in range(20)])
    assert watch.verdict(0.05, 1) == "inconclusive"  # 0.95 ** 20 = 0.36

    watch.see([pair(n, True, True) for n in range(20, 200)])
    assert watch.verdict(0.05, 1) == "pass"
    check = watch.check("colours", 0.05, 1)
    assert (check.rule, check.verdict, check.value, check.count, check.flips) == ("max_nfr", "pass", 0.0, 200, ())
    assert check.high is not None
    assert check.high <= 0.05


def test_a_share_is_broken_and_names_its_flips() -> None:
    watch = Watch.over("max_nfr", 0.05)

    watch.see([pair(n, True, n % 2 == 0) for n in range(60)])

    assert watch.verdict(0.05, 3) == "fail"
    check = watch.check("colours", 0.05, 3)
    assert list(check.flips) == [f"{n:016x}" for n in range(1, 41, 2)]
    assert check.low is not None
    assert check.low > 0.05
    assert check.p is not None
    assert check.p <= 0.05


def test_what_was_decided_stays_decided() -> None:
    watch = Watch.over("max_nfr", 0.05)
    watch.see([pair(n, True, True) for n in range(200)])
    watch.see([pair(n, True, False) for n in range(200, 212)])

    assert watch.verdict(0.05, 1) == "pass"


def test_the_margin_takes_scores_of_either_kind() -> None:
    judged, continuous = Watch.over("margin", 0.1), Watch.over("margin", 0.1)

    judged.see([pair(n, n % 2 == 0, n % 2 == 0) for n in range(400)])
    continuous.see([pair(n, None, None) for n in range(400)])

    assert (judged.verdict(0.05, 1), continuous.verdict(0.05, 1)) == ("pass", "pass")
    worse = Watch.over("margin", 0.1)
    worse.see([pair(n, True, n % 2 == 0) for n in range(100)])
    assert worse.verdict(0.05, 1) == "fail"
    assert worse.value == -0.5
    assert "-50.00 points" in worse.check("task", 0.05, 1).reason


def test_equivalence_is_watched_from_both_sides() -> None:
    instances = [Instance(prompt="p", target="t")]
    margin, gain = watches(Policy(limits=(Limit(equivalence=0.1),)), "task", instances)
    for watch in (margin, gain):
        watch.see([pair(n, False, n % 2 == 0) for n in range(100)])

    assert (margin.limit, gain.limit) == (-0.1, 0.1)
    assert (margin.verdict(0.05, 2), gain.verdict(0.05, 2)) == ("pass", "fail")
    assert gain.check("task", 0.05, 2).flips == ()


def test_only_scored_instances_of_the_slice_count() -> None:
    watch = Watch.over("max_inconsistency", 0.5, ("kind", "a"))

    watch.see([pair(1, True, False), pair(2, True, False, "b"), (make_record(3, True, "x"), make_record(3, None, "y"))])

    assert watch.values == {1.0: 1}


def test_a_limit_that_cannot_be_broken_is_refused() -> None:
    with pytest.raises(UsageError, match="max_nfr: 1 can never be broken"):
        Watch.over("max_nfr", 1.0)


def test_inconsistency_needs_right_or_wrong_answers() -> None:
    with pytest.raises(UsageError, match="continuous scores"):
        Watch.over("max_inconsistency", 0.1).see([pair(1, None, None)])


def test_limits_of_a_policy_become_watches() -> None:
    instances = [Instance(prompt=f"{n}", target="t", tags={"kind": "ab"[n % 2]}) for n in range(4)]
    policy = Policy(
        limits=(
            Limit(max_nfr=0.02, margin=0.01),
            Limit(task="col*", slice="kind=*", max_nfr=0.05),
            Limit(task="other", max_nfr=0.5),
        )
    )

    found = watches(policy, "colours", instances)

    assert [(watch.rule, watch.slice, watch.limit) for watch in found] == [
        ("max_nfr", None, 0.02),
        ("margin", None, -0.01),
        ("max_nfr", ("kind", "a"), 0.05),
        ("max_nfr", ("kind", "b"), 0.05),
    ]
    with pytest.raises(UsageError, match=r"unknown slice .* 'kind=c': did you mean"):
        watches(Policy(limits=(Limit(slice="kind=c", max_nfr=0.05),)), "colours", instances)
    with pytest.raises(UsageError, match="says nothing about the task 'colours'"):
        watches(Policy(limits=(Limit(task="other", max_nfr=0.5),)), "colours", instances)


def test_looking_after_every_chunk_rarely_errs() -> None:
    """An update at its limit is passed, and one within it failed, at most alpha of the time."""
    draw = np.random.default_rng(0)
    passed = failed = 0
    for _ in range(200):
        watch = Watch.over("max_nfr", 0.1)
        for flips in draw.random((10, 50)) < 0.1:
            watch.see([pair(n, True, not flip) for n, flip in enumerate(flips)])
        passed += watch.verdict(0.1, 1) == "pass"
        failed += watch.verdict(0.1, 1) == "fail"
    assert passed <= 32  # 20 expected at most; more than 32 has a chance of 0.5%
    assert failed <= 32
