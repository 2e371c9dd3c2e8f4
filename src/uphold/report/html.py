"""The HTML report: one file, no network, everything that a model or a user wrote escaped."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlencode

from markupsafe import Markup

from uphold.core.hashing import canonical_json
from uphold.measure.rates import Rate, format_value
from uphold.measure.slices import Slice
from uphold.report import explorer, svg
from uphold.report.data import ReportData, SlicePair, Version, fingerprints, place
from uphold.report.explanation import STYLE, graph, heat_map
from uphold.report.glossary import DEFINITIONS, EFFECTS, KINDS, MARKS
from uphold.report.page import render_page
from uphold.report.sankey import effect_flows, kind_flows, sankey
from uphold.report.text import finite, p_value, short, signed_percent, visible
from uphold.report.verdict import remarks, verdict

FIRST_SLICES, SHOWN_SLICES = 12, 40
"""Slices that are seen at once, and those that can be unfolded."""
ALPHA = 0.05
"""A slice whose q lies below stands out."""


def render_html(data: ReportData) -> str:
    """The report as one self-contained HTML page."""
    return render_page(
        "report.html.j2",
        ["report.css", "explorer.css", *([STYLE] if data.explanation else [])],
        explorer.SCRIPTS,
        explorer.head(data),
        _FILTERS,
        data=data,
        verdict=verdict(data),
        remarks=remarks(data),
        chunks=explorer.chunks(data),
        flow=_flow(data),
        link=_link,
        place=place,
        arms=_arm_rows(data),
        panels=_headline(data),
        rates=_rate_rows(data),
        forest=_forest(data),
        scatters=_scatters(data),
        training=_training(data),
        explained=_explained(data),
        prints=_fingerprint_rows(data),
        definitions=DEFINITIONS,
        kinds=KINDS,
        marks=MARKS,
        effects=EFFECTS,
        markers={kind: Markup(svg.marker(kind)) for kind in KINDS},
    ).html


def _plain(value: Any) -> str:
    return canonical_json(finite(value))


def _interval(rate: Rate | None) -> str:
    if rate is None or rate.low is None or rate.high is None:
        return ""
    if rate.unit == "share":
        return f"[{100 * rate.low:.1f}, {100 * rate.high:.1f}]"
    return f"[{rate.low:.3f}, {rate.high:.3f}]"


def _arm_rows(data: ReportData) -> list[dict[str, Any]]:
    extra = ("m_g", "m_r") if data.continuous else ("nfr_mc", "relative_nfr")
    return [
        {
            "version": version,
            "css": arm_css(data, version),
            "nfr": version.rate(data.nfr),
            "pfr": version.rate(data.pfr),
            "change": data.change(version),
            "extra": [version.rate(name) for name in extra],
        }
        for version in data.versions
    ]


def arm_css(data: ReportData, version: Version) -> str:
    """The class that gives a version its colour everywhere."""
    if version.role != "control":
        return f"v-{version.role}"
    controls = [other.name for other in data.versions if other.role == "control"]
    return f"v-control{controls.index(version.name) % 3 + 1}"


def _headline(data: ReportData) -> list[dict[str, Any]]:
    """Dot-and-interval panels of accuracy and NFR, one row per version."""
    panels = []
    nfrs = [(version, version.rate(data.nfr)) for version in data.versions[1:]]
    scores: list[tuple[Version, Rate | None]] = [(version, version.score) for version in data.versions]
    for title, hint, entries, from_zero in (
        ("Mean score" if data.continuous else "Accuracy", "higher is better", scores, False),
        ("NFR", "lower is better", nfrs, True),
    ):
        rates = [rate for _, rate in entries if rate is not None]
        floors = [rate.floor for rate in rates] if from_zero else []
        ends = [end for rate in rates for end in (rate.value, rate.low, rate.high)]
        scale = svg.scale_over([*ends, *floors], from_zero, rates[0].unit == "share" if rates else True)
        rows = [
            {
                "label": version.label,
                "css": arm_css(data, version),
                "svg": Markup(svg.dot_row(scale, rate.value, rate.low, rate.high, rate.floor if from_zero else None)),
                "rate": rate,
            }
            for version, rate in entries
            if rate is not None
        ]
        floor = next((value for value in floors if value is not None), None)
        panels.append({"title": title, "hint": hint, "rows": rows, "axis": Markup(svg.axis_row(scale)), "floor": floor})
    return panels


def _rate_rows(data: ReportData) -> list[dict[str, Any]]:
    return [
        {"rate": rate, "values": [data.column(version, rate.name) for version in data.versions[1:]]}
        for rate in data.before.rates
    ]


def _explained(data: ReportData) -> dict[str, Any] | None:
    if data.explanation is None:
        return None
    names = ("name", "restored", "lost", "recovered")
    return {
        "heat_map": Markup(heat_map(data.explanation)),
        "graph": Markup(graph(data.explanation)) if data.explanation.edges else "",
        "rows": [dict(zip(names, row, strict=True)) for row in data.explanation.rows()],
    }


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


_FILTERS: Mapping[str, Callable[..., str]] = {
    "value": format_value,
    "short": short,
    "p": p_value,
    "signed": signed_percent,
    "interval": _interval,
    "plain": _plain,
    "capital": _capital,
}


def _link(**filters: str) -> str:
    """The fragment that sets these filters of the instance table."""
    return "#" + urlencode(filters)


def _flow(data: ReportData) -> dict[str, Any] | None:
    """The drawing of instances going from right to wrong, and its legend; None where answers are not right or wrong."""
    if data.continuous:
        return None
    if data.repaired is None:
        flows, key = kind_flows(data.instances.kinds, KINDS), "kind"
    else:
        flows, key = effect_flows(data.instances.effects), "effect"
    legend = [
        {"flow": flow, "link": _link(kind="all", effect=flow.name) if key == "effect" else _link(kind=flow.name)}
        for flow in flows
        if flow.count
    ]
    return {"svg": Markup(sankey(flows, ("old", "new", "repaired")[: len(flows[0].path)], key)), "legend": legend}


def _forest(data: ReportData) -> dict[str, Any] | None:
    """The slices with their NFR on one scale, the strongest evidence first."""
    if not data.slices:
        return None
    overall, labels = data.new.rate(data.nfr), explorer.tag_labels(explorer.row_tags(data))
    floor = overall.floor if overall else None
    shown = data.slices[:SHOWN_SLICES]
    parts = [part for pair in shown for part in (pair.before, pair.after) if part is not None]
    # Slices of three instances must not squash all the others: a longer whisker is cut at the edge.
    wide = 1.5 * statistics.median(part.nfr_interval.high for part in parts)
    known = [part.nfr for part in parts] + [floor, overall.value if overall else None]
    scale = svg.scale_over([*known, min(wide, max(part.nfr_interval.high for part in parts))], from_zero=True)
    rows = [_forest_row(data, pair, scale, overall, labels) for pair in shown]
    first = FIRST_SLICES if len(rows) > FIRST_SLICES + 3 else len(rows)
    return {
        "first": rows[:first],
        "later": rows[first:],
        "axis": Markup(svg.axis_row(scale)),
        "overall": overall.value if overall else None,
        "floor": floor,
        "more": len(data.slices) - len(shown),
    }


def _forest_row(
    data: ReportData, pair: SlicePair, scale: svg.Scale, overall: Rate | None, labels: Mapping[tuple[str, str], str]
) -> dict[str, Any]:
    sides = [part for part in (pair.before, pair.after) if part is not None]
    marks = [(name, part.nfr, *part.nfr_interval) for name, part in zip(("v-new", "v-repaired"), sides, strict=False)]
    label = labels.get((pair.before.tag, pair.before.value))
    return {
        "pair": pair,
        "link": _link(kind="all", tag=label) if label else None,
        "parts": [_slice_text(part) for part in sides],
        "svg": Markup(
            svg.forest_row(scale, marks, overall.value if overall else None, overall.floor if overall else None)
        ),
        "news": pair.before.q < ALPHA,
    }


def _slice_text(part: Slice) -> dict[str, str]:
    low, high = part.nfr_interval
    return {
        "nfr": f"{100 * part.nfr:.1f}%",
        "interval": f"[{100 * low:.1f}, {100 * high:.1f}]",
        "flips": f"{part.negative_flips:,} − / {part.positive_flips:,} +",
    }


def _scatters(data: ReportData) -> dict[str, Any] | None:
    panels = explorer.scatter_panels(data)
    if not panels:
        return None
    before = panels[0]
    frame = svg.frame_over(panels)
    what = "margin (nats)" if before.margins else "score"
    figures = []
    for points, role in zip(panels, ("new", "repaired"), strict=False):
        drawn = len(svg.thin(points))
        figures.append(
            {
                "title": f"Old against {role}",
                "role": role,
                "svg": Markup(svg.scatter(points, frame, f"old {what}", f"{role} {what}")),
                "drawn": drawn,
                "sampled_flips": svg.flip_count(points) > svg.FLIP_LIMIT,
                "total": len(points.row),
                "missing": points.missing,
                "beyond": svg.beyond(points, frame),
            }
        )
    return {"figures": figures, "margins": before.margins, "spread": before.spread}


def _training(data: ReportData) -> dict[str, Any] | None:
    """Small multiples: validation accuracy and NFR first, then whatever else the method logged."""
    arms = [version for version in data.versions if version.history]
    panels = []
    for side in ("validation", "train"):
        first = ("accuracy", "nfr") if side == "validation" else ("loss",)
        keys = {key for version in arms for line in version.history for key in getattr(line, side)}
        for key in sorted(keys, key=lambda key: (first.index(key) if key in first else len(first), key)):
            lines = [curve for version in arms if (curve := _curve(data, version, side, key)).points]
            if lines:
                share = key in ("accuracy", "nfr", "pfr") or key.endswith(("_rate", "_share"))
                name = visible(key)
                panels.append({"title": name, "side": side, "svg": Markup(svg.curves(f"{side} {name}", lines, share))})
    return {"panels": panels, "arms": [(v.label, arm_css(data, v)) for v in arms]} if panels else None


def _curve(data: ReportData, version: Version, side: str, key: str) -> svg.Curve:
    values = [(line.epoch, getattr(line, side).get(key)) for line in version.history]
    points = [(epoch, float(value)) for epoch, value in values if value is not None and math.isfinite(value)]
    chosen = next((line.epoch for line in version.history if line.chosen), None)
    return svg.Curve(arm_css(data, version), version.label, points, chosen)


def _fingerprint_rows(data: ReportData) -> dict[str, Any]:
    """One row per entry of the fingerprints; equal entries are said once."""
    flat = {name: _flatten(prints) for name, prints in fingerprints(data).items()}
    keys = sorted({key for entries in flat.values() for key in entries})
    rows = []
    for key in keys:
        values = [visible(entries.get(key, "–")) for entries in flat.values()]
        rows.append({"key": visible(key), "values": values[:1] if len(set(values)) == 1 else values})
    return {"names": list(flat), "rows": rows}


def _flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    entries: dict[str, str] = {}
    for key, entry in value.items():
        if isinstance(entry, Mapping) and entry:
            entries.update(_flatten(entry, f"{prefix}{key}."))
        else:
            entries[f"{prefix}{key}"] = entry if isinstance(entry, str) else _plain(entry)
    return entries
