from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import make_record, make_run
from tests.gate_runs import compared, instance, scores, update
from uphold.core import stats
from uphold.core.errors import DataError, UsageError
from uphold.core.policy import Policy
from uphold.core.runs import write_run
from uphold.measure.comparison import Comparison, compare_runs
from uphold.measure.gate import Check, GateResult, gate


def policy(**values: Any) -> Policy:
    return Policy.model_validate(values)


def decide(comparisons: dict[str, Comparison], **values: Any) -> GateResult:
    return gate(policy(**values), comparisons)


def verdicts(result: GateResult) -> list[tuple[str | None, str, str]]:
    return [(check.slice, check.rule, check.verdict) for check in result.checks]


def test_every_rule_on_a_task_and_a_slice(tmp_path: Path) -> None:
    found = compared(update(tmp_path, count=1000, right=800, negative=20, positive=60))
    result = decide(
        found,
        limits=[
            {"max_nfr": "4%", "margin": "1%", "max_inconsistency": "5%"},
            {"slice": "customer=acme", "max_nfr": "1%", "margin": "1%"},
        ],
    )
    assert verdicts(result) == [
        (None, "max_nfr", "pass"),
        (None, "margin", "pass"),
        (None, "max_inconsistency", "pass"),
        ("customer=acme", "max_nfr", "inconclusive"),
        ("customer=acme", "margin", "pass"),
    ]
    assert (result.verdict, result.exit_code) == ("inconclusive", 3)
    whole, margin = result.checks[0], result.checks[1]
    assert (whole.value, whole.count, whole.limit) == (0.02, 1000, 0.04)
    assert whole.high == stats.proportion_upper_bound(20, 1000)
    assert margin.value == pytest.approx(0.04)
    assert margin.low == stats.non_inferiority_paired(780, 20, 60, 140, 0.01).low
    assert margin.limit == -0.01
    # 5 of 250: at 2% no number of instances shows 1%.
    assert result.checks[3].needed is None
    assert "no number of instances would pass" in result.checks[3].reason


def test_a_broken_limit_fails_and_names_its_flips(tmp_path: Path) -> None:
    result = decide(compared(update(tmp_path, negative=40)), limits=[{"max_nfr": "2%", "margin": "2%"}])
    nfr, margin = result.checks
    assert (nfr.verdict, margin.verdict, result.verdict, result.exit_code) == ("fail", "fail", "fail", 1)
    assert nfr.flips == tuple(instance(number) for number in range(20))
    assert margin.flips == nfr.flips
    assert nfr.low is not None
    assert nfr.low > 0.02
    assert nfr.p is not None
    assert nfr.p <= 0.05
    assert "40 negative flips in 400 (10.00%): at least 7.6" in nfr.reason
    assert "above 2.00% (p < 0.0001, corrected for 2 limits)" in nfr.reason


def test_equivalence_is_two_one_sided_tests(tmp_path: Path) -> None:
    like = decide(compared(update(tmp_path / "1", 2000, 1000, 20, 20)), limits=[{"equivalence": "2%"}])
    better = decide(compared(update(tmp_path / "2", 2000, 1000, 20, 200)), limits=[{"equivalence": "2%"}])
    unclear = decide(compared(update(tmp_path / "3", 200, 100, 5, 8)), limits=[{"equivalence": "3%", "margin": "1%"}])

    assert verdicts(like) == [(None, "margin", "pass"), (None, "max_gain", "pass")]
    assert verdicts(better) == [(None, "margin", "pass"), (None, "max_gain", "fail")]
    assert "accuracy +9.00 points" in better.checks[1].reason
    assert "higher at 95% confidence, beyond the margin of 2.00 points" in better.checks[1].reason
    assert (better.checks[1].limit, better.checks[1].flips) == (0.02, ())
    assert "<= +2.00%" in str(better)
    assert verdicts(unclear) == [(None, "margin", "inconclusive"), (None, "max_gain", "inconclusive")]
    assert [check.limit for check in unclear.checks] == [-0.01, 0.03]


@pytest.mark.parametrize("cluster", [None, "passage"])
@pytest.mark.parametrize("continuous", [True, False])
def test_the_way_back_turns_a_gain_into_a_loss(tmp_path: Path, cluster: str | None, continuous: bool) -> None:
    old, new = scores(tmp_path, [0.1] * 60 + [-0.2] * 40) if continuous else update(tmp_path, negative=10, positive=30)
    there, back = (
        decide(compared(pair, cluster=cluster), limits=[{"equivalence": "4%"}], cluster=cluster)
        for pair in ((old, new), (new, old))
    )

    for one, other in zip(there.checks, reversed(back.checks), strict=True):
        assert one.verdict == other.verdict
        assert one.p == pytest.approx(other.p)
        assert (one.value, one.low, one.high) == pytest.approx((-other.value, -other.high, -other.low))  # type: ignore[operator]


def test_too_little_data_is_neither_pass_nor_fail(tmp_path: Path) -> None:
    found = compared(update(tmp_path, count=40, right=30))
    result = decide(found, limits=[{"max_nfr": "2%", "margin": "2%"}])
    assert (result.verdict, result.exit_code) == ("inconclusive", 3)
    assert [check.needed for check in result.checks] == [149, 149]
    assert "about 149 instances would pass at this rate" in result.checks[0].reason
    allowed = gate(policy(limits=[{"max_nfr": "2%"}]), found, allow_inconclusive=True)
    assert (allowed.verdict, allowed.exit_code) == ("inconclusive", 0)
    assert str(allowed).endswith("gate INCONCLUSIVE (allowed): 1 inconclusive of 1 checks")


def test_a_failure_must_survive_the_correction(tmp_path: Path) -> None:
    # 10 flips of 100 acme instances against 5%: p = 0.028 alone, too much for two limits.
    found = compared(update(tmp_path, count=400, right=300, negative=40))
    alone = decide(found, limits=[{"slice": "customer=acme", "max_nfr": "5%"}])
    assert verdicts(alone) == [("customer=acme", "max_nfr", "fail")]
    two = decide(found, limits=[{"slice": "customer=acme", "max_nfr": "5%"}, {"max_nfr": "50%"}])
    assert verdicts(two) == [("customer=acme", "max_nfr", "inconclusive"), (None, "max_nfr", "pass")]
    assert "broken if looked at alone, but not after the correction for 2 limits (p = 0.056)" in two.checks[0].reason


def test_limits_choose_tasks_and_slices_by_pattern(tmp_path: Path) -> None:
    found = {
        **compared(update(tmp_path / "a", name="demo-a")),
        **compared(update(tmp_path / "b", name="demo-b")),
        **compared(update(tmp_path / "c", name="other")),
    }
    result = decide(found, limits=[{"task": "demo-*", "slice": "customer=*", "max_nfr": "5%"}])
    assert [(check.task, check.slice) for check in result.checks] == [
        ("demo-a", "customer=acme"),
        ("demo-a", "customer=others"),
        ("demo-b", "customer=acme"),
        ("demo-b", "customer=others"),
    ]
    derived = decide(found, limits=[{"task": "other", "slice": "input length=*", "max_nfr": "5%"}])
    assert all(str(check.slice).endswith("characters") for check in derived.checks)
    assert sum(check.count for check in derived.checks) == 400
    # A loose limit does not lift a strict one; the same limit twice is one.
    both = decide(found, limits=[{"task": "other", "max_nfr": "5%"}, {"max_nfr": "5%"}, {"max_nfr": "50%"}])
    assert [(check.task, check.limit) for check in both.checks if check.task == "other"] == [
        ("other", 0.05),
        ("other", 0.5),
    ]


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ({"task": "dmeo", "max_nfr": 0.1}, "unknown task in the policy's limits 'dmeo': did you mean 'demo'?"),
        ({"task": "x*", "max_nfr": 0.1}, "unknown task in the policy's limits 'x\\*': known: demo, plain."),
        ({"task": "demo", "slice": "customer=acne", "max_nfr": 0.1}, "did you mean 'customer=acme'?"),
        ({"slice": "customer=acme", "max_nfr": 0.1}, "unknown slice of the task 'plain' in the policy's limits"),
    ],
)
def test_a_limit_that_matches_nothing_is_an_error(tmp_path: Path, limit: dict[str, Any], message: str) -> None:
    bare = [make_record(number, number > 2, "x") for number in range(9)]
    plain = [make_run(tmp_path / name, bare, name, name="plain") for name in ("one", "two")]
    found = compared(update(tmp_path, name="demo")) | {"plain": compare_runs(plain[0], plain[1])}
    with pytest.raises(UsageError, match=message):
        decide(found, limits=[limit])


def test_nothing_to_gate_is_an_error() -> None:
    with pytest.raises(UsageError, match="nothing to gate"):
        gate(policy(must_keep=["a"]), {})


def test_must_keep_instances_may_not_flip(tmp_path: Path) -> None:
    found = compared(update(tmp_path, negative=3))
    kept = decide(found, must_keep=[instance(7), instance(8)])
    assert (kept.verdict, kept.checks[0].reason) == ("pass", "none of 2 must-keep instances flips against the policy")
    broken = decide(found, limits=[{"max_nfr": "5%"}], must_keep=[instance(7), instance(1)])
    assert verdicts(broken) == [(None, "max_nfr", "pass"), (None, "must_keep", "fail")]
    [check] = [check for check in broken.checks if check.rule == "must_keep"]
    assert (check.value, check.limit, check.count, check.low, check.high) == (1, 0, 2, None, None)
    assert check.flips == (instance(1),)
    assert broken.exit_code == 1


def test_must_keep_instances_that_were_wrong_already_are_noted(tmp_path: Path) -> None:
    result = decide(compared(update(tmp_path, positive=1)), must_keep=[instance(300), instance(301), instance(2)])
    assert result.verdict == "pass"
    assert f"task: must-keep instance {instance(300)} is wrong with the old model already; new: right" in result.notes
    assert f"task: must-keep instance {instance(301)} is wrong with the old model already; new: wrong" in result.notes


def test_must_keep_instances_without_a_score_leave_it_open(tmp_path: Path) -> None:
    old = [make_record(1, True, "a"), make_record(2, True, "b")]
    new = [make_record(1, True, "a"), make_record(2, None, "b")]
    runs = make_run(tmp_path / "old", old, "v1"), make_run(tmp_path / "new", new, "v2")
    result = decide(compared(runs), must_keep=[instance(1), instance(2)])
    assert (result.verdict, result.exit_code) == ("inconclusive", 3)
    assert "1 of 2 must-keep instances have no score in both runs" in result.checks[0].reason
    assert any("without a score in one of the runs, left out: 1" in note for note in result.notes)


def test_unknown_must_keep_instances_are_listed(tmp_path: Path) -> None:
    found = compared(update(tmp_path))
    with pytest.raises(DataError, match="names 2 instances that no comparison has: 'gone', 'lost': remove them"):
        decide(found, must_keep=[instance(1), "gone", "lost"])
    with pytest.raises(DataError, match=r"names 30 instances .* and 20 more"):
        decide(found, must_keep=[f"id {number}" for number in range(30)])


def test_must_keep_is_checked_in_every_task_that_has_the_instance(tmp_path: Path) -> None:
    found = {
        **compared(update(tmp_path / "a", name="a", negative=5)),
        **compared(update(tmp_path / "b", name="b")),
        **compared(update(tmp_path / "c", name="c", count=2, right=1)),
    }
    result = decide(found, must_keep=[instance(3)])
    assert [(check.task, check.verdict) for check in result.checks] == [("a", "fail"), ("b", "pass")]


def test_reviewed_exceptions_hold_until_they_expire(tmp_path: Path) -> None:
    found = compared(update(tmp_path, negative=2))
    rules = policy(
        must_keep=[instance(0), instance(5)],
        allowed_flips=[
            {"id": instance(0), "expires": "2026-06-30", "reason": "the gold answer is wrong"},
            {"id": instance(5), "expires": "2026-06-30", "reason": "likewise"},
        ],
    )
    last = gate(rules, found, today=datetime.date(2026, 6, 30))
    assert last.verdict == "pass"
    assert f"task: {instance(0)} flips, allowed until 2026-06-30: the gold answer is wrong" in last.notes
    assert f"task: {instance(5)} may flip but does not: its exception can go" in last.notes
    after = gate(rules, found, today=datetime.date(2026, 7, 1))
    assert (after.verdict, after.checks[0].flips) == ("fail", (instance(0),))
    assert any("expired on 2026-06-30" in note for note in after.notes)


def test_continuous_scores(tmp_path: Path) -> None:
    changes: list[float | None] = [-0.2] * 60 + [0.3] * 60 + [0.0] * 300 + [None] * 5
    found = compared(scores(tmp_path, changes))
    result = decide(found, limits=[{"max_nfr": "20%", "margin": "1%"}])
    assert verdicts(result) == [(None, "max_nfr", "pass"), (None, "margin", "pass")]
    assert result.checks[0].value == pytest.approx(60 / 420)
    assert result.checks[0].high == stats.proportion_upper_bound(60, 420)
    assert result.checks[1].value == pytest.approx((60 * 0.3 - 60 * 0.2) / 420)
    assert "60 falls of the score in 420" in result.checks[0].reason
    assert any("without a score in one of the runs, left out: 5" in note for note in result.notes)
    worse = decide(found, limits=[{"slice": "half=low", "max_nfr": "10%", "margin": "1%"}])
    assert worse.checks[0].verdict == "fail"
    assert worse.checks[0].flips[0] == instance(0)
    with pytest.raises(DataError, match="max_inconsistency needs right or wrong answers, but the task 'task'"):
        decide(found, limits=[{"max_inconsistency": "5%"}])


def test_a_mean_score_that_surely_drops(tmp_path: Path) -> None:
    found = compared(scores(tmp_path, [(-0.1 if number % 3 else 0.0) - 0.001 * (number % 7) for number in range(300)]))
    result = decide(found, limits=[{"margin": "2%"}])
    assert result.verdict == "fail"
    assert "mean score -0.06" in result.checks[0].reason
    assert "lower at 95% confidence, beyond the margin of 0.0200" in result.checks[0].reason


def test_clusters_widen_the_bounds(tmp_path: Path) -> None:
    runs = update(tmp_path, count=1000, right=800, negative=40)
    rules: dict[str, Any] = {"limits": [{"max_nfr": "6%", "margin": "6%"}]}
    plain = decide(compared(runs), **rules)
    clustered = decide(compared(runs), cluster="passage", **rules)
    as_compared = decide(compared(runs, cluster="passage"), **rules)
    # Forty flips in a row are four whole passages of a hundred.
    assert [check.verdict for check in plain.checks] == ["pass", "pass"]
    assert [check.verdict for check in clustered.checks] == ["inconclusive", "inconclusive"]
    assert clustered.checks == as_compared.checks
    for one, other in zip(plain.checks, clustered.checks, strict=True):
        assert one.value == other.value
        assert other.low is not None
        assert one.low is not None
        assert other.low < one.low
    assert "by passage worth" in clustered.checks[0].reason
    with pytest.raises(DataError, match="no tag 'template'"):
        decide(compared(runs), cluster="template", **rules)


def test_clustered_scores(tmp_path: Path) -> None:
    found = compared(scores(tmp_path, [0.1 * ((number * 7) % 5 - 2) for number in range(400)]))
    result = decide(found, cluster="passage", limits=[{"margin": "5%", "max_nfr": "60%"}])
    assert [check.verdict for check in result.checks] == ["pass", "pass"]


def test_notes_say_how_the_runs_differ(tmp_path: Path) -> None:
    old, new = update(tmp_path, count=100, right=80)
    other = make_run(tmp_path / "other", list(new.records())[:90], "v2", scorer="exact.v1")
    result = decide(compared((old, other), allow_mismatch=True), limits=[{"max_nfr": "20%"}])
    assert any(note.startswith("mismatch allowed") for note in result.notes)
    assert any("10" in note for note in result.notes)
    assert result.checks[0].count == 90


def test_a_limit_below_the_noise_floor_is_noted(tmp_path: Path) -> None:
    old, new = update(tmp_path / "a")
    _, noisy = update(tmp_path / "b", negative=20)
    again = write_run(tmp_path / "again", list(noisy.records()), {**old.fingerprint, "seed": 1})
    found = compared((old, new), again=again)
    result = decide(found, limits=[{"max_nfr": "5%", "max_inconsistency": "20%", "margin": "1%"}])
    [note] = [note for note in result.notes if "against itself" in note]
    assert note == (
        "task: the old model against itself has a NFR of 5.00%, which is not below the limit of 5.00%: "
        "hardly any update can keep it"
    )


def test_the_result_is_plain_json_and_a_table(tmp_path: Path) -> None:
    found = compared(update(tmp_path, negative=40))
    result = decide(
        found, limits=[{"max_nfr": "2%"}, {"slice": "customer=acme", "margin": "30%"}], must_keep=["0" * 16]
    )
    values = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert (values["verdict"], values["exit_code"], values["alpha"]) == ("fail", 1, 0.05)
    assert values["versions"] == [{"old": "v1", "new": "v2"}]
    assert values["checks"][0]["flips"][0] == instance(0)
    assert {"task", "slice", "rule", "verdict", "reason", "value", "low", "high", "limit"} <= values["checks"][1].keys()
    lines = str(result).splitlines()
    assert lines[0].split() == ["task", "slice", "what", "instances", "value", "bounds", "limit", "verdict"]
    assert lines[1].split() == ["task", "NFR", "400", "10.00%", "7.63%", "to", "12.82%", "<=", "2.00%", "FAIL"]
    assert lines[-1] == "gate FAIL: 2 failed, 1 passed of 3 checks"
    assert any(line.startswith("FAIL task, must keep: 1 of 1") for line in lines)


def test_a_check_knows_its_place() -> None:
    check = Check("demo", "customer=acme", "max_nfr", "pass", "", 0.0, 0.0, 0.1, 0.2)
    assert check.place == "demo, customer=acme"
