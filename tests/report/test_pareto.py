from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uphold.core.errors import DataError
from uphold.core.stats import MarginTest
from uphold.measure.rates import Rate
from uphold.repair.search_choice import Candidate
from uphold.repair.search_result import Control, Measured, Search, SearchConfig, Skipped, Trial, load_search
from uphold.report import write_report
from uphold.report.pareto import Kind, Point, front, pareto_markdown, pareto_svg
from uphold.report.search import points_of, render_html, render_markdown

POINTS = [
    Point("old", 0.60, 0.0, "old", (0.57, 0.63)),
    Point("new (plain update)", 0.70, 0.060, "new", (0.67, 0.73), (0.05, 0.07)),
    Point("control", 0.71, 0.058, "control", (0.68, 0.74), (0.05, 0.07)),
    Point("best", 0.71, 0.030, "chosen", (0.68, 0.74), (0.02, 0.04)),
    Point("gentle", 0.72, 0.045, "repair", (0.69, 0.75), (0.03, 0.06)),
    Point("worse", 0.70, 0.050, "repair", (0.67, 0.73), (0.04, 0.06)),
    Point("ensemble", 0.73, 0.020, "paragon", (0.70, 0.76), (0.01, 0.03)),
]


def test_the_front_holds_what_no_other_beats() -> None:
    """The ensemble would beat all, but is two models; the old version is no update."""
    assert [POINTS[place].label for place in front(POINTS)] == ["best", "gentle"]


points = st.lists(
    st.builds(
        Point,
        st.just("x"),
        st.integers(0, 20).map(lambda value: value / 20),
        st.integers(0, 20).map(lambda value: value / 20),
        st.sampled_from(["old", "new", "control", "repair", "chosen", "paragon"]),
    ),
    min_size=1,
    max_size=12,
)


@given(points)
def test_every_other_point_is_beaten_by_one_on_the_front(found: list[Point]) -> None:
    best = [found[place] for place in front(found)]
    assert [point.score for point in best] == sorted({point.score for point in best})
    for point in found:
        if point.kind not in ("old", "paragon"):
            assert any(other.score >= point.score and other.nfr <= point.nfr for other in best)


def marks(svg: str) -> dict[int, tuple[float, float, float, float]]:
    """By number: the values that a mark says, and where it is drawn."""
    pattern = r'href="#point-(\d+)"[^>]*data-score="([^"]+)" data-nfr="([^"]+)".*?class="shape" d="M([\d.]+) ([\d.]+)m'
    return {int(found[0]): tuple(map(float, found[1:])) for found in re.findall(pattern, svg)}  # type: ignore[misc]


def test_marks_stand_where_their_numbers_say() -> None:
    drawn = marks(pareto_svg(POINTS))
    assert [drawn[place + 1][:2] for place in range(len(POINTS))] == [(p.score, p.nfr) for p in POINTS]
    (ax, ay), (bx, by) = drawn[2][2:], drawn[4][2:]
    right, down = (bx - ax) / (0.71 - 0.70), (by - ay) / (0.060 - 0.030)
    assert right > 0
    assert down > 0
    for score, nfr, x, y in drawn.values():
        if score >= 0.66:
            assert x == pytest.approx(ax + right * (score - 0.70), abs=0.2)
            assert y == pytest.approx(ay + down * (0.060 - nfr), abs=0.2)


def test_a_version_far_off_is_drawn_at_the_edge_with_its_value() -> None:
    near = [replace(point, score=point.score + 0.001 * place) for place, point in enumerate(POINTS[1:])]
    svg = pareto_svg([Point("old", 0.05, 0.0, "old"), *near])
    assert '<text class="far"' in svg
    assert ">5%</text>" in svg
    assert marks(svg)[1][2] == 77


def test_one_point_and_equal_points_can_be_drawn() -> None:
    for found in ([Point("a", 0.5, 0.0, "new")], [Point("a", 0.5, 0.1, "new")] * 3):
        svg = pareto_svg(found)
        assert "nan" not in svg
        assert len(marks(svg)) == len(found)


@pytest.mark.parametrize("kind", ["old", "new", "control", "repair", "chosen", "paragon"])
def test_labels_are_escaped(kind: Kind, hostile: str) -> None:
    svg = pareto_svg([Point(hostile, 0.5, 0.1, kind)])
    assert "<script" not in svg
    assert "<img" not in svg
    assert "\u202e" not in svg
    assert "| 1 | &lt;/script&gt;" in pareto_markdown([Point(hostile, 0.5, 0.1, kind)])


def test_the_table_has_the_same_numbers() -> None:
    rows = pareto_markdown(POINTS).splitlines()[2:]
    assert rows[3] == "| 4 | best | chosen repair | 71.00% [68.00%, 74.00%] | 3.00% [2.00%, 4.00%] | yes |"
    assert rows[6].endswith("| 2.00% [1.00%, 3.00%] |  |")


def rate(name: str, value: float, unit: str = "share") -> Rate:
    return Rate(name, name, value, max(0.0, value - 0.01), value + 0.01, unit=unit)


def measured(score: float, nfr: float) -> Measured:
    return Measured(rate("accuracy_new", score), rate("nfr", nfr))


def trial(label: str, nfr: float, score: float, form: str = "adapter", **changes: Any) -> Trial:
    one = Candidate(label, 500, score, nfr, 0.7, 0.06, 40, MarginTest(0.2, -0.02, 0.03, False), 0.005)
    return Trial(label, label, "m", "training", {}, "finished", 60.0, "", form, one, measured(score, nfr), **changes)


def search(folder: Path, text: str = "") -> Search:
    return Search(
        task=f"colours{text}",
        old=f"v1{text}",
        new="v2",
        config=SearchConfig(trials=4),
        count=1000,
        old_score=rate("accuracy_old", 0.6),
        plain=measured(0.7, 0.06),
        trials=(
            trial("weak", 0.05, 0.7),
            trial(f"strong{text}", 0.03, 0.71),
            trial("both", 0.02, 0.73, "pair"),
            Trial("bad", f"bad{text}", "bad", "training", {}, "failed", 1.0, f"ValueError: no{text}"),
        ),
        chosen=f"strong{text}",
        on_test=MarginTest(0.2, -0.02, 0.03, False),
        controls=(Control("control: cross-entropy only", measured(0.71, 0.058)),),
        skipped=(Skipped(f"more{text}", "4 trials were asked for"),),
        notes=(f"a note{text}",),
        seconds=181.0,
        folder=folder,
    )


class Text(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def test_the_page_says_what_was_chosen_and_what_was_not_tried(tmp_path: Path) -> None:
    found = search(tmp_path)
    assert [point.kind for point in points_of(found)] == ["old", "new", "control", "chosen", "repair", "paragon"]
    page = Text(render_html(found))
    assert "4 repairs tried, chosen: strong. On test it takes the NFR from 6.00% to 3.00%" in page.text
    assert "bad: failed: ValueError: no" in page.text
    assert "more: 4 trials were asked for" in page.text
    assert "keeps both models" in page.text
    anchors = {attributes.get("href") for tag, attributes in page.tags if tag == "a"}
    ids = {attributes.get("id") for _, attributes in page.tags}
    assert {f"#point-{number}" for number in range(1, 7)} <= anchors
    assert all(anchor[1:] in ids for anchor in anchors if anchor)
    markdown = render_markdown(found)
    assert "| 4 | strong | chosen repair | 71.00% [70.00%, 72.00%] | 3.00% [2.00%, 4.00%] | yes |" in markdown
    assert "| strong (chosen) | 3.00% | 71.00% | +1.00 | −2.00 | 0.2 | not shown |" in markdown


def test_hostile_names_stay_text(tmp_path: Path, hostile: str) -> None:
    html = render_html(search(tmp_path, hostile))
    page = Text(html)
    assert "alert(1)" in page.text
    assert [tag for tag, _ in page.tags].count("script") == 2
    assert not [tag for tag, _ in page.tags if tag == "img"]
    assert "\u202e" not in html
    assert "<script" not in render_markdown(search(tmp_path, hostile))


def test_a_search_is_saved_loaded_and_reported(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        load_search(tmp_path)
    (tmp_path / "trials").mkdir()
    search(tmp_path).save()
    assert load_search(tmp_path) == search(tmp_path)
    page = write_report(tmp_path)
    first = page.read_bytes()
    assert page.name == "search.html"
    assert (tmp_path / "search.md").is_file()
    assert write_report(tmp_path).read_bytes() == first
    assert not (tmp_path / "report.html").exists()


def test_nothing_chosen_is_said(tmp_path: Path) -> None:
    found = replace(search(tmp_path), chosen=None, on_test=None, controls=())
    assert "none to ship" in Text(render_html(found)).text
    assert "chosen" not in [point.kind for point in points_of(found)]


@pytest.mark.parametrize("options", [{"viewport": {"width": 360, "height": 700}}, {"java_script_enabled": False}])
def test_the_page_fits_a_phone_and_needs_no_script(options: dict[str, Any], reader: Any, tmp_path: Path) -> None:
    path = tmp_path / "search.html"
    path.write_text(render_html(search(tmp_path)))
    page = reader.open(path, ready="#pareto svg.pareto", **options)
    assert page.locator("svg.pareto a").count() == 6
    if "viewport" in options:
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
