"""The HTML report: one file, no network, everything that a model or a user wrote escaped."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from uphold.core.hashing import canonical_json
from uphold.measure.rates import Rate, format_value
from uphold.measure.slices import Slice
from uphold.report import svg
from uphold.report.data import ReportData, Version, fingerprints
from uphold.report.glossary import DEFINITIONS, EFFECTS, KINDS, MARKS
from uphold.report.instances import Answer, Instance
from uphold.report.text import clip, finite, p_value, short, signed_percent, visible
from uphold.report.verdict import remarks, verdict

SHOWN_SLICES = 40
_INPUT_LIMIT, _ANSWER_LIMIT, _TAG_LIMIT = 2000, 1000, 200


def render_html(data: ReportData) -> str:
    """The report as one self-contained HTML page."""
    environment = Environment(
        autoescape=True, finalize=_finalize, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        value=format_value, short=short, p=p_value, signed=signed_percent, interval=_interval, plain=_plain
    )
    template = environment.from_string(_asset("report.html.j2"))
    script = _asset("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return template.render(
        data=data,
        verdict=verdict(data),
        remarks=remarks(data),
        style=Markup(_asset("report.css")),
        script=Markup(script),
        script_hash=digest,
        instances_json=Markup(script_json(instances_payload(data))),
        arms=_arm_rows(data),
        panels=_headline(data),
        rates=_rate_rows(data),
        slice_rows=_slice_rows(data),
        scatters=_scatters(data),
        training=_training(data),
        prints=_fingerprint_rows(data),
        definitions=DEFINITIONS,
        kinds=KINDS,
        marks=MARKS,
        effects=EFFECTS,
        markers={kind: Markup(svg.marker(kind)) for kind in KINDS},
    )


def _finalize(value: Any) -> Any:
    """What the template prints: every plain text with its invisible characters written out."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _plain(value: Any) -> str:
    return canonical_json(finite(value))


def _asset(name: str) -> str:
    return files("uphold.report").joinpath(name).read_text(encoding="utf-8")


def script_json(value: Any) -> str:
    """`value` as JSON that may stand inside a `<script>` element: it can end neither the element nor a line."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def instances_payload(data: ReportData) -> dict[str, Any]:
    """The instance table as compact JSON: rows of indices and texts, long texts cut in their middle."""
    rows = data.instances.rows
    tags = sorted({tag for row in rows for tag in row.tags.items()})
    number = {tag: index for index, tag in enumerate(tags)}
    kinds, effects = list(KINDS), list(EFFECTS)
    return {
        "kinds": [{"name": kind, "label": KINDS[kind], "mark": MARKS[kind]} for kind in kinds],
        "effects": effects,
        "tags": [clip(visible(f"{tag} = {value}"), _TAG_LIMIT) for tag, value in tags],
        "versions": ["old", "new", "repaired"][: 3 if data.repair else 2],
        "rows": [
            [
                row.id,
                kinds.index(row.kind),
                effects.index(row.effect) if row.effect else -1,
                _shown(row.input, _INPUT_LIMIT),
                _shown(row.gold, _ANSWER_LIMIT),
                [_answer(answer, row) for answer in row.answers],
                sorted(number[tag] for tag in row.tags.items()),
            ]
            for row in rows
        ],
    }


def _answer(answer: Answer, row: Instance) -> list[Any]:
    output = "" if answer.output == answer.text else _shown(answer.output, _ANSWER_LIMIT)
    numbers = [
        round(number, 4) if number is not None and math.isfinite(number) else None
        for number in (answer.score, answer.margin)
    ]
    # A score of 0 or 1 beside right or wrong would be said twice.
    if answer.correct is not None and numbers[0] in (0.0, 1.0):
        numbers[0] = None
    return [_shown(answer.text, _ANSWER_LIMIT), answer.correct, *numbers, output]


def _shown(text: str, limit: int) -> str:
    return visible(clip(text, limit))


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


def _slice_rows(data: ReportData) -> list[dict[str, Any]]:
    shown = data.slices[:SHOWN_SLICES]
    sides = [[part for part in (pair.before, pair.after) if part is not None] for pair in shown]
    scale = svg.scale_over([part.nfr_interval.high for parts in sides for part in parts], from_zero=True)
    rows = []
    for pair, parts in zip(shown, sides, strict=True):
        bars = [
            (name, part.nfr, *part.nfr_interval) for name, part in zip(("v-new", "v-repaired"), parts, strict=False)
        ]
        rows.append(
            {"pair": pair, "parts": [_slice_text(part) for part in parts], "svg": Markup(svg.slice_bars(scale, bars))}
        )
    return rows


def _slice_text(part: Slice) -> dict[str, str]:
    low, high = part.nfr_interval
    return {
        "nfr": f"{100 * part.nfr:.1f}%",
        "interval": f"[{100 * low:.1f}, {100 * high:.1f}]",
        "flips": f"{part.negative_flips:,} − / {part.positive_flips:,} +",
        "accuracy": f"{100 * part.new_right / part.count:.1f}%",
    }


def _scatters(data: ReportData) -> dict[str, Any] | None:
    before, after = data.instances.before, data.instances.after
    if before is None:
        return None
    panels = [before] if after is None else [before, after]
    frame = svg.frame_over(panels)
    what = "margin (nats)" if before.margins else "score"
    figures = []
    for points, role in zip(panels, ("new", "repaired"), strict=False):
        drawn = len(svg.thin(points))
        figures.append(
            {
                "title": f"Old against {role}",
                "svg": Markup(svg.scatter(points, frame, f"old {what}", f"{role} {what}")),
                "drawn": drawn,
                "sampled_flips": svg.flip_count(points) > svg.FLIP_LIMIT,
                "total": len(points.old),
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
