from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from uphold.core.errors import CorruptError
from uphold.measure.discover import Rule
from uphold.report.data import gather
from uphold.report.html import render_html

Save = Callable[..., Path]


class Page(HTMLParser):
    """Elements, attributes and texts as a browser would find them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.scripts: list[str] = []
        self.words = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] == ["script"] and data.strip():
            self.scripts.append(data)
        elif self.tags[-1:] != ["style"]:
            self.words += data

    def text(self) -> str:
        return " ".join(self.words.split())


def test_hostile_text_stays_text(save_repair: Save, hostile: str) -> None:
    html = render_html(gather(save_repair(text=hostile, label=f"MUSCLE {hostile}")))
    page = Page(html)
    assert page.tags.count("script") == 3
    assert not {"img", "iframe", "object", "embed", "link", "base"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    for hidden in ("\u202e", "\u202c", "\u200b", "\u2028", "\x1b", "<!--"):
        assert hidden not in html
    assert "{{ 7*7 }}" in page.text()
    assert json.loads(page.scripts[0])["count"] == 40


def test_nothing_is_fetched(save_repair: Save) -> None:
    html = render_html(gather(save_repair()))
    page = Page(html)
    policy = next(value for name, value in page.attributes if name == "content" and "default-src" in value)
    assert policy.startswith("default-src 'none'")
    digest = base64.b64encode(hashlib.sha256(page.scripts[-1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert not [value for name, value in page.attributes if name in ("src", "srcset", "action", "data")]
    assert all(value.startswith("#") for name, value in page.attributes if name == "href")
    assert not re.search(r"https?://|@import|url\(", html)


def test_sections_of_a_repair(save_repair: Save) -> None:
    page = Page(render_html(gather(save_repair())))
    text = page.text()
    assert "colours: v1 → v2" in text
    assert "MUSCLE brings that down to 7.5% (−25.0%) at 50.0% accuracy." in text
    assert "2 fixed of 4 negative flips" in text
    assert "All 40 instances are in this file." in text
    assert "epoch whose weights were kept" in text
    assert "a note" in text
    assert '["q_proj"]' in text
    for anchor in ("arms", "rates", "flips", "slices", "scores", "training", "instances", "how"):
        assert ("id", anchor) in page.attributes


def test_a_comparison_mentions_no_repair(save_comparison: Save) -> None:
    page = Page(
        render_html(gather(save_comparison(tags=False, logprobs=False, outcomes=[(True, False), (True, True)])))
    )
    assert ("id", "training") not in page.attributes
    assert "repair" not in page.text().lower()
    assert "There are no slices" in page.text()
    assert "There is no scatter" in page.text()


def test_undefined_is_said(save_comparison: Save) -> None:
    page = Page(render_html(gather(save_comparison(again=False, outcomes=[(True, True), (True, True)]))))
    assert re.search(r"BEC ↑ undefined", page.text())
    assert "not measured" in page.text()


def test_continuous_scores(save_scores: Save) -> None:
    page = Page(render_html(gather(save_scores([0.5, 0.5, 0.5, None], [0.4, 0.9, 0.5, 0.1]))))
    assert "There is no flip matrix" in page.text()
    assert "1 scores fall, 1 rise, 1 stay equal" in page.text()
    assert "half = low" in page.text()
    assert "Flips are falls and rises of the score." in page.text()


def test_a_cut_table_says_how_much_it_shows(save_repair: Save) -> None:
    page = Page(render_html(gather(save_repair(), limit=10)))
    assert "10 of 40 instances are in this file" in page.text()
    assert "all negative flips, then the other flips" in page.text()
    assert json.loads(page.scripts[0])["count"] == 10
    few = Page(render_html(gather(save_repair("few"), limit=3)))
    assert "3 of 40 instances are in this file: an even sample of the negative flips." in few.text()


def test_charts_link_to_their_instances(save_repair: Save, save_comparison: Save) -> None:
    repair = [value for name, value in Page(render_html(gather(save_repair()))).attributes if name == "href"]
    assert {"#kind=all&effect=fixed", "#kind=negative", "#kind=all&tag=half+%3D+low"} <= set(repair)
    comparison = [value for name, value in Page(render_html(gather(save_comparison()))).attributes if name == "href"]
    assert "#kind=positive" in comparison
    assert not [link for link in comparison if "effect" in link]


def test_the_gate_stands_on_top(save_comparison: Save, hostile: str) -> None:
    folder = save_comparison()
    assert "Gate" not in Page(render_html(gather(folder))).text()
    checks = [
        {"task": "colours", "slice": None, "rule": "margin", "verdict": "pass", "reason": "fine"},
        {"task": "colours", "slice": "half=low", "rule": "max_nfr", "verdict": "fail", "reason": f"4 flips {hostile}"},
    ]
    (folder / "gate.json").write_text(json.dumps({"verdict": "fail", "checks": checks}))
    page = Page(render_html(gather(folder)))
    assert "Gate failed 1 of 2 checks pass, 1 fail" in page.text()
    assert page.text().index("4 flips") < page.text().index("fine")
    assert page.tags.count("script") == 3


@pytest.mark.parametrize("content", [{}, {"verdict": "fail"}, {"verdict": "maybe", "checks": []}, []])
def test_a_damaged_gate_is_an_error(save_comparison: Save, content: object) -> None:
    folder = save_comparison()
    (folder / "gate.json").write_text(json.dumps(content))
    with pytest.raises(CorruptError, match=r"gate\.json"):
        gather(folder)


def test_discovered_rules_are_shown_as_text(save_comparison: Save, hostile: str) -> None:
    data = gather(save_comparison())
    rule = Rule((f"answer is {hostile}", "half is low"), 20, 4, 0.2, 0.0, 0.03)
    page = Page(render_html(replace(data, before=replace(data.before, discovered=(rule,)))))
    assert "4 negative flips in 20 instances: NFR 20.0%, 0.0% elsewhere; p = 0.03" in page.text()
    assert "⟨U+202E⟩" in page.text()
    assert "img" not in page.tags


def test_many_slices_are_folded(save_comparison: Save) -> None:
    data = gather(save_comparison())
    many = tuple(replace(data.slices[0], before=replace(data.slices[0].before, value=f"v{n}")) for n in range(60))
    page = Page(render_html(replace(data, slices=many)))
    assert "28 more slices" in page.text()
    assert "20 others are in report.json" in page.text()
