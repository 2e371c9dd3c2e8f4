from __future__ import annotations

from typing import Any

import pytest

from uphold.measure.gate import Check, GateResult
from uphold.measure.gate_text import Wording, headline, result_text
from uphold.measure.limits import Evidence, Outcome


def evidence(**changes: Any) -> Evidence:
    values: dict[str, Any] = {
        "value": 0.02, "low": 0.01, "high": 0.035, "limit": 0.03, "kept": False, "p_broken": 0.9, "count": 1000,
        "independent": 1000, **changes,
    }  # fmt: skip
    return Evidence(**values)


def result(*outcomes: Outcome, **changes: Any) -> GateResult:
    checks = tuple(Check("demo", None, "max_nfr", outcome, "because", 0.1, 0.0, 0.2, 0.15) for outcome in outcomes)
    values: dict[str, Any] = {"notes": (), "alpha": 0.05, "cluster": None, "versions": (("v1", "v2"),), **changes}
    return GateResult(checks, **values)


@pytest.mark.parametrize(
    ("outcome", "found", "needed", "expected"),
    [
        ("pass", evidence(high=0.025), None, "at most 2.50% at 90% confidence, within 3.00%"),
        (
            "fail",
            evidence(low=0.04),
            None,
            "at least 4.00% at 90% confidence, above 3.00% (p = 0.01, corrected for 3 limits)",
        ),
        (
            "inconclusive",
            evidence(),
            2500,
            "between 1.00% and 3.50%, the limit is 3.00%; about 2,500 instances would pass at this rate",
        ),
        ("inconclusive", evidence(), None, "between 1.00% and 3.50%, the limit is 3.00%; more instances are needed"),
        (
            "inconclusive",
            evidence(value=0.031),
            None,
            "between 1.00% and 3.50%, the limit is 3.00%; at this rate no number of instances would pass",
        ),
        (
            "inconclusive",
            evidence(low=0.031),
            None,
            "broken if looked at alone, but not after the correction for 3 limits",
        ),
    ],
)
def test_a_share_in_words(outcome: Outcome, found: Evidence, needed: int | None, expected: str) -> None:
    reason = Wording("max_nfr", True, 0.1, 3, None).reason(found, outcome, 0.01, needed)
    assert reason.startswith(f"{round(found.value * 1000)} negative flips in 1,000 (")
    assert expected in reason


@pytest.mark.parametrize(
    ("judged", "outcome", "changes", "needed", "expected"),
    [
        (True, "pass", {"low": -0.015}, None, "accuracy +2.00 points over 1,000 instances: at most 1.50 points lower"),
        (True, "pass", {"low": 0.001}, None, "no lower at 95% confidence, within the margin of 3.00 points"),
        (
            True,
            "fail",
            {"high": -0.04},
            None,
            "at least 4.00 points lower at 95% confidence, beyond the margin of 3.00 points",
        ),
        (
            True,
            "inconclusive",
            {"low": -0.05},
            7000,
            "between -5.00 points and +3.50 points, the margin is 3.00 points; about 7,000",
        ),
        (
            True,
            "inconclusive",
            {"value": -0.04, "low": -0.05},
            None,
            "at this difference no number of instances would pass",
        ),
        (True, "inconclusive", {"high": -0.04}, None, "broken if looked at alone"),
        (False, "pass", {"low": -0.015}, None, "mean score +0.0200 over 1,000 instances: at most 0.0150 lower"),
    ],
)
def test_a_margin_in_words(
    judged: bool, outcome: Outcome, changes: dict[str, float], needed: int | None, expected: str
) -> None:
    found = evidence(limit=-0.03, **changes)
    assert expected in Wording("margin", judged, 0.05, 1, None).reason(found, outcome, 0.001, needed)


def test_clusters_and_scores_in_words() -> None:
    reason = Wording("max_nfr", False, 0.05, 1, "passage").reason(evidence(independent=120.4), "fail", 1e-9, None)
    assert reason.startswith("20 falls of the score in 1,000 (2.00%), by passage worth 120 independent ones: at least")
    assert reason.endswith("above 3.00% (p < 0.0001)")
    assert "20 inconsistent in 1,000" in Wording("max_inconsistency", True, 0.05, 1, None).reason(
        evidence(), "pass", 1, None
    )


def test_headline_and_verdict_come_from_the_checks() -> None:
    assert headline(result("pass", "pass")) == "gate pass: 2 passed of 2 checks"
    assert headline(result("pass", "inconclusive")) == "gate INCONCLUSIVE: 1 inconclusive, 1 passed of 2 checks"
    assert headline(result("fail", "inconclusive")) == "gate FAIL: 1 failed, 1 inconclusive of 2 checks"
    assert [result(*one).exit_code for one in (("pass",), ("inconclusive", "fail"), ("inconclusive",))] == [0, 1, 3]
    assert result("fail", allow_inconclusive=True).exit_code == 1


def test_the_table_ends_with_the_verdict() -> None:
    lines = result_text(result("pass", "fail", notes=("a note",))).splitlines()
    assert lines[3:] == [
        "FAIL demo, NFR: because",
        "note: a note",
        "gate FAIL: 1 failed, 1 passed of 2 checks",
    ]
