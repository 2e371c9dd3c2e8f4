"""An explanation of flips as two pictures: where the difference sits, and how the chosen sites hang together.

Each is an SVG file of its own, legible in light and dark; the numbers are those of `explanation.json`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
_CELL, _LEFT, _TOP = 34.0, 62.0, 112.0
_EDGE, _NODE_WIDTH, _NODE_HEIGHT, _STEP = 24.0, 190.0, 62.0, 62.0
"""Of the graph: its margin, a site's box, and how much further out an arc goes for each site that it passes."""
_LEAST_EDGE, _MOST_EDGES = 0.05, 8


def write_pictures(explanation: Explanation, folder: str | Path) -> list[Path]:
    """Write `explanation-heat-map.svg` and, where there are lines to draw, `explanation-graph.svg` to a folder.

    A graph of an earlier explanation is taken away.
    """
    target = Path(folder)
    written = [target / "explanation-heat-map.svg"]
    write_text(written[0], heat_map(explanation, alone=True))
    drawn = target / "explanation-graph.svg"
    drawn.unlink(missing_ok=True)
    if explanation.edges:
        written.append(drawn)
        write_text(drawn, graph(explanation, alone=True))
    return written


def heat_map(explanation: Explanation, alone: bool = False) -> str:
    """Blocks downwards, sites of a block across; how much of the distance each is estimated to recover.

    Chosen sites are framed and carry their rank. `alone` makes it a file of its own, not a part of a page.
    """
    columns = list(dict.fromkeys(_column(site) for site in explanation.estimates))
    most = max((abs(value) for value in explanation.estimates.values()), default=0.0) or 1.0
    ranks = {one.sites[0]: number for number, one in enumerate(explanation.sites, start=1)}
    choosing = explanation.flips - explanation.held_out
    parts = [
        _text(_LEFT, 24, "Where the old answers sit", "title"),
        _text(_LEFT, 43, "share of the distance to the old model, estimated to first order", "muted"),
        _text(_LEFT, 60, f"on the {choosing} flips that sites were chosen by", "muted"),
        _text(_LEFT, _TOP - 26, _sites_named(explanation), "muted"),
    ]
    for place, name in enumerate(columns):
        parts.append(_text(_LEFT + (place + 0.5) * _CELL, _TOP - 8, name, "muted", "middle"))
    for layer in range(explanation.layers):
        parts.append(_text(_LEFT - 8, _TOP + (layer + 0.65) * _CELL, str(layer), "muted", "end"))
    down = _TOP + explanation.layers * _CELL / 2
    parts.append(
        f'<text class="muted" text-anchor="middle" transform="translate(18 {down:g}) rotate(-90)">block</text>'
    )
    for site, value in explanation.estimates.items():
        x, y = _LEFT + columns.index(_column(site)) * _CELL, _TOP + int(site.split(".")[1]) * _CELL
        parts.append(_cell(x, y, site, value, most))
        if site in ranks:
            parts.append(
                f'<rect class="chosen" x="{x + 1.5:g}" y="{y + 1.5:g}" width="{_CELL - 3:g}" height="{_CELL - 3:g}"/>'
            )
            parts.append(_text(x + _CELL / 2, y + _CELL / 2 + 4, str(ranks[site]), "rank", "middle"))
    legend = _TOP + explanation.layers * _CELL + 20
    parts.append(_legend(legend, most))
    width = max(_LEFT + len(columns) * _CELL + 20, 470)
    return _svg(width, legend + 50, parts, f"Heat map of {len(explanation.estimates)} sites", alone)


def graph(explanation: Explanation, alone: bool = False) -> str:
    """The chosen sites from the first block downwards, and how much of one's effect passes through another."""
    drawn = {name for edge in explanation.edges for name in (edge.source, edge.target)}
    before = {(edge.source, edge.target) for edge in explanation.edges}
    # Within a block, too, the source of an edge stands above its target.
    shown = sorted(
        (one for one in explanation.sites if one.sites[0] in drawn),
        key=lambda one: (_block(one), sum((other, one.sites[0]) in before for other in drawn), one.sites),
    )
    rows = {one.sites[0]: row for row, one in enumerate(shown)}
    strong = [edge for edge in explanation.edges if abs(edge.share) >= _LEAST_EDGE]
    kept = sorted(strong, key=lambda edge: -abs(edge.share))[:_MOST_EDGES]
    few = f"; the {len(kept)} strongest of {len(explanation.edges)} lines" if len(kept) < len(explanation.edges) else ""
    parts = [
        _text(_EDGE, 24, "Sites that bring flips back, and what passes from one to another", "title"),
        _text(_EDGE, 43, "bars: flips restored (upper), gains lost (lower)", "muted"),
        _text(_EDGE, 60, "line: share of the upper site's effect that is gone when the lower one is held", "muted"),
        _text(_EDGE, 77, f"dashed: the effect grows{few}", "muted"),
    ]
    lines = [_edge(edge, rows) for edge in kept]
    parts += [line for line, _ in lines]
    parts += [_node(one, _EDGE, _row_top(row)) for row, one in enumerate(shown)]
    parts += [label for _, label in lines]
    reach = max((rows[edge.target] - rows[edge.source] for edge in kept), default=1)
    width = _EDGE + _NODE_WIDTH + _STEP * (reach + 1.2)
    return _svg(max(width, 600), _row_top(len(shown)) - 6, parts, f"Graph of {len(shown)} sites", alone)


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


def _sites_named(explanation: Explanation) -> str:
    """The kinds of sites across, the short ones spelt out."""
    kinds = dict.fromkeys(site.split(".")[0] for site in explanation.estimates)
    return ", ".join(f"{_SHORT[kind]}: {kind}" if kind in _SHORT else kind for kind in kinds)


def _legend(y: float, most: float) -> str:
    parts = []
    for place, (sign, strength) in enumerate([("less", 1), ("less", 0.5), ("more", 0), ("more", 0.5), ("more", 1)]):
        parts.append(
            f'<rect class="cell {sign}" fill-opacity="{strength}" x="{_LEFT + 50 + place * 22:g}" y="{y:g}" width="22" '
            'height="14"/>'
        )
    parts.append(_text(_LEFT + 44, y + 12, f"-{most:.0%}", "muted", "end"))
    parts.append(_text(_LEFT + 166, y + 12, f"+{most:.0%}, towards the old model", "muted"))
    parts.append(_text(_LEFT, y + 36, "framed: chosen, with its rank", "muted"))
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


def _edge(edge: Edge, rows: Mapping[str, int]) -> tuple[str, str]:
    """An arc on the right of both sites, the further out the more sites it passes; and its label."""
    first, last = rows[edge.source], rows[edge.target]
    side, passed = _EDGE + _NODE_WIDTH, last - first
    # Lines leave in the lower half of a site and arrive in the upper half, spread so that they can be told apart.
    start = _row_top(first) + _NODE_HEIGHT * (0.55 + 0.07 * min(passed, 5))
    end = _row_top(last) + _NODE_HEIGHT * (0.45 - 0.07 * min(passed, 5))
    out = side + 14 + _STEP * passed * 4 / 3
    width = max(1.2, 7 * min(1.0, abs(edge.share)))
    css = "edge" if edge.share > 0 else "edge less"
    path = f"M{side:g} {start:.1f}C{out:g} {start:.1f} {out:g} {end:.1f} {side + 9:g} {end:.1f}"
    title = f"<title>{escape(edge.source)} through {escape(edge.target)}: {edge.share:.1%}</title>"
    arrow = f'<path class="arrow" d="M{side:g} {end:.1f}l11 -6v12z"/>'
    label = _text(side + 0.75 * (out - side), (start + end) / 2 + 4, f"{edge.share:.0%}", "label", "middle")
    line = f'<path class="{css}" stroke-opacity=".55" stroke-width="{width:.1f}" d="{path}">{title}</path>'
    return line + arrow, label


def _row_top(row: int) -> float:
    return 92 + row * (_NODE_HEIGHT + 26)


def _text(x: float, y: float, text: str, css: str = "", anchor: str = "start") -> str:
    return f'<text class="{css}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(width: float, height: float, parts: Sequence[str], label: str, alone: bool) -> str:
    style = f"<style>{_PAGE}{files('uphold.report').joinpath(STYLE).read_text('utf-8')}</style>" if alone else ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="explained" viewBox="0 0 {width:g} {height:g}" '
        f'width="{width:g}" height="{height:g}" role="img" aria-label="{escape(label)}">{style}{"".join(parts)}</svg>\n'
    )
