"""Inline SVG charts as strings. Colours are the page's CSS variables, so that one drawing serves light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

from uphold.report.instances import CODES
from uphold.report.points import DISC, Points

_FLIPS = (CODES.index("negative"), CODES.index("positive"))
FLIP_LIMIT = 5000
"""Flips that one still scatter draws at most; up to here none is left out. The page's script draws them all."""
_DRAWING_ORDER = ("both_wrong", "both_right", "tie", "positive", "negative")


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` round numbers that lie in [low, high]."""
    span = high - low
    if span <= 0:
        return [low]
    rough = span / max(count, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = min((factor * power for factor in (1, 2, 2.5, 5, 10)), key=lambda size: abs(size - rough))
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def tick_label(value: float, share: bool) -> str:
    """A tick's number without superfluous digits."""
    text = f"{100 * value:.10g}%" if share else f"{value:.6g}"
    return text.replace("-", "−")


@dataclass(frozen=True)
class Scale:
    """A linear scale from data to percent of the width."""

    low: float
    high: float
    share: bool = True

    def at(self, value: float) -> str:
        """`value` as an SVG percentage, clamped to the drawing."""
        span = self.high - self.low
        position = 0.5 if span <= 0 else (value - self.low) / span
        return f"{100 * min(1.0, max(0.0, position)):.2f}%"


def scale_over(values: Sequence[float | None], from_zero: bool, share: bool = True) -> Scale:
    """A scale that holds all `values` with some room; undefined ones are left out."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known:
        return Scale(0.0, 1.0, share)
    low, high = min(known), max(known)
    room = 0.06 * (high - low) or 0.05 * abs(high) or 0.01
    return Scale(0.0 if from_zero else low - room, high + room, share)


def dot_row(scale: Scale, value: float | None, low: float | None, high: float | None, floor: float | None) -> str:
    """One dot with its interval on `scale`; a dashed line marks the noise floor. Text-free, any width."""
    parts = [f'<line class="grid" x1="{scale.at(t)}" x2="{scale.at(t)}" y1="0" y2="100%"/>' for t in _ticks(scale)]
    if floor is not None:
        parts.append(f'<line class="floor" x1="{scale.at(floor)}" x2="{scale.at(floor)}" y1="0" y2="100%"/>')
    if low is not None and high is not None:
        parts.append(f'<line class="whisker" x1="{scale.at(low)}" x2="{scale.at(high)}" y1="50%" y2="50%"/>')
    if value is not None:
        parts.append(f'<circle class="dot" cx="{scale.at(value)}" cy="50%" r="5"/>')
    return f'<svg class="row" aria-hidden="true">{"".join(parts)}</svg>'


def axis_row(scale: Scale) -> str:
    """The numbers below a stack of `dot_row`."""
    labels = "".join(
        f'<text x="{scale.at(tick)}" y="12" text-anchor="middle">{tick_label(tick, scale.share)}</text>'
        for tick in _ticks(scale)
    )
    return f'<svg class="axis" aria-hidden="true">{labels}</svg>'


def _ticks(scale: Scale) -> list[float]:
    edge = 0.04 * (scale.high - scale.low)
    ticks = nice_ticks(scale.low, scale.high - edge, 3)
    return [tick for tick in ticks if tick >= scale.low + edge or tick == 0]


def forest_row(
    scale: Scale, marks: Sequence[tuple[str, float, float, float]], overall: float | None, floor: float | None
) -> str:
    """One row of a forest plot: a square with its interval per entry (CSS class, value, low, high), stacked.

    Args:
        scale: the plot's common scale.
        marks: what was measured in the slice.
        overall: the rate over all instances, a solid line through every row.
        floor: the noise floor, a dashed line.
    """
    height = 14 * len(marks) + 14
    parts = [f'<line class="grid" x1="{scale.at(t)}" x2="{scale.at(t)}" y1="0" y2="100%"/>' for t in _ticks(scale)]
    for name, value in (("floor", floor), ("overall", overall)):
        if value is not None:
            parts.append(f'<line class="{name}" x1="{scale.at(value)}" x2="{scale.at(value)}" y1="0" y2="100%"/>')
    for index, (name, value, low, high) in enumerate(marks):
        middle = 14 * index + 14
        parts.append(
            f'<g class="{escape(name)}"><line class="whisker" x1="{scale.at(low)}" x2="{scale.at(high)}" '
            f'y1="{middle}" y2="{middle}"/><svg x="{scale.at(value)}" y="{middle}" class="point">'
            '<rect class="square" x="-4.5" y="-4.5" width="9" height="9"/></svg>'
        )
        if high > scale.high:
            parts.append(f'<svg x="100%" y="{middle}" class="point"><path class="cut" d="M-7-4.5L0 0L-7 4.5"/></svg>')
        parts.append("</g>")
    return f'<svg class="forest" style="height:{height}px" aria-hidden="true">{"".join(parts)}</svg>'


def thin(points: Points, limit: int = 2000, flip_limit: int = FLIP_LIMIT) -> NDArray[np.int64]:
    """Which points to draw: every flip (up to `flip_limit`), the others sampled evenly down to `limit` in all."""
    flips = np.flatnonzero(np.isin(points.kind, _FLIPS))
    others = np.flatnonzero(~np.isin(points.kind, _FLIPS))
    return np.concatenate([_evenly(flips, flip_limit), _evenly(others, max(limit // 4, limit - len(flips)))])


def flip_count(points: Points) -> int:
    """How many of the points are flips."""
    return int(np.isin(points.kind, _FLIPS).sum())


def _evenly(indices: NDArray[np.int64], limit: int) -> NDArray[np.int64]:
    if len(indices) <= limit:
        return indices
    return indices[np.linspace(0, len(indices) - 1, limit).astype(np.int64)]


def marker(kind: str) -> str:
    """The legend's picture of one kind of instance."""
    path = f'<path class="{kind}" d="{_mark(kind, 0, 0)}"/>'
    return f'<svg class="marker" viewBox="-5 -5 10 10" aria-hidden="true">{path}</svg>'


def _mark(kind: str, x: float, y: float) -> str:
    start = f"M{x:.1f} {y:.1f}"
    if kind == "negative":
        return f"{start}m-3.8-3.1h7.6l-3.8 6.9z"
    if kind == "positive":
        return f"{start}m-3.8 3.1h7.6l-3.8-6.9z"
    if kind == "both_wrong":
        return f"{start}m-2.6-2.6l5.2 5.2m0-5.2l-5.2 5.2"
    return f"{start}h0"


@dataclass(frozen=True)
class Frame:
    """The plotting area of a scatter: one range for both axes, so that the diagonal means no change."""

    low: float
    high: float
    size: float = 340.0
    left: float = 48.0
    top: float = 10.0

    def x(self, value: float) -> float:
        """Horizontal position of `value`, clamped to the frame."""
        return self.left + self.size * min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))

    def y(self, value: float) -> float:
        """Vertical position of `value`, clamped to the frame."""
        return self.top + self.size * (1 - min(1.0, max(0.0, (value - self.low) / (self.high - self.low))))


def frame_over(panels: Sequence[Points]) -> Frame:
    """A frame for all `panels`: the middle 99% of the values with some room, so that one outlier cannot squash it."""
    values = np.concatenate([array for points in panels for array in (points.old, points.new)])
    if not panels[0].margins:
        room = DISC + 0.02 if any(points.spread for points in panels) else 0.04
        return Frame(-room, 1 + room)
    if values.size == 0:
        return Frame(-1.0, 1.0)
    low, high = (float(edge) for edge in np.quantile(values, [0.005, 0.995]))
    low, high = min(low, -0.1), max(high, 0.1)
    room = 0.06 * (high - low)
    return Frame(low - room, high + room)


def beyond(points: Points, frame: Frame) -> int:
    """How many points lie outside `frame` and are drawn on its edge."""
    outside = [(array < frame.low) | (array > frame.high) for array in (points.old, points.new)]
    return int((outside[0] | outside[1]).sum())


def scatter(points: Points, frame: Frame, x_label: str, y_label: str) -> str:
    """One mark per instance, shaped and coloured by kind; quadrant lines at zero for margins."""
    right, bottom = frame.left + frame.size, frame.top + frame.size
    parts = [f'<rect class="frame" x="{frame.left}" y="{frame.top}" width="{frame.size}" height="{frame.size}"/>']
    for tick in nice_ticks(frame.low, frame.high, 5):
        x, y, text = frame.x(tick), frame.y(tick), tick_label(tick, False)
        line = "zero" if tick == 0 and points.margins else "grid"
        parts.append(f'<line class="{line}" x1="{x:.1f}" x2="{x:.1f}" y1="{frame.top}" y2="{bottom}"/>')
        parts.append(f'<line class="{line}" x1="{frame.left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{text}</text>')
        parts.append(f'<text x="{frame.left - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    corner = f"M{frame.x(frame.low):.1f} {frame.y(frame.low):.1f}L{frame.x(frame.high):.1f} {frame.y(frame.high):.1f}"
    parts.append(f'<path class="diagonal" d="{corner}"/>')
    drawn = thin(points)
    for kind in _DRAWING_ORDER:
        chosen = drawn[points.kind[drawn] == CODES.index(kind)]
        path = "".join(_mark(kind, frame.x(points.old[i]), frame.y(points.new[i])) for i in chosen)
        if path:
            parts.append(f'<path class="{kind}" d="{path}"/>')
    if points.margins:
        parts.append(
            f'<text class="quadrant" x="{right - 6}" y="{frame.top + 16}" text-anchor="end">stays right</text>'
        )
        parts.append(f'<text class="quadrant" x="{right - 6}" y="{bottom - 8}" text-anchor="end">negative flips</text>')
        parts.append(f'<text class="quadrant" x="{frame.left + 6}" y="{frame.top + 16}">positive flips</text>')
        parts.append(f'<text class="quadrant" x="{frame.left + 6}" y="{bottom - 8}">stays wrong</text>')
    middle = frame.top + frame.size / 2
    parts.append(f'<text class="name" x="{frame.left + frame.size / 2}" y="{bottom + 36}">{escape(x_label)}</text>')
    parts.append(f'<text class="name" transform="translate(13 {middle}) rotate(-90)">{escape(y_label)}</text>')
    label = escape(f"Scatter plot: {x_label} against {y_label}, {len(drawn)} instances drawn")
    return f'<svg class="scatter" viewBox="0 0 400 394" role="img" aria-label="{label}">{"".join(parts)}</svg>'


@dataclass(frozen=True)
class Curve:
    """One arm's line in a training panel."""

    css: str
    """Class that gives it its colour and dashes."""
    label: str
    points: Sequence[tuple[int, float]]
    """(epoch, value)."""
    chosen: int | None
    """The epoch whose weights were kept."""


def curves(title: str, lines: Sequence[Curve], share: bool) -> str:
    """One small panel: a quantity over epochs, a ring where the kept weights are."""
    width, height, left, top, bottom = 300.0, 150.0, 50.0, 8.0, 128.0
    epochs = [epoch for line in lines for epoch, _ in line.points]
    values = [value for line in lines for _, value in line.points]
    first, last = min(epochs), max(epochs)
    room = 0.08 * (max(values) - min(values)) or 0.05 * abs(max(values)) or 0.01
    low, high = min(values) - room, max(values) + room

    def x(epoch: float) -> float:
        return left + 8 + (width - left - 20) * ((epoch - first) / (last - first) if last > first else 0.5)

    def y(value: float) -> float:
        return bottom - (bottom - top) * (value - low) / (high - low)

    parts = []
    for tick in nice_ticks(low, high, 3):
        parts.append(f'<line class="grid" x1="{left}" x2="{width}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text x="{left - 5}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick_label(tick, share)}</text>')
    for tick in nice_ticks(first, last, 6):
        if tick == int(tick):
            parts.append(f'<text x="{x(tick):.1f}" y="{height - 4}" text-anchor="middle">{int(tick)}</text>')
    for line in reversed(lines):
        path = "L".join(f"{x(epoch):.1f} {y(value):.1f}" for epoch, value in line.points)
        parts.append(f'<path class="curve {line.css}" d="M{path}"/>')
        for epoch, value in line.points:
            kept = epoch == line.chosen
            style = "kept" if kept else "step"
            radius = 5 if kept else 2
            parts.append(f'<circle class="{style} {line.css}" cx="{x(epoch):.1f}" cy="{y(value):.1f}" r="{radius}"/>')
    label = escape(f"Line chart: {title} over epochs {first} to {last}")
    drawing = "".join(parts)
    return f'<svg class="curves" viewBox="0 0 300 150" role="img" aria-label="{label}">{drawing}</svg>'
