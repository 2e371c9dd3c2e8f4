"""An explanation of flips as two pictures: where the difference sits, and how the chosen sites hang together.

Each is an SVG file of its own, legible in light and dark; the numbers are those of `explanation.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

from uphold.core.storage import write_text
from uphold.explain.restoring.explanation import Edge, Explanation, SiteEffect

_PAGE = """
:root { --page: #fff; --card: #fff; --text: #1a1f26; --muted: #55606d; --line: #c9d0d8; }
@media (prefers-color-scheme: dark) {
  :root { --page: #12151a; --card: #12151a; --text: #e7eaee; --muted: #a3adb9; --line: #3a434e; }
}
svg { background: var(--page); font: 13px system-ui, "Segoe UI", "Liberation Sans", Arial, sans-serif; }
"""
"""What a report's page defines, for pictures that stand alone."""
STYLE = "explanation.css"
"""Style sheet of the pictures, in this package."""
_CELL, _LEFT, _TOP = 34.0, 62.0, 74.0
_NODE_WIDTH, _NODE_HEIGHT, _GAP = 190.0, 62.0, 130.0
_LEAST_EDGE, _MOST_EDGES = 0.05, 7
_ALONG = (0.5, 0.3, 0.7)
"""Where on a line its label stands: in turn, so that few of them meet."""


def write_pictures(explanation: Explanation, folder: str | Path) -> list[Path]:
    """Write `explanation-heat-map.svg` and, where sites were chosen, `explanation-graph.svg` to a folder."""
    target = Path(folder)
    written = [target / "explanation-heat-map.svg"]
    write_text(written[0], heat_map(explanation, alone=True))
    if explanation.sites:
        written.append(target / "explanation-graph.svg")
        write_text(written[1], graph(explanation, alone=True))
    return written


def heat_map(explanation: Explanation, alone: bool = False) -> str:
    """Blocks downwards, sites of a block across; how much of the distance each is estimated to recover.

    Chosen sites are framed and carry their rank. `alone` makes it a file of its own, not a part of a page.
    """
    columns = list(dict.fromkeys(_column(site) for site in explanation.estimates))
    most = max((abs(value) for value in explanation.estimates.values()), default=0.0) or 1.0
    ranks = {one.sites[0]: number for number, one in enumerate(explanation.sites, start=1)}
    parts = [
        _text(_LEFT, 24, "Where the old answers sit", "title"),
        _text(_LEFT, 43, f"share of the distance to the old model, first order; strongest {most:.0%}", "muted"),
    ]
    for place, name in enumerate(columns):
        parts.append(_text(_LEFT + (place + 0.5) * _CELL, _TOP - 8, name, "muted", "middle"))
    for layer in range(explanation.layers):
        parts.append(_text(_LEFT - 8, _TOP + (layer + 0.65) * _CELL, str(layer), "muted", "end"))
    middle = _TOP + explanation.layers * _CELL / 2
    parts.append(
        f'<text class="muted" text-anchor="middle" transform="translate(18 {middle:g}) rotate(-90)">block</text>'
    )
    for site, value in explanation.estimates.items():
        x, y = _LEFT + columns.index(_column(site)) * _CELL, _TOP + int(site.split(".")[1]) * _CELL
        parts.append(_cell(x, y, site, value, most))
        if site in ranks:
            parts.append(
                f'<rect class="chosen" x="{x + 1.5:g}" y="{y + 1.5:g}" width="{_CELL - 3:g}" height="{_CELL - 3:g}"/>'
            )
            parts.append(_text(x + _CELL / 2, y + _CELL / 2 + 4, str(ranks[site]), "rank", "middle"))
    legend = _TOP + explanation.layers * _CELL + 24
    parts.append(_legend(legend))
    width = max(_LEFT + len(columns) * _CELL + 20, 560)
    return _svg(width, legend + 34, parts, f"Heat map of {len(explanation.estimates)} sites", alone)


def graph(explanation: Explanation, alone: bool = False) -> str:
    """The chosen sites from left to right by block, with what of one's effect passes through another."""
    drawn = {name for edge in explanation.edges for name in (edge.source, edge.target)}
    shown = [one for one in explanation.sites if one.sites[0] in drawn] or list(explanation.sites[:1])
    blocks = sorted({_block(one) for one in shown})
    places: dict[str, tuple[float, float]] = {}
    for column, block in enumerate(blocks):
        for row, one in enumerate(sorted((one for one in shown if _block(one) == block), key=lambda one: one.sites)):
            places[one.sites[0]] = (24 + column * (_NODE_WIDTH + _GAP), _TOP + row * (_NODE_HEIGHT + 34))
    parts = [
        _text(24, 24, "Sites that bring flips back, and what passes from one to another", "title"),
        _text(
            24,
            43,
            "blue: flips restored; orange: gains lost; a line: share of the effect that goes along it",
            "muted",
        ),
    ]
    seen = [edge for edge in explanation.edges if {edge.source, edge.target} <= places.keys()]
    strong = sorted((edge for edge in seen if abs(edge.share) >= _LEAST_EDGE), key=lambda edge: -abs(edge.share))
    for number, edge in enumerate(strong[:_MOST_EDGES]):
        parts.append(_edge(edge, places, _ALONG[number % len(_ALONG)]))
    parts += [_node(one, *places[one.sites[0]]) for one in shown]
    # On the right there is room for a line between two sites of the last block.
    width = 48 + len(blocks) * (_NODE_WIDTH + _GAP) - _GAP / 2
    height = max(y for _, y in places.values()) + _NODE_HEIGHT + 24
    return _svg(max(width, 640), height, parts, f"Graph of {len(shown)} sites", alone)


def _column(site: str) -> str:
    """`head 3` of `head.0.3`, `mlp` of `mlp.0`."""
    kind, _, *head = site.split(".")
    return f"{_SHORT.get(kind, kind)}{head[0] if head else ''}"


_SHORT = {"head": "h", "query": "q", "key": "k", "value": "v", "attention": "attn", "residual": "res", "hidden": "hid"}


def _block(one: SiteEffect) -> int:
    return int(one.sites[0].split(".")[1])


def _cell(x: float, y: float, site: str, value: float, most: float) -> str:
    sign = "more" if value >= 0 else "less"
    strength = f"{abs(value) / most:.3f}"
    return (
        f'<rect class="cell {sign}" fill-opacity="{strength}" x="{x:g}" y="{y:g}" width="{_CELL:g}" height="{_CELL:g}">'
        f"<title>{escape(site)}: {value:.1%}</title></rect>"
    )


def _legend(y: float) -> str:
    parts = []
    for place, (sign, strength) in enumerate([("less", 1), ("less", 0.5), ("more", 0), ("more", 0.5), ("more", 1)]):
        parts.append(
            f'<rect class="cell {sign}" fill-opacity="{strength}" x="{_LEFT + place * 22:g}" y="{y:g}" width="22" '
            'height="14"/>'
        )
    parts.append(_text(_LEFT + 122, y + 12, "away from the old model / towards it; framed: chosen", "muted"))
    return "".join(parts)


def _node(one: SiteEffect, x: float, y: float) -> str:
    width = _NODE_WIDTH - 20
    bars = []
    for row, (share, css) in enumerate([(one.restored.value, "bar"), (one.lost.value, "cost")]):
        top = y + 30 + row * 13
        bars.append(f'<rect class="{css}" x="{x + 10:g}" y="{top:g}" width="{width * share:.1f}" height="9"/>')
    numbers = f"{one.restored.value:.0%} / {one.lost.value:.0%}"
    return (
        f'<rect class="node" x="{x:g}" y="{y:g}" width="{_NODE_WIDTH:g}" height="{_NODE_HEIGHT:g}" rx="6"/>'
        + _text(x + 10, y + 20, one.sites[0])
        + _text(x + _NODE_WIDTH - 10, y + 20, numbers, "muted", "end")
        + "".join(bars)
    )


def _edge(edge: Edge, places: dict[str, tuple[float, float]], along: float) -> str:
    (x, y), (u, v) = places[edge.source], places[edge.target]
    y, v, side = y + _NODE_HEIGHT / 2, v + _NODE_HEIGHT / 2, x + _NODE_WIDTH
    # Two sites of one block are joined around the side.
    first, last = (side + 56, side + 56) if x == u else ((side + u) / 2, (side + u) / 2)
    end = side if x == u else u
    at = (_bezier(side, first, last, end, along), _bezier(y, y, v, v, along) + 4)
    width = max(1.2, 9 * min(1.0, abs(edge.share)))
    css = "edge" if edge.share > 0 else "edge less"
    path = f"M{side:g} {y:g}C{first:g} {y:g} {last:g} {v:g} {end:g} {v:g}"
    title = f"<title>{escape(edge.source)} through {escape(edge.target)}: {edge.share:.1%}</title>"
    label = _text(at[0], at[1], f"{edge.share:.0%}", "label", "middle")
    return f'<path class="{css}" stroke-opacity=".55" stroke-width="{width:.1f}" d="{path}">{title}</path>{label}'


def _bezier(start: float, first: float, last: float, end: float, along: float) -> float:
    back = 1 - along
    return back**3 * start + 3 * back**2 * along * first + 3 * back * along**2 * last + along**3 * end


def _text(x: float, y: float, text: str, css: str = "", anchor: str = "start") -> str:
    return f'<text class="{css}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(width: float, height: float, parts: Sequence[str], label: str, alone: bool) -> str:
    style = f"<style>{_PAGE}{files('uphold.report').joinpath(STYLE).read_text('utf-8')}</style>" if alone else ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="explained" viewBox="0 0 {width:g} {height:g}" '
        f'width="{width:g}" height="{height:g}" role="img" aria-label="{escape(label)}">{style}{"".join(parts)}</svg>\n'
    )
