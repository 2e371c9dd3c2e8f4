"""The flow of instances from right to wrong and back, as inline SVG whose ribbons are links to what they hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

# What became of an instance -> whether the old, the new and the repaired model were right.
_KINDS = {
    "both_right": (True, True),
    "negative": (True, False),
    "positive": (False, True),
    "both_wrong": (False, False),
}
_EFFECTS = {
    "stays right": (True, True, True),
    "newly broken": (True, True, False),
    "fixed": (True, False, True),
    "still broken": (True, False, False),
    "gain kept": (False, True, True),
    "gain lost": (False, True, False),
    "extra gain": (False, False, True),
    "stays wrong": (False, False, False),
}
_COLOURS = {
    "stays right": "both_right",
    "newly broken": "negative",
    "fixed": "fixed",
    "still broken": "negative",
    "gain kept": "positive",
    "gain lost": "both_wrong",
    "extra gain": "positive",
    "stays wrong": "both_wrong",
}
_WIDTH, _HEIGHT, _TOP, _NODE, _GAP = 620.0, 250.0, 26.0, 12.0, 26.0
_LEFT, _RIGHT = 84.0, 84.0


@dataclass(frozen=True)
class Flow:
    """Instances that went one way."""

    name: str
    """As filters know it: a kind, or an effect."""
    label: str
    path: tuple[bool, ...]
    """Whether each version, in order, was right."""
    count: int
    css: str


def kind_flows(kinds: Mapping[str, int], labels: Mapping[str, str]) -> list[Flow]:
    """Flows from the old to the new model."""
    return [Flow(name, labels[name], path, kinds.get(name, 0), name) for name, path in _KINDS.items()]


def effect_flows(effects: Mapping[str, int]) -> list[Flow]:
    """Flows from the old over the new to the repaired model."""
    return [Flow(name, name, path, effects.get(name, 0), _COLOURS[name]) for name, path in _EFFECTS.items()]


def sankey(flows: Sequence[Flow], versions: Sequence[str], key: str) -> str:
    """A drawing of the flows that hold instances.

    Args:
        flows: all of one length of `path`.
        versions: the name of each column, as many as a path has entries.
        key: the filter that a ribbon's link sets: `kind` or `effect`.
    """
    flows = [flow for flow in flows if flow.count]
    total = sum(flow.count for flow in flows)
    if not total:
        return ""
    scale = (_HEIGHT - _GAP) / total
    step = (_WIDTH - _LEFT - _RIGHT - _NODE) / (len(versions) - 1)
    columns = [_LEFT + step * index for index in range(len(versions))]
    nodes = [_column(flows, index, scale) for index in range(len(versions))]
    ribbons = [_ribbon(flow, columns, [node[flow.name] for node in nodes], scale, key, total) for flow in flows]
    heads = []
    for index, (x, version) in enumerate(zip(columns, versions, strict=True)):
        heads.append(f'<text class="name" x="{x + _NODE / 2:.1f}" y="14">{escape(version)}</text>')
        heads += _nodes(flows, index, x, scale, total, last=index == len(versions) - 1)
    height = _TOP + _HEIGHT + 4
    return (
        f'<svg class="sankey" viewBox="0 0 {_WIDTH:.0f} {height:.0f}" role="group" '
        f'aria-label="Flow of {total:,} instances between right and wrong">{"".join(ribbons)}{"".join(heads)}</svg>'
    )


def _column(flows: Sequence[Flow], index: int, scale: float) -> dict[str, float]:
    """Where each flow's ribbon begins in a column, from the top; right answers above wrong ones."""
    found, y = {}, _TOP
    for right in (True, False):
        own = [flow for flow in flows if flow.path[index] is right]
        # By where they come from, so that ribbons of one origin stay together.
        for flow in sorted(own, key=lambda flow: [not step for step in flow.path[: index + 1]]):
            found[flow.name] = y
            y += flow.count * scale
        if right:
            y += _GAP
    return found


def _ribbon(flow: Flow, columns: Sequence[float], tops: Sequence[float], scale: float, key: str, total: int) -> str:
    height = max(flow.count * scale, 1.2)
    paths = []
    for left, right, start, end in zip(columns, columns[1:], tops, tops[1:], strict=False):
        x0, x1 = left + _NODE, right
        middle = (x0 + x1) / 2
        paths.append(
            f"M{x0:.1f} {start:.1f}C{middle:.1f} {start:.1f} {middle:.1f} {end:.1f} {x1:.1f} {end:.1f}"
            f"V{end + height:.1f}C{middle:.1f} {end + height:.1f} {middle:.1f} {start + height:.1f} "
            f"{x0:.1f} {start + height:.1f}Z"
        )
    words = escape(f"{flow.label}: {flow.count:,} of {total:,}")
    name = flow.name.replace(" ", "+")
    link = f"#kind=all&amp;effect={name}" if key == "effect" else f"#kind={name}"
    return (
        f'<a href="{link}" aria-label="{words}: show them"><title>{words}</title>'
        f'<path class="ribbon {flow.css}" d="{"".join(paths)}"/></a>'
    )


def _nodes(flows: Sequence[Flow], index: int, x: float, scale: float, total: int, last: bool) -> list[str]:
    parts, y = [], _TOP
    for right in (True, False):
        count = sum(flow.count for flow in flows if flow.path[index] is right)
        height = count * scale
        word = "right" if right else "wrong"
        parts.append(f'<rect class="node {word}" x="{x:.1f}" y="{y:.1f}" width="{_NODE}" height="{height:.1f}"/>')
        if count and (index == 0 or last):
            at, anchor = (x + _NODE + 8, "start") if last else (x - 8, "end")
            parts.append(
                f'<text class="stack" x="{at:.1f}" y="{y + height / 2:.1f}" text-anchor="{anchor}">'
                f'<tspan class="strong">{count:,}</tspan><tspan x="{at:.1f}" dy="1.15em">{word}</tspan></text>'
            )
        y += height + (_GAP if right else 0)
    return parts
