"""The report in headless Chromium: hostile text, accessibility, phones, and many instances."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from uphold.core.records import Record
from uphold.core.runs import write_run
from uphold.measure.comparison import compare_runs
from uphold.report import write_report

Save = Callable[..., Path]
Reader = Any
PHONE = {"width": 390, "height": 844}
READY = "#browser[aria-busy=false]"


def test_hostile_text_does_nothing(reader: Reader, save_repair: Save, hostile: str) -> None:
    path = write_report(save_repair(text=hostile, label=f"MUSCLE {hostile}"))
    page = reader.open(path, "#kind=all")
    assert page.evaluate("document.querySelectorAll('img, iframe, object, embed').length") == 0
    row = page.locator("#grid-body .row").first
    row.click()
    shown = page.inner_text("#detail-content")
    assert "<img src=x onerror=alert(2)>" in shown
    assert "⟨U+202E⟩gnp.exe⟨U+202C⟩" in shown
    assert "zero⟨U+200B⟩width" in shown
    page.keyboard.press("Escape")
    page.click("#f-tags summary")
    page.check("#tag-list input >> nth=0")
    page.keyboard.press("Escape")
    page.fill("#f-text", "</SCRIPT><script>")
    reader.wait(page, "U.state.text.includes('SCRIPT')")
    assert page.inner_text("#count") == "40 of 40 instances match"
    page.reload()
    page.wait_for_selector(READY)
    assert page.evaluate("document.querySelectorAll('script').length") == 2
    assert page.evaluate("document.documentElement.outerHTML.includes('\\u202e')") is False


@pytest.mark.parametrize(
    "fragment", ["#q=%3Cimg+src=x+onerror=alert(1)%3E&kind=all", "#i=%3Cimg+src=x+onerror=alert(1)%3E"]
)
def test_a_hostile_address_does_nothing(reader: Reader, repair: Path, fragment: str) -> None:
    page = reader.open(repair, fragment)
    page.wait_for_timeout(100)
    assert page.locator("img").count() == 0


@pytest.mark.parametrize("theme", ["light", "dark", "phone"])
def test_accessibility(reader: Reader, save_repair: Save, theme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python").Axe()
    folder = save_repair(text=" is what I say")
    checks = [
        {"task": "t", "slice": None, "rule": "max_nfr", "verdict": verdict, "reason": "because"}
        for verdict in ("pass", "fail", "inconclusive")
    ]
    (folder / "gate.json").write_text(json.dumps({"verdict": "fail", "checks": checks}))
    size = {"viewport": PHONE} if theme == "phone" else {}
    page = reader.open(write_report(folder), color_scheme="light" if theme == "light" else "dark", **size)

    def check(what: str) -> None:
        options = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"], "resultTypes": ["violations"]}
        found = axe.run(page, options=options).response["violations"]
        assert not found, (what, [(one["id"], [node["html"] for node in one["nodes"]][:3]) for one in found])

    check("the page")
    page.click("#f-tags summary")
    check("the slices")
    page.fill("#f-text", "nothing has this")
    assert page.locator("#tag-list").is_hidden()
    reader.wait(page, "U.found.length === 0")
    check("an empty table")
    page.goto(page.url.split("#")[0] + f"#i={12:016x}")
    page.wait_for_selector("#detail[open]")
    check("the details")
    page.keyboard.press("Escape")
    page.click("#help-open")
    check("the help")


def test_at_phone_width_nothing_overflows(reader: Reader, save_repair: Save, hostile: str) -> None:
    page = reader.open(write_report(save_repair(text=hostile)), viewport=PHONE, color_scheme="dark")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    page.locator("#grid-body .row").first.click()
    assert page.evaluate("document.getElementById('detail-content').scrollWidth") <= PHONE["width"]
    page.keyboard.press("Escape")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.click("#theme")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != dark


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on 50,500 instances, of which 600 flip."""
    folder = tmp_path_factory.mktemp("large")

    def records(broken: int) -> list[Record]:
        return [
            Record(
                f"{n:016x}",
                f"Question {n}: how many?",
                "yes",
                said,
                said,
                right,
                float(right),
                tags={"part": str(n % 7)},
            )
            for n in range(50_500)
            for right in [n % 3 != 0 and n >= broken]
            for said in ["yes" if right else "no"]
        ]

    task = {"task": {"name": "large"}, "batching": {}, "seed": 0, "versions": {}}
    old = write_run(folder / "old", records(0), {"model": {"name": "v1", "weights": "old"}, **task})
    new = write_run(folder / "new", records(900), {"model": {"name": "v2", "weights": "new"}, **task})
    return write_report(compare_runs(old, new, discover=False).save(folder / "comparison"))


def test_fifty_thousand_instances(reader: Reader, large: Path) -> None:
    assert large.stat().st_size < 25_000_000
    page = reader.open(large)
    assert page.inner_text("#count") == "600 of 50,000 instances match"
    assert "50,000 of 50,500 instances are in this file" in page.inner_text("#instances")
    page.select_option("#f-kind", "all")
    assert page.locator("#grid-body .row").first.is_visible()
    page.locator("#grid").focus()
    page.keyboard.press("End")
    reader.wait(page, f"document.getElementById('row-{49_999}') !== null")
    assert page.locator("#grid-body .row").count() < 60
    assert page.evaluate("document.querySelectorAll('*').length") < 3000
    last = page.evaluate("U.idOf(49999)")
    page.fill("#f-text", last)
    reader.wait(page, "U.found.length === 1")
    page.keyboard.press("Escape")
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    assert last in page.inner_text("#detail-content")
