from __future__ import annotations

from pathlib import Path

from tests.conftest import make_record, make_run
from tests.gate_runs import compared, instance, scores, update

from uphold.core.policy import Policy
from uphold.measure.gate import Check, GateResult, gate
from uphold.report.github import MARKER, annotations, markdown_comment, step_summary


def policy(**values: object) -> Policy:
    return Policy.model_validate(values)


def result(*checks: Check, notes: tuple[str, ...] = ()) -> GateResult:
    return GateResult(checks, notes, 0.05, None, (("v1", "v2"),))


def test_annotations_are_commands_of_one_line() -> None:
    lines = annotations(
        result(
            Check("a:b", "tag=x,y", "max_nfr", "fail", "5% is too much\r\n::error::no", 0.1, 0.0, 0.2, 0.1),
            Check("t", None, "margin", "inconclusive", "too little data", 0.1, 0.0, 0.2, 0.1),
            Check("t", None, "max_nfr", "pass", "fine", 0.1, 0.0, 0.2, 0.1),
        )
    )
    assert lines == [
        "::error title=uphold gate%3A a%3Ab%2C tag=x%2Cy%2C NFR::5%25 is too much%0A::error::no",
        "::warning title=uphold gate%3A t%2C change of score::too little data",
        "::notice title=uphold gate::gate FAIL: 1 failed, 1 inconclusive, 1 passed of 3 checks",
    ]
    assert all("\n" not in line and "\r" not in line for line in lines)


def test_summary_has_a_row_per_check(tmp_path: Path) -> None:
    found = compared(update(tmp_path, negative=40))
    text = step_summary(gate(policy(limits=[{"max_nfr": "2%", "margin": "20%"}]), found))
    assert text.startswith("## gate FAIL: 1 failed, 1 passed of 2 checks\n\nv1 → v2; error rate at most 5%.\n")
    assert "### Failed\n\n- **task, NFR**: 40 negative flips" in text
    assert "### Inconclusive" not in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 4
    assert {row.count("|") for row in rows} == {9}
    assert rows[2].endswith("| ❌ fail |")


def test_a_comment_opens_with_the_verdict_and_shows_the_flips(tmp_path: Path) -> None:
    found = compared(update(tmp_path, negative=40))
    text = markdown_comment(gate(policy(limits=[{"max_nfr": "2%"}], must_keep=[instance(3)]), found), found)
    lines = text.splitlines()
    assert lines[0] == MARKER
    assert lines[2:4] == [
        "> [!CAUTION]",
        "> **This update must not ship** — gate FAIL: 2 failed of 2 checks",
    ]
    assert "| task | 400 | 75.00% | 65.00% | 10.00% [" in text
    assert f"| task | {instance(0)} | question 0 | right | right | wrong |" in text
    assert "Those behind the failed checks, 20 at most." in text
    # An instance behind two checks is shown once.
    assert text.count(f"| {instance(3)} |") == 1


def test_a_comment_on_a_pass_and_on_too_little_data(tmp_path: Path) -> None:
    found = compared(update(tmp_path))
    passed = markdown_comment(gate(policy(limits=[{"max_nfr": "2%"}]), found), found)
    assert "> [!TIP]\n> **This update may ship**" in passed
    for section in ("### Failed", "### Inconclusive", "<details>"):
        assert section not in passed
    unsure = markdown_comment(gate(policy(limits=[{"max_nfr": "0.1%"}]), found), found)
    assert "> [!WARNING]\n> **Not enough data to say**" in unsure
    assert "### Inconclusive" in unsure


def test_a_comment_on_scores(tmp_path: Path) -> None:
    found = compared(scores(tmp_path, [-0.25] * 50 + [0.0] * 50))
    text = markdown_comment(gate(policy(limits=[{"margin": "1%"}]), found), found)
    assert "| task | 100 | 0.500 | 0.375 | 50.00% [" in text
    assert "| said 0.5 | said 0.25 |" in text


def test_what_models_wrote_stays_text(tmp_path: Path) -> None:
    hostile = "</details><script>alert(1)</script> | `x` [a](https://evil.test) @someone #1 \u202egnp"
    old = [make_record(n, True, hostile, input=hostile, tags={hostile: hostile}) for n in range(30)]
    new = [make_record(n, False, hostile + "!", input=hostile, tags={hostile: hostile}) for n in range(30)]
    runs = make_run(tmp_path / "old", old, hostile), make_run(tmp_path / "new", new, "v2")
    found = compared(runs)
    verdict = gate(policy(limits=[{"max_nfr": "2%"}, {"slice": f"{hostile}={hostile}", "margin": "1%"}]), found)
    for text in (markdown_comment(verdict, found), step_summary(verdict)):
        for forbidden in ("<script", "\u202e", "https://evil", " @someone", "`x`"):
            assert forbidden not in text
        width = 0
        for line in text.splitlines():
            cells = line.count("|") if line.startswith("|") else 0
            assert width in (0, cells) or cells == 0, line
            width = cells
    assert markdown_comment(verdict, found).count("</details>") == 1
    assert all("\n" not in line and "\u202e" not in line for line in annotations(verdict))


def test_a_comment_fits_into_what_github_takes(tmp_path: Path) -> None:
    found = compared(update(tmp_path))
    checks = [
        Check("task", f"tag={number}", "max_nfr", "fail", "too many flips " * 10, 0.1, 0.0, 0.2, 0.1)
        for number in range(500)
    ]
    text = markdown_comment(result(*checks), found)
    assert len(text) < 65_536
    assert "This update must not ship" in text
    assert "- and 450 more, which gate.json lists\n" in text
    assert "\n\n450 more are in gate.json.\n" in text
    assert "### Rates" in text
    endless = Check("task", "tag=x", "max_nfr", "fail", "why " * 20_000, 0.1, 0.0, 0.2, 0.1)
    cut = markdown_comment(result(endless), found)
    assert len(cut) < 65_536
    assert "The rest is too long to be shown here" in cut
