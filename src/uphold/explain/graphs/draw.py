"""Pictures of graphs: Graphviz DOT, and SVG that can be read on light and dark pages."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from uphold.explain.graphs.diff import GraphDiff
from uphold.explain.graphs.graph import ClassGraph

EDGES = 40
"""Edges drawn per layer, those with the largest changes."""
_COLUMN, _ROW, _MARGIN, _HEAD, _HEIGHT = 210, 22, 60, 44, 620
_STYLES = {
    "lowers": ("#2563eb", "#93c5fd", ""),
    "raises": ("#b45309", "#fbbf24", "5 3"),
    "gained": ("#15803d", "#4ade80", ""),
    "lost": ("#b91c1c", "#f87171", "5 3"),
    "re-weighted": ("#6d28d9", "#c4b5fd", "1.5 3"),
    "same": ("#6b7280", "#9ca3af", ""),
}
"""Colour on light and on dark pages, and dashes, so that colour alone says nothing."""


class _Line(NamedTuple):
    layer: str
    effect: int
    cause: int
    weight: float
    style: str
    label: str


class _Picture(NamedTuple):
    title: str
    layers: tuple[str, ...]
    """From the images to the classifier."""
    lines: tuple[_Line, ...]
    total: int
    """Edges before the smaller ones were left out."""


def dot(drawn: ClassGraph | GraphDiff, edges: int = EDGES) -> str:
    """A graph or a comparison in the language of Graphviz, units in columns from the images to the class.

    Args:
        drawn: with the changes of single edges (`GraphConfig.edges`).
        edges: drawn per layer, those with the largest changes.
    """
    picture = _picture(drawn, edges)
    parts = [
        "digraph causes {",
        f'  graph [rankdir=LR, bgcolor="transparent", label="{_quoted(picture.title)}"];',
        '  node [shape=ellipse, fontname="sans-serif"];',
    ]
    for column, units in enumerate(_columns(picture)):
        parts += [f'  "{column}:{unit}" [label="{unit}"];' for unit in units]
        row = " ".join(f'"{column}:{unit}";' for unit in units)
        parts.append(f"  {{ rank=same; {row} }}")
    for line, width in _widths(picture):
        column, (colour, _, dashes) = picture.layers.index(line.layer), _STYLES[line.style]
        style = "dashed" if dashes.startswith("5") else "dotted" if dashes else "solid"
        parts.append(
            f'  "{column}:{line.cause}" -> "{column + 1}:{line.effect}" '
            f'[color="{colour}", style={style}, penwidth={width:.2f}, tooltip="{_quoted(line.label)}"];'
        )
    return "\n".join([*parts, "}"]) + "\n"


def svg(drawn: ClassGraph | GraphDiff, edges: int = EDGES) -> str:
    """A graph or a comparison as an SVG document of its own.

    Units are dots in columns, from the images on the left to the class on the right; a line is as wide as the change of
    the outcome when that edge alone is cut (for a comparison, as the difference of the two).

    Args:
        drawn: with the changes of single edges (`GraphConfig.edges`).
        edges: drawn per layer, those with the largest changes.
    """
    picture = _picture(drawn, edges)
    columns = _columns(picture)
    width = _COLUMN * len(picture.layers) + 2 * _MARGIN
    tall = max(len(units) for units in columns)
    height = min(_HEIGHT, max(160, _ROW * tall))
    at = {
        (column, unit): (_MARGIN + _COLUMN * column, _HEAD + height * (row + 0.5) / len(units))
        for column, units in enumerate(columns)
        for row, unit in enumerate(units)
    }
    lines = []
    for line, stroke in _widths(picture):
        column = picture.layers.index(line.layer)
        (x1, y1), (x2, y2) = at[column, line.cause], at[column + 1, line.effect]
        middle = (x1 + x2) / 2
        lines.append(
            f'<path class="{line.style}" stroke-width="{stroke:.2f}" '
            f'd="M{x1} {y1:.1f}C{middle} {y1:.1f} {middle} {y2:.1f} {x2} {y2:.1f}">'
            f"<title>{escape(line.label)}</title></path>"
        )
    dots = []
    for (column, unit), (x, y) in at.items():
        dots.append(f'<circle cx="{x}" cy="{y:.1f}" r="4"/>')
        if height / len(columns[column]) >= 11:
            dots.append(f'<text x="{x - 8}" y="{y + 3.5:.1f}" text-anchor="end">{unit}</text>')
    heads = [
        f'<text x="{_MARGIN + _COLUMN * (column + 0.5)}" y="{_HEAD - 8}" text-anchor="middle">{escape(name)}</text>'
        for column, name in enumerate(picture.layers)
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {_HEAD + height + 40}" role="img" '
        f'aria-label="{escape(picture.title)}"><style>{_css()}</style>'
        f'<text class="title" x="12" y="18">{escape(picture.title)}</text>{"".join(heads)}'
        f"{''.join(lines)}{''.join(dots)}{_legend(picture, _HEAD + height + 24)}</svg>\n"
    )


def _picture(drawn: ClassGraph | GraphDiff, edges: int) -> _Picture:
    if isinstance(drawn, GraphDiff):
        layers, lines = drawn.new if len(drawn.new.layers) > len(drawn.old.layers) else drawn.old, _diff_lines(drawn)
        title = str(drawn)
    else:
        layers, lines, title = drawn, _graph_lines(drawn), str(drawn)
    names = tuple(reversed([layer.name for layer in layers.layers]))
    chosen: list[_Line] = []
    for name in names:
        mine = sorted((line for line in lines if line.layer == name), key=lambda line: -line.weight)
        chosen += mine[:edges]
    return _Picture(title, names, tuple(chosen), len(lines))


def _graph_lines(graph: ClassGraph) -> list[_Line]:
    return [
        _Line(
            layer.name,
            edge.effect,
            edge.cause,
            abs(edge.change),
            "lowers" if edge.change <= 0 else "raises",
            f"{layer.name} {edge.cause} to {edge.effect}: cutting it changes the logit by {edge.change:+.3g}"
            + (f", in {edge.stability:.0%} of bootstrap samples" if edge.stability is not None else ""),
        )
        for layer in graph.layers
        for edge in layer.edges
    ]


def _diff_lines(drawn: GraphDiff) -> list[_Line]:
    return [
        _Line(
            edge.layer,
            edge.effect,
            edge.cause,
            abs(edge.new - edge.old),
            edge.kind,
            f"{edge.layer} {edge.cause} to {edge.effect}: {edge.kind}, {edge.old:+.3g} to {edge.new:+.3g}, "
            f"q {edge.q:.2g}",
        )
        for edge in drawn.edges
    ]


def _columns(picture: _Picture) -> list[list[int]]:
    """Units that are drawn: what the first layer takes, then what each layer gives."""
    columns: list[set[int]] = [set() for _ in range(len(picture.layers) + 1)]
    for line in picture.lines:
        column = picture.layers.index(line.layer)
        columns[column].add(line.cause)
        columns[column + 1].add(line.effect)
    return [sorted(units) for units in columns]


def _widths(picture: _Picture) -> list[tuple[_Line, float]]:
    """Lines with their widths, each layer on its own scale; wide ones last."""
    widest = {
        name: max((line.weight for line in picture.lines if line.layer == name), default=0.0) for name in picture.layers
    }
    found = [(line, 0.6 + 4.4 * line.weight / (widest[line.layer] or 1.0)) for line in picture.lines]
    return sorted(found, key=lambda pair: pair[1])


def _css() -> str:
    light = "".join(
        f".{name}{{stroke:{colour}" + (f";stroke-dasharray:{dashes}" if dashes else "") + "}"
        for name, (colour, _, dashes) in _STYLES.items()
    )
    dark = "".join(f".{name}{{stroke:{colour}}}" for name, (_, colour, _) in _STYLES.items())
    return (
        "text{font:11px sans-serif;fill:#1f2937}.title{font-weight:600}circle{fill:#1f2937}"
        f"path,line{{fill:none;stroke-opacity:.7}}{light}"
        f"@media(prefers-color-scheme:dark){{text,circle{{fill:#e5e7eb}}{dark}}}"
    )


def _legend(picture: _Picture, y: int) -> str:
    used: Sequence[str] = [name for name in _STYLES if any(line.style == name for line in picture.lines)]
    words = {"lowers": "cutting it lowers the class", "raises": "cutting it raises the class"}
    parts, x = [], 12
    for name in used:
        text = words.get(name, name)
        parts.append(f'<line class="{name}" x1="{x}" x2="{x + 26}" y1="{y - 4}" y2="{y - 4}" stroke-width="3"/>')
        parts.append(f'<text x="{x + 32}" y="{y}">{text}</text>')
        x += 50 + 6 * len(text)
    parts.append(f'<text x="{x}" y="{y}">{len(picture.lines)} of {picture.total} edges</text>')
    return "".join(parts)


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')
