"""The gate as JUnit XML, which every CI system shows as test results."""

from __future__ import annotations

import re
from collections import Counter
from xml.etree import ElementTree as ET

from uphold.measure.gate import Check, GateResult
from uphold.report.text import visible

# What XML 1.0 (section 2.2) cannot hold even as a character reference.
_NO_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit_xml(result: GateResult) -> str:
    """One test case per check: class name `task.slice`, name the rule; an inconclusive check counts as skipped."""
    counts = Counter(check.verdict for check in result.checks)
    totals = {
        "name": "uphold gate",
        "tests": str(len(result.checks)),
        "failures": str(counts["fail"]),
        "errors": "0",
        "skipped": str(counts["inconclusive"]),
    }
    root = ET.Element("testsuites", totals)
    suite = ET.SubElement(root, "testsuite", totals)
    properties = ET.SubElement(suite, "properties")
    facts = [("verdict", result.verdict), ("alpha", f"{result.alpha:g}")]
    facts += [("versions", f"{old} -> {new}") for old, new in result.versions]
    for name, value in [*facts, *(("note", note) for note in result.notes)]:
        ET.SubElement(properties, "property", {"name": name, "value": _xml(value)})
    names: Counter[tuple[str, str]] = Counter()
    for check in result.checks:
        place = check.task if check.slice is None else f"{check.task}.{check.slice}"
        names[place, check.rule] += 1
        # Two limits of one rule on one place would be taken for one test.
        again = names[place, check.rule]
        name = check.rule if again == 1 else f"{check.rule} ({again})"
        suite.append(_case(check, _xml(place), name))
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _case(check: Check, place: str, name: str) -> ET.Element:
    case = ET.Element("testcase", {"classname": place, "name": name})
    reason = _xml(check.reason)
    if check.verdict == "fail":
        ET.SubElement(case, "failure", {"message": reason, "type": "gate"}).text = reason
    elif check.verdict == "inconclusive":
        ET.SubElement(case, "skipped", {"message": f"inconclusive: {reason}"})
    lines = [] if check.verdict == "fail" else [check.reason]
    lines += [f"flip: {name}" for name in check.flips]
    if lines:
        ET.SubElement(case, "system-out").text = _xml("\n".join(lines))
    return case


def _xml(text: str) -> str:
    """`text` with what is invisible, or not allowed in XML, written out."""
    return _NO_XML.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", visible(text))
