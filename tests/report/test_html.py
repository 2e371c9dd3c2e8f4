from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from uphold.report.data import gather
from uphold.report.html import render_html, script_json
from uphold.report.text import visible

Save = Callable[..., Path]
CHROMIUM = Path("/usr/bin/chromium")


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
    assert page.tags.count("script") == 2
    assert not {"img", "iframe", "object", "embed", "link", "base"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    for hidden in ("\u202e", "\u202c", "\u200b", "\u2028", "\x1b", "<!--"):
        assert hidden not in html
    assert "{{ 7*7 }}" in page.text()
    rows = json.loads(page.scripts[0])["rows"]
    assert rows[0][3] == visible(f"question 12{hostile}")


def test_nothing_is_fetched(save_repair: Save) -> None:
    html = render_html(gather(save_repair()))
    page = Page(html)
    policy = next(value for name, value in page.attributes if name == "content" and "default-src" in value)
    assert policy.startswith("default-src 'none'")
    digest = base64.b64encode(hashlib.sha256(page.scripts[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert not [value for name, value in page.attributes if name in ("src", "srcset", "action", "data")]
    assert all(value.startswith("#") for name, value in page.attributes if name == "href")
    assert not re.search(r"https?://|@import|url\(", html)


def test_script_json_cannot_end_its_element() -> None:
    text = script_json({"a": "</script><!--\u2028&"})
    assert json.loads(text) == {"a": "</script><!--\u2028&"}
    assert not set("<>&\u2028") & set(text)


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
    page = Page(render_html(gather(save_comparison(tags=False, logprobs=False))))
    assert ("id", "training") not in page.attributes
    assert "repair" not in page.text().lower()
    assert "There are no slices: the instances carry no tags." in page.text()
    assert "There is no scatter" in page.text()


def test_undefined_is_said(save_comparison: Save) -> None:
    page = Page(render_html(gather(save_comparison(again=False, outcomes=[(True, True), (True, True)]))))
    assert re.search(r"BEC ↑ undefined", page.text())
    assert "not measured" in page.text()


def test_continuous_scores(save_scores: Save) -> None:
    page = Page(render_html(gather(save_scores([0.5, 0.5, 0.5, None], [0.4, 0.9, 0.5, 0.1]))))
    assert "There is no flip matrix" in page.text()
    assert "1 scores fall, 1 rise, 1 stay equal" in page.text()
    rows = json.loads(page.scripts[0])["rows"]
    assert [row[5][0][1] for row in rows] == [None] * 4


def test_a_cut_table_says_how_much_it_shows(save_repair: Save) -> None:
    page = Page(render_html(gather(save_repair(), limit=10)))
    assert "10 of 40 instances are in this file" in page.text()
    assert len(json.loads(page.scripts[0])["rows"]) == 10


@pytest.mark.skipif(not CHROMIUM.exists(), reason="needs /usr/bin/chromium")
def test_in_a_browser_at_phone_width(save_repair: Save, tmp_path: Path, hostile: str) -> None:
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    path = tmp_path / "report.html"
    path.write_text(render_html(gather(save_repair(text=hostile))), encoding="utf-8")
    problems: list[str] = []
    requests: list[str] = []

    def open_page(browser: Any) -> Any:
        page = browser.new_page(viewport={"width": 380, "height": 800}, color_scheme="dark")
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text))
        page.on("dialog", lambda dialog: problems.append("a dialog"))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(path.as_uri())
        return page

    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        page = open_page(browser)
        assert page.inner_text("#count") == "4 of 40 instances match"
        page.select_option("#f-effect", label="fixed (2)")
        assert page.inner_text("#count") == "2 of 40 instances match"
        page.select_option("#f-kind", "")
        page.select_option("#f-effect", "")
        page.fill("#f-text", "QUESTION 39")
        api.expect(page.locator("#count")).to_have_text("1 of 40 instances match")
        assert "<img src=x onerror=alert(2)>" in page.inner_text(".instances tbody")
        page.fill("#f-text", "")
        api.expect(page.locator("#count")).to_have_text("40 of 40 instances match")
        assert page.locator(".instances tbody tr").count() == 20
        page.click("#next")
        assert page.inner_text("#page") == "page 2 of 2"
        page.click(".sort >> text=Gold")
        assert page.inner_text(".instances tbody tr:first-child .gold") == "blue"
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
        page.click("#theme")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") != dark
        assert page.evaluate("document.documentElement.scrollWidth") <= 380
        browser.close()
    assert problems == []
    assert requests == [path.as_uri()]
