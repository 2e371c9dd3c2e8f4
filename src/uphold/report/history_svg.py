"""The drawings of a history: bands of instances through the versions, and lines over the versions."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

HEIGHT = 420.0
_KIND_GAP, _LEAST_KIND, _LABEL = 7.0, 6.0, 37.0
_STEADY = {"kept", "never"}
_STEADY_HEIGHT = 64.0
_COLUMN, _COLUMN_GAP = 100.0, 4.0


@dataclass(frozen=True)
class Label:
    """Where the name of a kind stands beside its bands."""

    kind: str
    top: float
    """Pixels from the top of the drawing."""


def bands(
    kinds: Mapping[str, int], patterns: Mapping[str, Sequence[tuple[str, int]]], versions: int
) -> tuple[str, list[Label]]:
    """A heat map of instances (downwards, one band per pattern) by versions (to the right), and its labels' places.

    Bands are as high as they have instances, but those that never change get little room where others need it.

    Args:
        kinds: how many instances each kind has, in the order of drawing.
        patterns: per kind, its known patterns and their counts; the instances of no known pattern become one band.
        versions: how many versions there are.

    Returns:
        An SVG as wide as its container and `HEIGHT` pixels high, and a label for every kind that has instances.
    """
    shown = {name: count for name, count in kinds.items() if count}
    heights = _heights(shown)
    parts, labels, top = [], [], 0.0
    for name, count in shown.items():
        height = heights[name]
        parts.append(_kind(sorted(patterns.get(name, ()), reverse=True), count, top, height, versions))
        labels.append(Label(name, top + height / 2 - _LABEL / 2))
        top += height + _KIND_GAP
    width = _COLUMN * versions
    svg = (
        f'<svg class="bands" viewBox="0 0 {width:g} {HEIGHT:g}" preserveAspectRatio="none" aria-hidden="true">'
        f"{''.join(parts)}</svg>"
    )
    return svg, _apart(labels)


def _heights(kinds: Mapping[str, int]) -> dict[str, float]:
    """How high the bands of each kind are, in pixels."""
    room = HEIGHT - _KIND_GAP * (len(kinds) - 1) - _LEAST_KIND * len(kinds)
    total = sum(kinds.values())
    steady = {name: room * count / total for name, count in kinds.items() if name in _STEADY}
    if len(steady) < len(kinds):
        steady = {name: min(height, _STEADY_HEIGHT) for name, height in steady.items()}
    changing = sum(count for name, count in kinds.items() if name not in _STEADY)
    left = room - sum(steady.values())
    return {
        name: _LEAST_KIND + (steady[name] if name in steady else left * count / changing)
        for name, count in kinds.items()
    }


def _kind(patterns: Sequence[tuple[str, int]], count: int, top: float, height: float, versions: int) -> str:
    parts = []
    for pattern, size in patterns:
        tall = height * size / count
        for mark, start, length in _stretches(pattern):
            parts.append(_rect("right" if mark == "1" else "wrong", start, length, top, tall))
        top += tall
    left_over = count - sum(size for _, size in patterns)
    if left_over:
        parts.append(_rect("mixed", 0, versions, top, height * left_over / count))
    return "".join(parts)


def _stretches(pattern: str) -> list[tuple[str, int, int]]:
    """The maximal stretches of equal marks: (mark, start, length)."""
    found: list[tuple[str, int, int]] = []
    for place, mark in enumerate(pattern):
        if found and found[-1][0] == mark:
            found[-1] = (mark, found[-1][1], found[-1][2] + 1)
        else:
            found.append((mark, place, 1))
    return found


def _rect(css: str, start: int, length: int, top: float, height: float) -> str:
    left, width = start * _COLUMN + _COLUMN_GAP / 2, length * _COLUMN - _COLUMN_GAP
    return f'<rect class="{css}" x="{left:g}" y="{top:.2f}" width="{width:g}" height="{max(height, 0.2):.2f}"/>'


def _apart(labels: Sequence[Label]) -> list[Label]:
    """`labels` moved so far that none covers another and all lie inside the drawing."""
    placed: list[Label] = []
    lowest = 0.0
    for label in labels:
        top = max(label.top, lowest)
        placed.append(Label(label.kind, top))
        lowest = top + _LABEL
    highest = HEIGHT - _LABEL
    for index in range(len(placed) - 1, -1, -1):
        top = min(placed[index].top, highest)
        placed[index] = Label(placed[index].kind, top)
        highest = top - _LABEL
    return placed


@dataclass(frozen=True)
class Line:
    """A quantity over the versions."""

    css: str
    """The class that gives it its colour and dashes."""
    label: str
    values: Sequence[float | None]
    """One per version; None where it is not defined."""
    intervals: Sequence[tuple[float, float]] = ()
    """One per version, drawn as whiskers."""


@dataclass(frozen=True)
class _Plot:
    """Where values lie in a line chart, in the units of its drawing."""

    low: float
    high: float
    versions: int
    width: float = 460.0
    height: float = 230.0
    left: float = 52.0
    right: float = 446.0
    top: float = 10.0
    bottom: float = 204.0

    def x(self, place: int) -> float:
        return self.left + 14 + (self.right - self.left - 28) * place / (self.versions - 1)

    def y(self, value: float) -> float:
        return self.bottom - (self.bottom - self.top) * (value - self.low) / (self.high - self.low)

    def points(self, line: Line) -> list[tuple[float, float]]:
        return [(self.x(place), self.y(value)) for place, value in enumerate(line.values) if value is not None]


def lines(title: str, drawn: Sequence[Line], share: bool, from_zero: bool, between: bool = False) -> str:
    """A line chart over two versions or more, numbered from 1.

    Args:
        title: what is drawn, for people who do not see it.
        drawn: the lines; the last is drawn on top.
        share: whether the values are shares, shown in percent.
        from_zero: whether the axis starts at zero.
        between: whether to shade what lies between the first two lines.
    """
    known = [value for line in drawn for value in line.values if value is not None]
    known += [end for line in drawn for interval in line.intervals for end in interval]
    low, high = (0.0 if from_zero else min(known)), max(known)
    room = max(0.06 * (high - low) or 0.05 * abs(high) or 0.01, 5e-6)
    plot = _Plot(0.0 if from_zero else low - room, high + room, max(len(line.values) for line in drawn))
    parts = _axes(plot, share)
    if between:
        around = [*plot.points(drawn[0]), *reversed(plot.points(drawn[1]))]
        parts.append(f'<path class="between" d="{_path(around)}Z"/>')
    for line in drawn:
        parts += _line(plot, line)
    label = escape(f"Line chart over versions 1 to {plot.versions}: {title}")
    return (
        f'<svg class="chart" viewBox="0 0 {plot.width:g} {plot.height:g}" role="img" aria-label="{label}">'
        f"{''.join(parts)}</svg>"
    )


def _axes(plot: _Plot, share: bool) -> list[str]:
    parts = []
    for tick in _ticks(plot.low, plot.high):
        text, y = f"{100 * tick:.10g}%" if share else f"{tick:.4g}", plot.y(tick)
        parts.append(f'<line class="grid" x1="{plot.left:g}" x2="{plot.right:g}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{plot.left - 6:g}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    every = -(-plot.versions // 16)
    for place in range(0, plot.versions, every):
        parts.append(f'<text x="{plot.x(place):.1f}" y="{plot.height - 6:g}" text-anchor="middle">{place + 1}</text>')
    return parts


def _line(plot: _Plot, line: Line) -> list[str]:
    parts = []
    for place, (start, end) in enumerate(line.intervals):
        x = f"{plot.x(place):.1f}"
        span = f'y1="{plot.y(start):.1f}" y2="{plot.y(end):.1f}"'
        parts.append(f'<line class="whisker {line.css}" x1="{x}" x2="{x}" {span}/>')
    points = plot.points(line)
    parts.append(f'<path class="line {line.css}" d="{_path(points)}"/>')
    return parts + [f'<circle class="dot {line.css}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in points]


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _ticks(low: float, high: float) -> list[float]:
    """Two to eight round numbers within [low, high]."""
    step = 1e-6
    for factor in itertools.cycle((2.0, 2.5, 2.0)):
        if (high - low) / step <= 7:
            break
        step *= factor
    first = -(-low // step)
    return [round((first + index) * step, 9) for index in range(int((high - first * step) / step + 1e-9) + 1)]
