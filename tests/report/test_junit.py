from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from tests.gate_runs import compared, instance, update

from uphold.core.policy import Policy
from uphold.measure.gate import Check, GateResult, gate
from uphold.report.junit import junit_xml


def result(*checks: Check, notes: tuple[str, ...] = ()) -> GateResult:
    return GateResult(checks, notes, 0.05, None, (("v1", "v2"),))


def test_a_test_case_per_check(tmp_path: Path) -> None:
    rules = Policy.model_validate(
        {
            "limits": [{"max_nfr": "2%", "margin": "20%"}, {"slice": "customer=acme", "max_nfr": "12%"}],
            "must_keep": [instance(399)],
        }
    )
    root = ET.fromstring(junit_xml(gate(rules, compared(update(tmp_path, negative=40)))))
    [suite] = root
    for element in (root, suite):
        assert element.attrib == {"name": "uphold gate", "tests": "4", "failures": "1", "errors": "0", "skipped": "1"}
    cases = {(case.get("classname"), case.get("name")): case for case in suite.iter("testcase")}
    assert set(cases) == {
        ("task", "max_nfr"),
        ("task", "margin"),
        ("task.customer=acme", "max_nfr"),
        ("task", "must_keep"),
    }
    failure = cases["task", "max_nfr"].find("failure")
    assert failure is not None
    assert failure.get("type") == "gate"
    assert str(failure.get("message")).startswith("40 negative flips in 400 (10.00%): at least 7.63%")
    out = cases["task", "max_nfr"].findtext("system-out")
    assert out is not None
    assert out.splitlines() == [f"flip: {instance(number)}" for number in range(20)]
    skipped = cases["task.customer=acme", "max_nfr"].find("skipped")
    assert skipped is not None
    assert str(skipped.get("message")).startswith("inconclusive: 10 negative flips in 100")
    passed = cases["task", "margin"]
    assert passed.find("failure") is None
    assert passed.find("skipped") is None


@pytest.mark.parametrize(
    ("hostile", "shown"),
    [
        ("a\x00b", "a⟨U+0000⟩b"),
        ("\x1b[31m", "⟨U+001B⟩[31m"),
        ("\ufffe\uffff", "⟨U+FFFE⟩⟨U+FFFF⟩"),
        ("\ud800", "⟨U+D800⟩"),
    ],
)
def test_what_xml_cannot_hold_is_shown(hostile: str, shown: str) -> None:
    check = Check(
        f"task {hostile}", f"tag={hostile}", "max_nfr", "fail", f"why {hostile}", 0.1, 0.0, 0.2, 0.1, (hostile,)
    )
    text = junit_xml(result(check, notes=(f"note {hostile}",)))
    root = ET.fromstring(text.encode())
    case = root.find("testsuite/testcase")
    assert case is not None
    assert case.get("classname") == f"task {shown}.tag={shown}"
    assert case.findtext("failure") == f"why {shown}"
    assert case.findtext("system-out") == f"flip: {shown}"


def test_markup_is_text() -> None:
    check = Check("<t>", None, "max_nfr", "fail", 'a < b & "c" ]]>', 0.1, 0.0, 0.2, 0.1)
    root = ET.fromstring(junit_xml(result(check)))
    assert root.findtext("testsuite/testcase/failure") == 'a < b & "c" ]]>'


def test_two_limits_of_one_rule_are_two_tests() -> None:
    checks = [Check("t", None, "max_nfr", "pass", "", 0.1, 0.0, 0.2, limit) for limit in (0.3, 0.4)]
    root = ET.fromstring(junit_xml(result(*checks)))
    assert [case.get("name") for case in root.iter("testcase")] == ["max_nfr", "max_nfr (2)"]
