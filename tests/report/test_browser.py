"""The report as its reader meets it: in headless Chromium, from one file on disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from uphold.report import write_report
from uphold.report.data import gather
from uphold.report.html import render_html

Save = Callable[..., Path]
Reader = Any
READY = "#browser[aria-busy=false]"


def ids(page: Any) -> list[str]:
    """Ids of the instances that the table shows, in order."""
    found: list[str] = page.evaluate("U.found.map((index) => U.idOf(index))")
    return found


def test_filters_narrow_the_table_and_show_as_chips(reader: Reader, repair: Path) -> None:
    page = reader.open(repair)
    count = page.locator("#count")
    assert count.inner_text() == "4 of 40 instances match"
    assert page.locator("#grid-body .row").count() == 4
    page.select_option("#f-effect", label="fixed (2)")
    assert count.inner_text() == "2 of 40 instances match"
    assert page.locator("#chips .name").all_inner_texts() == ["negative flip", "fixed"]
    page.click("#chips button:has-text('fixed')")
    assert count.inner_text() == "4 of 40 instances match"
    page.select_option("#f-kind", "all")
    page.fill("#f-text", "QUESTION 39")
    reader.wait(page, "document.getElementById('count').textContent.startsWith('1 of 40')")
    assert page.locator("#grid-body mark").inner_text() == "question 39"
    page.select_option("#f-kind", "negative")
    assert page.inner_text("#grid-body") == "No instance matches these filters."
    page.click("text=Clear all")
    assert count.inner_text() == "40 of 40 instances match"


def test_slices_widen_within_a_tag_and_narrow_across(reader: Reader, repair: Path) -> None:
    page = reader.open(repair, "#kind=all")
    page.click("#f-tags summary")
    page.check("#tag-list label:has-text('half = low') input")
    assert page.inner_text("#count").startswith("20 of 40")
    page.check("#tag-list label:has-text('half = high') input")
    assert page.inner_text("#count").startswith("40 of 40")
    page.check("#tag-list label:has-text('all = yes') input")
    assert page.inner_text("#tag-summary") == "3 chosen"
    page.keyboard.press("Escape")
    assert page.locator("#tag-list").is_hidden()
    assert page.evaluate("document.activeElement.tagName") == "SUMMARY"


def test_many_slices_can_be_searched(reader: Reader, save_comparison: Save, tmp_path: Path) -> None:
    data = gather(save_comparison())
    rows = tuple(replace(row, tags={"place": f"town {n}"}) for n, row in enumerate(data.instances.rows))
    path = tmp_path / "many.html"
    path.write_text(render_html(replace(data, instances=replace(data.instances, rows=rows))), encoding="utf-8")
    page = reader.open(path, "#kind=all")
    page.click("#f-tags summary")
    assert page.evaluate("document.activeElement.id") == "f-tag-search"
    page.keyboard.type("town 17")
    assert page.locator("#tag-list label").count() == 1
    page.check("#tag-list input")
    assert page.inner_text("#count") == "1 of 40 instances match"


def test_charts_lead_to_their_instances_and_back(reader: Reader, repair: Path) -> None:
    page = reader.open(repair)
    page.click(".flows a:has-text('newly broken')")
    assert page.inner_text("#count") == "1 of 40 instances match"
    assert page.evaluate("document.getElementById('instances').getBoundingClientRect().top") < 400
    page.locator(".sankey a[href*='fixed']").focus()
    page.keyboard.press("Enter")
    reader.wait(page, "document.getElementById('count').textContent.startsWith('2 of 40')")
    page.click(".slices a:has-text('half = high')")
    assert page.inner_text("#count") == "20 of 40 instances match"
    page.click(".slices a:has-text('old margin = -2 to 0 nats')")
    assert page.inner_text("#count") == "23 of 40 instances match"
    page.go_back()
    page.click(".matrix .negative a")
    assert page.inner_text("#count") == "4 of 40 instances match"
    page.go_back()
    reader.wait(page, "document.getElementById('count').textContent.startsWith('20 of 40')")
    page.go_back()
    reader.wait(page, "document.getElementById('count').textContent.startsWith('2 of 40')")


def test_a_link_to_a_section_keeps_the_filters(reader: Reader, repair: Path) -> None:
    page = reader.open(repair, "#kind=positive")
    page.click("nav a:has-text('Slices')")
    assert page.inner_text("#count") == "6 of 40 instances match"


def test_sorting_by_column_and_by_list(reader: Reader, repair: Path) -> None:
    page = reader.open(repair, "#kind=all")
    golds = "U.found.map((index) => U.row(index).gold)"
    page.click("#grid-head .sort:has-text('Gold')")
    assert page.evaluate(golds) == sorted(page.evaluate(golds))
    assert page.get_attribute("#grid-head .gold", "aria-sort") == "ascending"
    page.click("#grid-head .sort:has-text('Gold')")
    assert page.evaluate(golds) == sorted(page.evaluate(golds), reverse=True)
    page.select_option("#f-sort", "change")
    falls = page.evaluate("U.found.map((index) => U.row(index).answers[1].margin - U.row(index).answers[0].margin)")
    assert falls == sorted(falls)
    page.reload()
    page.wait_for_selector(READY)
    assert page.input_value("#f-sort") == "change"


def test_an_address_opens_its_instance(reader: Reader, repair: Path) -> None:
    page = reader.open(repair, f"#i={15:016x}")
    assert page.locator("#detail").is_visible()
    assert "question 15" in page.inner_text("#detail-content")
    assert page.inner_text("#detail-title").startswith("▼ negative flip")
    page.keyboard.press("Escape")
    assert page.locator("#detail").is_hidden()
    assert page.evaluate("document.activeElement.id") == "grid"
    assert "i=" not in page.evaluate("location.hash")
    page.go_back()
    page.wait_for_selector("#detail[open]")


def test_filters_and_instance_come_back_from_the_address(reader: Reader, repair: Path) -> None:
    page = reader.open(repair, "#kind=all&tag=half+%3D+low&q=question+1&sort=gold&down=1")
    expected = ids(page)
    assert len(expected) == 11
    page.locator("#grid-body .row").nth(2).click()
    address = page.evaluate("location.hash")
    page.keyboard.press("Escape")
    again = reader.open(repair, address)
    assert ids(again) == expected
    assert again.inner_text("#detail-place") == "3 of 11"


@pytest.mark.parametrize(
    "fragment", ["#kind=nothing&effect=x&tag=none&brush=9,1,2&sort=?", "#i=unknown", "#=", "#%%%=%"]
)
def test_a_strange_address_is_no_error(reader: Reader, repair: Path, fragment: str) -> None:
    page = reader.open(repair, fragment)
    assert page.locator("#grid-body .row").count() > 0
    if fragment == "#i=unknown":
        assert page.inner_text("#toast") == "The instance unknown is not in this file"


def test_keys_walk_open_and_close(reader: Reader, repair: Path) -> None:
    page = reader.open(repair, "#kind=all")
    page.keyboard.press("j")
    page.keyboard.press("j")
    assert page.evaluate("U.active") == 1
    active = page.get_attribute("#grid", "aria-activedescendant")
    assert page.get_attribute(f"#{active}", "aria-selected") == "true"
    page.keyboard.press("End")
    assert page.evaluate("U.active") == 39
    page.keyboard.press("p")
    assert page.evaluate("U.active") == 3
    page.keyboard.press("Enter")
    assert page.inner_text("#detail-place") == "4 of 40"
    page.keyboard.press("k")
    page.keyboard.press("k")
    assert page.inner_text("#detail-place") == "2 of 40"
    page.keyboard.press("n")
    assert page.inner_text("#detail-place") == "3 of 40"
    page.keyboard.press("Escape")
    assert page.evaluate("[U.active, document.activeElement.id]") == [2, "grid"]
    page.keyboard.press("/")
    page.keyboard.type("jkn?")
    assert page.input_value("#f-text") == "jkn?"
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    page.uncheck("#keys-on")
    page.click("#help-close")
    page.keyboard.press("?")
    assert page.locator("#help").is_hidden()


def test_copying_with_and_without_the_clipboard(reader: Reader, repair: Path) -> None:
    listen = """addEventListener("copy", () => { window.copied = document.activeElement.value; });
        Object.defineProperty(navigator, "clipboard", { value: undefined });"""
    page = reader.open(repair, f"#i={12:016x}", init=listen)
    page.click("#detail-copy")
    reader.wait(page, "window.copied")
    text = page.evaluate("window.copied")
    assert text.startswith("### Negative flip, fixed\n\n` colours `: ` v1 ` → ` v2 `")
    assert "**Old answer** (right, margin +1.00)\n\n```text\nred\n```" in text
    assert page.inner_text("#toast") == "Copied as Markdown"
    assert page.evaluate("document.activeElement.id") == "detail-copy"
    page.click("#detail-link")
    reader.wait(page, "window.copied.startsWith('file:')")
    assert page.evaluate("window.copied").endswith(f"report.html#i={12:016x}")
    page.keyboard.press("Escape")
    page.click("#copy-list")
    reader.wait(page, "window.copied.includes('40 of 40')")
    clip = reader.open(repair, f"#i={12:016x}", permissions=["clipboard-read", "clipboard-write"])
    clip.keyboard.press("c")
    reader.wait(clip, "document.getElementById('toast').textContent")
    assert clip.evaluate("navigator.clipboard.readText()") == text


def test_fences_are_longer_than_those_in_a_text(reader: Reader, repair: Path) -> None:
    page = reader.open(repair)
    text = page.evaluate(
        "U.instanceMarkdown({ ...U.row(0), input: 'a\\n````\\nb', id: 'x`y', gold: '', tags: [{ label: '``' }] })"
    )
    assert "`````text\na\n````\nb\n`````" in text
    assert "`` x`y ``" in text
    assert "``` `` ```" in text
    assert "(empty)" in text


DIFFS: list[tuple[str, str, list[list[Any]]]] = [
    ("the cat sat", "the dog sat", [[0, "the "], [-1, "cat"], [1, "dog"], [0, " sat"]]),
    ("same", "same", [[0, "same"]]),
    ("", "new words", [[1, "new words"]]),
    ("a b c d", "a c d e", [[0, "a "], [-1, "b "], [0, "c d"], [1, " e"]]),
    ("one two", "three four", [[-1, "one two"], [1, "three four"]]),
    ("naïve café 42", "naïve café 43", [[0, "naïve café "], [-1, "42"], [1, "43"]]),
]


def test_word_diff(reader: Reader, repair: Path) -> None:
    page = reader.open(repair)
    for old, new, steps in DIFFS:
        found = page.evaluate("([a, b]) => U.diff(a, b)", [old, new])
        assert found == steps
        assert "".join(text for sign, text in found if sign <= 0) == old
        assert "".join(text for sign, text in found if sign >= 0) == new


def test_a_long_diff_stays_cheap(reader: Reader, repair: Path) -> None:
    page = reader.open(repair)
    steps = page.evaluate("U.diff('x ' + 'a b '.repeat(3000) + 'y', 'x ' + 'c d '.repeat(3000) + 'y').map(([s]) => s)")
    assert steps == [0, -1, 1, 0]


def test_the_details_of_an_instance(reader: Reader, save_repair: Save) -> None:
    page = reader.open(write_report(save_repair(text=" is what I say")), f"#i={12:016x}")
    old, new = page.locator(".answers .answer").nth(0), page.locator(".answers .answer").nth(1)
    assert "✓ right" in old.inner_text()
    assert "✗ wrong" in new.inner_text()
    assert old.locator("del").text_content() == "[removed: red]"
    assert new.locator("ins").text_content() == "[added: green]"
    page.click(".switch >> text=old – repaired")
    assert page.inner_text(".legend-diff") == "Old and repaired say the same."
    assert page.locator(".options tbody tr").count() == 3
    assert page.inner_text(".options .gold td.best .num") == "−1.00"
    page.click(".tags >> text=half = low")
    assert page.locator("#detail").is_hidden()
    assert page.inner_text("#count") == "20 of 40 instances match"


def test_a_rectangle_in_the_scatter_filters(reader: Reader, repair: Path) -> None:
    page = reader.open(repair, "#kind=all")
    canvas = page.locator("figure[data-panel='0'] canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    unit = box["width"] / 400
    frame = page.evaluate("U.head.panels[0]")

    def place(old: float, new: float) -> tuple[float, float]:
        span = frame["high"] - frame["low"]
        x = frame["left"] + frame["size"] * (old - frame["low"]) / span
        y = frame["top"] + frame["size"] * (1 - (new - frame["low"]) / span)
        return box["x"] + x * unit, box["y"] + y * unit

    page.mouse.move(*place(0.05, 0.0))
    page.mouse.down()
    page.mouse.move(*place(1.1, frame["low"] + 0.001), steps=3)
    page.mouse.up()
    assert page.inner_text("#count") == "4 of 40 instances match"
    assert "brush=0" in page.evaluate("location.hash")
    assert page.locator("#chips .name").inner_text().startswith("old 0.0")
    page.click("#chips button")
    page.fill("figure[data-panel='0'] [name=y1]", "0")
    page.keyboard.press("Tab")
    wrong = page.evaluate("U.found.length")
    assert wrong == 21
    page.fill("figure[data-panel='0'] [name=x0]", "0")
    page.keyboard.press("Tab")
    assert page.inner_text("#count") == "4 of 40 instances match"
    page.click("#chips button")
    margins = page.evaluate(f"U.row(U.indexOf('{12:016x}')).answers.map((answer) => answer.margin)")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    page.mouse.click(*place(margins[0], margins[1]))
    assert page.inner_text("#detail-title").startswith("▼ negative flip")


def test_continuous_scores_in_the_browser(reader: Reader, save_scores: Save) -> None:
    page = reader.open(write_report(save_scores([0.5, 0.5, 0.5, None], [0.4, 0.9, 0.5, 0.1])))
    assert page.inner_text("#count") == "1 of 4 instances match"
    page.locator("#grid-body .row").click()
    assert "score 0.400" in page.inner_text("#detail-content")


def test_without_a_scatter_or_tags(reader: Reader, save_comparison: Save) -> None:
    outcomes = [(True, False), (True, True), (False, False)]
    page = reader.open(write_report(save_comparison(tags=False, logprobs=False, outcomes=outcomes)))
    assert page.locator("canvas").count() == 0
    assert page.locator("#f-tags").is_hidden()
    page.locator("#grid-body .row").first.click()
    assert page.locator(".options").count() == 0


def test_a_browser_that_cannot_unpack_says_so(reader: Reader, repair: Path) -> None:
    page = reader.open(repair, init="delete window.DecompressionStream", ready="#too-old:not([hidden])")
    assert page.locator("#browser").is_hidden()
