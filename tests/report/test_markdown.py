from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from uphold.measure.comparison import load_comparison
from uphold.measure.discover import Rule
from uphold.report.data import gather
from uphold.report.markdown import escape, render_markdown

Save = Callable[..., Path]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a | b", "a &#124; b"),
        ("<b>&amp;", "&lt;b&gt;&amp;amp;"),
        ("two\n  lines", "two ⏎ lines"),
        ("*bold* _it_ `code` [x](y)", r"\*bold\* \_it\_ \`code\` \[x\](y)"),
        ("https://evil.test www.evil.test", r"https\://evil.test www\.evil.test"),
        ("@someone #12 \\|", "&#64;someone \\#12 \\\\&#124;"),
        ("# heading", r"\# heading"),
        ("a\u202eb", "a⟨U+202E⟩b"),
    ],
)
def test_escape(text: str, expected: str) -> None:
    assert escape(text) == expected


def test_repair_in_markdown(save_repair: Save) -> None:
    text = render_markdown(gather(save_repair()))
    assert text.startswith("# colours: v1 → v2\n\n**The update gains 5.0 points")
    assert "| MUSCLE | 50.00% [" in text
    assert "−25.0%" in text
    assert "The first 4 of 4." in text
    assert "| question 12 | red | red | green | red | fixed |" in text
    assert "- method: muscle (arXiv:2407.09435)" in text


def test_every_table_row_has_the_width_of_its_header(save_repair: Save, hostile: str) -> None:
    text = render_markdown(gather(save_repair(text=hostile)))
    width = 0
    for line in text.splitlines():
        if not line.startswith("|"):
            width = 0
        elif width == 0:
            width = line.count("|")
        else:
            assert line.count("|") == width, line
    for forbidden in ("<script", "<img", "<!--", "\u202e", "\u200b", "https://evil"):
        assert forbidden not in text


def test_comparison_in_markdown_has_every_rate(save_comparison: Save) -> None:
    folder = save_comparison()
    text = render_markdown(gather(folder))
    for rate in load_comparison(folder).rates:
        assert f"| {escape(rate.label)} |" in text
    assert "repair" not in text


def test_undefined_and_missing_things_say_so(save_comparison: Save) -> None:
    text = render_markdown(gather(save_comparison(tags=False, outcomes=[(True, True), (True, True)])))
    assert "| BEC | undefined |" in text
    assert "There are none." in text


def test_continuous_scores_in_markdown(save_scores: Save) -> None:
    text = render_markdown(gather(save_scores([0.5, 0.5], [0.4, 0.9])))
    assert "mean score" in text
    assert "Flip matrix" not in text
    assert "| question 0 | gold | said 0.5 | said 0.4 |" in text


def test_gate_and_rules_in_markdown(save_comparison: Save) -> None:
    folder = save_comparison()
    check = {"task": "colours", "slice": "half=low", "rule": "max_nfr", "verdict": "inconclusive", "reason": "a | b"}
    (folder / "gate.json").write_text(json.dumps({"verdict": "inconclusive", "checks": [check]}))
    data = gather(folder)
    rule = Rule(("half is low", "has | digits"), 20, 4, 0.2, 0.0, 0.03, sample=1000)
    text = render_markdown(replace(data, before=replace(data.before, discovered=(rule,))))
    assert "## Gate: inconclusive" in text
    assert r"| inconclusive | max\_nfr | colours: half=low | a &#124; b |" in text
    assert (
        "| half is low and has &#124; digits (estimated from 1,000 instances) | 4 / 20 | 20.00% | 0.00% | p = 0.03 |"
        in text
    )
    assert "The strongest evidence first" in text
