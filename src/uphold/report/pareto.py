"""Accuracy against negative flips: which versions are worth having, drawn and told.

Plain points in, one inline SVG and one table out, so that a search, a table of methods and a reproduction can share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

from uphold.report.svg import nice_ticks, tick_label
from uphold.report.text import visible

Kind = Literal["old", "new", "control", "repair", "chosen", "paragon"]
KINDS: dict[Kind, str] = {
    "old": "old",
    "new": "new (plain update)",
    "control": "control",
    "repair": "repair",
    "chosen": "chosen repair",
    "paragon": "paragon: keeps both models",
}
"""What a legend calls each kind of point, in the order of drawing."""
_WIDTH, _HEIGHT = 620.0, 430.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 64.0, 600.0, 16.0, 372.0
_EDGE = 13.0
"""How far inside the frame a point is drawn that lies outside."""
_FAR = 2.5
"""A point further out than this many times the spread of the others is drawn at the edge."""


@dataclass(frozen=True)
class Point:
    """One version of a model."""

    label: str
    score: float
    """Accuracy, a share; or a mean score."""
    nfr: float
    """Negative flip rate against the old version, a share; 0 for the old version itself."""
    kind: Kind
    score_interval: tuple[float, float] | None = None
    nfr_interval: tuple[float, float] | None = None


def front(points: Sequence[Point]) -> list[int]:
    """Which points no other beats: none is at least as accurate with at most its NFR, and better in one of the two.

    The old version and paragons are no alternatives to ship, so they are neither on the front nor in its way.

    Returns:
        Their places in `points`, by growing accuracy; of equal points the first.
    """
    open_ = [place for place, point in enumerate(points) if point.kind not in ("old", "paragon")]
    found, least = [], float("inf")
    for place in sorted(open_, key=lambda place: (-points[place].score, points[place].nfr)):
        if points[place].nfr < least:
            least = points[place].nfr
            found.append(place)
    return found[::-1]


def pareto_svg(points: Sequence[Point], share: bool = True) -> str:
    """A scatter plot of accuracy (to the right) against NFR (upwards) with 95% intervals.

    Every point carries its number, counted from 1, leads to `#point-NUMBER`, and says its numbers when it is pointed
    at. A step line joins the Pareto front. A point far from all others is drawn at the edge, with its value.

    Args:
        points: at least one.
        share: whether scores are shares, shown in percent.
    """
    frame = _frame(points)
    best = front(points)
    parts = [_axes(frame, share), _steps(frame, [points[place] for place in best])]
    order = list(KINDS)
    for place in sorted(range(len(points)), key=lambda place: order.index(points[place].kind)):
        parts.append(_mark(frame, points[place], place + 1, place in best, share))
    label = escape(
        f"Scatter plot of {len(points)} versions: {'accuracy' if share else 'mean score'} against NFR on the test "
        "split; the table has the same numbers"
    )
    return (
        f'<svg class="pareto" viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" role="img" aria-label="{label}">'
        f"{''.join(part for part in parts if part)}</svg>"
    )


@dataclass(frozen=True)
class _Frame:
    low: float
    high: float
    top: float
    """The NFR at the upper edge; the lower edge is 0."""

    def x(self, score: float) -> float:
        place = (score - self.low) / (self.high - self.low)
        return _LEFT + (_RIGHT - _LEFT) * min(1.0, max(0.0, place))

    def y(self, nfr: float) -> float:
        return _BOTTOM - (_BOTTOM - _TOP) * min(1.0, max(0.0, nfr / self.top))

    def beyond(self, point: Point) -> bool:
        return not self.low <= point.score <= self.high or point.nfr > self.top


def _frame(points: Sequence[Point]) -> _Frame:
    low, high = _range([point.score for point in points], [point.score_interval for point in points])
    _, top = _range([point.nfr for point in points], [point.nfr_interval for point in points])
    return _Frame(low, high, max(top, 1e-6))


def _range(values: Sequence[float], intervals: Sequence[tuple[float, float] | None]) -> tuple[float, float]:
    """The range to draw: all values but those far from the middle half, with their intervals and some room."""
    ordered = sorted(values)
    lower, upper = ordered[len(ordered) // 4], ordered[(3 * len(ordered)) // 4]
    widths = sorted(end - start for start, end in filter(None, intervals))
    reach = _FAR * max(upper - lower, widths[len(widths) // 2] if widths else 0.0)
    near = [place for place, value in enumerate(values) if lower - reach <= value <= upper + reach] if reach else []
    kept = near or list(range(len(values)))
    ends = [end for place in kept for end in (values[place], *(intervals[place] or ()))]
    room = 0.05 * (max(ends) - min(ends)) or 0.01
    return min(ends) - room, max(ends) + room


def _axes(frame: _Frame, share: bool) -> str:
    parts = [f'<rect class="frame" x="{_LEFT:g}" y="{_TOP:g}" width="{_RIGHT - _LEFT:g}" height="{_BOTTOM - _TOP:g}"/>']
    for tick in nice_ticks(frame.low, frame.high, 5):
        x = f"{frame.x(tick):.1f}"
        parts.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{_TOP:g}" y2="{_BOTTOM:g}"/>')
        parts.append(f'<text x="{x}" y="{_BOTTOM + 19:g}" text-anchor="middle">{tick_label(tick, share)}</text>')
    for tick in nice_ticks(0.0, frame.top, 5):
        y = frame.y(tick)
        parts.append(f'<line class="grid" x1="{_LEFT:g}" x2="{_RIGHT:g}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8:g}" y="{y + 4.5:.1f}" text-anchor="end">{tick_label(tick, True)}</text>')
    name = "accuracy →" if share else "mean score →"
    parts.append(f'<text class="axis-name" x="{_RIGHT:g}" y="{_HEIGHT - 12:g}" text-anchor="end">{name}</text>')
    middle = (_TOP + _BOTTOM) / 2
    parts.append(
        f'<text class="axis-name" text-anchor="middle" transform="translate(17 {middle:g}) rotate(-90)">'
        "← fewer negative flips (NFR)</text>"
    )
    return "".join(parts)


def _steps(frame: _Frame, best: Sequence[Point]) -> str:
    """The front's border: below and to the right of it there is no version."""
    if not best:
        return ""
    path = f"M{_LEFT:g} {frame.y(best[0].nfr):.1f}"
    for point in best:
        path += f"V{frame.y(point.nfr):.1f}H{frame.x(point.score):.1f}"
    return f'<path class="front" d="{path}V{_TOP:g}"/>'


def _mark(frame: _Frame, point: Point, number: int, best: bool, share: bool) -> str:
    x, y = frame.x(point.score), frame.y(point.nfr)
    if frame.beyond(point):
        x, y = min(max(x, _LEFT + _EDGE), _RIGHT - _EDGE), max(y, _TOP + _EDGE)
    parts = [f"<title>{number}. {escape(visible(tell(point, share)))}</title>"]
    if point.nfr_interval:
        low, high = (frame.y(end) for end in point.nfr_interval)
        parts.append(f'<line class="whisker" x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>')
    if point.score_interval:
        low, high = (frame.x(end) for end in point.score_interval)
        parts.append(f'<line class="whisker" x1="{low:.1f}" x2="{high:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
    size = 11 if point.kind == "chosen" else 9
    parts.append(f'<path class="shape" d="M{x:.1f} {y:.1f}{_shape(point.kind, size)}"/>')
    parts.append(f'<text class="number" x="{x:.1f}" y="{y + 3.6:.1f}" text-anchor="middle">{number}</text>')
    if frame.beyond(point):
        value = tick_label(round(point.score, 4), share)
        anchor, shift = ("start", 16) if x < (_LEFT + _RIGHT) / 2 else ("end", -16)
        parts.append(f'<text class="far" x="{x + shift:.1f}" y="{y + 4.5:.1f}" text-anchor="{anchor}">{value}</text>')
    css = f"mark k-{point.kind}{' best' if best else ''}"
    values = f'data-score="{point.score:.6g}" data-nfr="{point.nfr:.6g}"'
    return f'<a href="#point-{number}" class="{css}" {values}>{"".join(parts)}</a>'


def _shape(kind: Kind, size: float) -> str:
    """The outline of a mark around the current point."""
    if kind == "old":
        half = 1.3 * size
        return f"m0 {-half:g}l{half:g} {half:g}l{-half:g} {half:g}l{-half:g} {-half:g}z"
    if kind == "new":
        return f"m{-size:g} {-size:g}h{2 * size:g}v{2 * size:g}h{-2 * size:g}z"
    if kind == "control":
        return f"m0 {-1.35 * size:g}l{1.4 * size:g} {2.35 * size:g}h{-2.8 * size:g}z"
    return f"m{-size:g} 0a{size:g} {size:g} 0 1 0 {2 * size:g} 0a{size:g} {size:g} 0 1 0 {-2 * size:g} 0z"


def tell(point: Point, share: bool = True) -> str:
    """A point in words: `muscle: accuracy 61.2% [59.0%, 63.3%], NFR 4.1% [3.3%, 5.1%]`."""
    name = "accuracy" if share else "mean score"
    score, nfr = interval_text(point.score, point.score_interval, share), interval_text(point.nfr, point.nfr_interval)
    return f"{point.label}: {name} {score}, NFR {nfr}"


def interval_text(value: float, interval: tuple[float, float] | None, share: bool = True) -> str:
    """A value with its interval, as tables and titles show it."""

    def text(number: float) -> str:
        return f"{100 * number:.2f}%" if share else f"{number:.3f}"

    return text(value) if interval is None else f"{text(value)} [{text(interval[0])}, {text(interval[1])}]"


def pareto_markdown(points: Sequence[Point], share: bool = True) -> str:
    """The same points as a Markdown table; the front's are marked."""
    from uphold.report.markdown import escape as literal

    best = front(points)
    lines = [
        f"| # | version | kind | {'accuracy' if share else 'mean score'} | NFR | Pareto front |",
        "| ---: | --- | --- | ---: | ---: | --- |",
    ]
    for place, point in enumerate(points):
        cells = [
            str(place + 1),
            literal(point.label),
            KINDS[point.kind],
            interval_text(point.score, point.score_interval, share),
            interval_text(point.nfr, point.nfr_interval),
            "yes" if place in best else "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
