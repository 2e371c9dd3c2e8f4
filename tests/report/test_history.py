from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import make_record, make_run

from uphold.core.runs import Run
from uphold.measure.history import History, history
from uphold.report.history import render_html, render_markdown, verdict, write_history

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> | `a` \u202egnp zero\u200bwidth"
PATTERNS = ["111"] * 20 + ["101"] * 12 + ["010"] * 9 + ["110", "100", "001", "000"]


def runs_of(folder: Path, patterns: list[str], text: str = "", continuous: bool = False) -> list[Run]:
    made = []
    for k in range(len(patterns[0])):
        records = []
        for number, pattern in enumerate(patterns):
            right = pattern[k] == "1"
            answer = ("red" if right else "blue") + text
            score = 0.9 if right else 0.2
            changes: dict[str, Any] = {"input": f"question {number}{text}", "tags": {f"hue{text}": f"warm{text}"}}
            record = make_record(number, None if continuous else right, answer, score if continuous else None)
            records.append(type(record)(**{name: getattr(record, name) for name in record.__slots__} | changes))
        made.append(make_run(folder / f"v{k}", records, f"v{k}{text}"))
    return made


@pytest.fixture
def found(tmp_path: Path) -> History:
    return history(runs_of(tmp_path / "runs", PATTERNS))


def test_the_same_history_gives_the_same_three_files(found: History, tmp_path: Path) -> None:
    assert write_history(found, tmp_path / "a") == tmp_path / "a" / "history.html"
    write_history(found, tmp_path / "b")
    for name in ("history.html", "history.json", "history.md"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert json.loads((tmp_path / "a" / "history.json").read_text()) == found.to_dict() | {
        "instances": json.loads(json.dumps(found.to_dict()["instances"]))
    }


def test_the_first_sentence(found: History, tmp_path: Path) -> None:
    assert verdict(found) == (
        "Version 3 is right on 73.3% of instances, and wrong on 24.4% (11 of 45) that an earlier version had right."
    )
    kept = history(runs_of(tmp_path / "kept", ["111", "001"]))
    assert verdict(kept).endswith("of instances, among them all that an earlier version had right.")
    scores = history(runs_of(tmp_path / "scores", PATTERNS, continuous=True))
    assert "and 11 of 45 instances (24.4%) fare worse than in some earlier version." in verdict(scores)
    steady = history(runs_of(tmp_path / "steady", ["11", "01"], continuous=True))
    assert "and no instance fares worse" in verdict(steady)


def test_markdown_has_the_numbers_and_escapes_the_texts(tmp_path: Path) -> None:
    text = render_markdown(history(runs_of(tmp_path / "runs", PATTERNS, HOSTILE)))
    assert "- lost: 11 (right in an earlier version, wrong in the last one)" in text
    assert "20 of 21." in text
    assert "<script" not in text
    assert "\u202e" not in text
    table = [line for line in text.splitlines() if line.startswith("| ✓✗✓")]
    assert table
    assert all(line.count("|") == 4 for line in table)


def test_nothing_is_fetched_and_hostile_text_stays_text(tmp_path: Path) -> None:
    html = render_html(history(runs_of(tmp_path / "runs", PATTERNS, HOSTILE)))
    assert html.count("<script") == 2
    assert "<img" not in html
    assert not re.search(r"https?://|@import|url\(", html)
    for hidden in ("\u202e", "\u200b"):
        assert hidden not in html


def test_many_versions_and_many_patterns_are_cut_and_say_so(tmp_path: Path) -> None:
    patterns = [f"{number:08b}" for number in range(256)]
    html = render_html(history(runs_of(tmp_path / "runs", patterns)))
    assert "The 60 commonest of 256 patterns; 200 are in history.json." in " ".join(html.split())
    assert 'class="mixed"' in html


def test_notes_are_shown(tmp_path: Path) -> None:
    runs = runs_of(tmp_path / "runs", ["10", "11"])
    more = make_run(tmp_path / "x", [make_record(1, True, "a")], "x")
    html = render_html(history([*runs, more], allow_mismatch=True))
    assert "mismatch allowed: instances that not every version answered are left out" in html


def test_in_a_browser(browser: Any, tmp_path: Path) -> None:
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
    path = write_history(history(runs_of(tmp_path / "runs", PATTERNS, HOSTILE)), tmp_path / "out")
    problems: list[str] = []
    requests: list[str] = []
    for width, scheme in ((1200, "light"), (390, "dark")):
        page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: problems.append("a dialog"))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert axe.Axe().run(page).response["violations"] == []
    assert page.inner_text("#count") == "23 of 23 instances match"
    assert page.locator(".item").count() == 20
    page.click("#next")
    assert page.inner_text("#page") == "page 2 of 2"
    page.select_option("#f-kind", label="broken since version 3 (10)")
    assert page.inner_text("#count") == "10 of 23 instances match"
    page.select_option("#f-pattern", "110")
    assert page.inner_text("#count") == "1 of 23 instances match"
    assert page.inner_text(".answers dt >> nth=0") == "1 to 2"
    assert "<img src=x onerror=alert(2)>" in page.inner_text(".item")
    page.select_option("#f-kind", index=0)
    page.select_option("#f-pattern", "")
    page.fill("#f-text", "QUESTION 42")
    api.expect(page.locator("#count")).to_have_text("1 of 23 instances match")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.click("#theme")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != dark
    for context in list(browser.contexts):
        context.close()
    assert problems == []
    assert set(requests) == {path.as_uri()}
