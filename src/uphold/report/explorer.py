"""What the report's instance explorer is made of: its data, packed, and its script."""

from __future__ import annotations

import base64
import json
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from uphold.measure.slices import DERIVED
from uphold.report import svg
from uphold.report.data import ReportData
from uphold.report.derived import with_derived
from uphold.report.glossary import EFFECTS, KINDS, MARKS
from uphold.report.instances import Answer, Instance
from uphold.report.points import Points
from uphold.report.text import clip, visible

SCRIPTS = (
    "report.js",
    "rows.js",
    "state.js",
    "diff.js",
    "markdown.js",
    "filters.js",
    "table.js",
    "detail.js",
    "scatter.js",
    "keys.js",
)
"""The parts of the page's script, in their order."""
ROWS = 4096
"""Instances per chunk: the page unpacks one after the other, and answers in between."""
SHORT = 90
"""Characters of a question that fit one line of the table."""
MOST_OPTIONS = 12
"""Options of an instance that are shown with their log-likelihoods."""
_TAG_LIMIT = 200


def pack(value: Any) -> str:
    """`value` as JSON, deflated, in Base64."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return base64.b64encode(zlib.compress(text.encode(), 6)).decode()


def row_tags(data: ReportData) -> list[dict[str, str]]:
    """Every row's tags, the derived slices among them."""
    return with_derived(data.instances.rows, [pair.before for pair in data.slices])


def tag_labels(tags: Sequence[Mapping[str, str]]) -> dict[tuple[str, str], str]:
    """Every tag of the rows as filters and links write it: `name = value`, no two alike."""
    labels: dict[tuple[str, str], str] = {}
    taken: set[str] = set()
    for tag in sorted({tag for own in tags for tag in own.items()}, key=_natural):
        label = plain = clip(visible(f"{tag[0]} = {tag[1]}"), _TAG_LIMIT)
        number = 2
        while label in taken:
            label, number = f"{plain} ({number})", number + 1
        taken.add(label)
        labels[tag] = label
    return labels


def _natural(tag: tuple[str, str]) -> tuple[str, list[str | int], str]:
    """Sorts 9 before 10. Longer numbers than 15 digits are read in parts."""
    parts = re.split(r"(\d{1,15})", tag[1])
    return tag[0], [int(part) if place % 2 else part for place, part in enumerate(parts)], tag[1]


def head(data: ReportData) -> dict[str, Any]:
    """What the page needs before the first instance."""
    rows, tags = data.instances.rows, row_tags(data)
    counts: dict[tuple[str, str], int] = {}
    kinds: dict[str, int] = {}
    effects: dict[str, int] = {}
    for row in rows:
        kinds[row.kind] = kinds.get(row.kind, 0) + 1
        if row.effect:
            effects[row.effect] = effects.get(row.effect, 0) + 1
    for own in tags:
        for tag in own.items():
            counts[tag] = counts.get(tag, 0) + 1
    derived = set(DERIVED) - {name for row in rows for name in row.tags}
    return {
        "count": len(rows),
        "chunk": ROWS,
        "task": visible(data.task),
        "names": [visible(data.before.old.name), visible(data.before.new.name)],
        "kinds": [
            {"name": name, "label": KINDS[name], "mark": MARKS[name], "count": kinds.get(name, 0)} for name in KINDS
        ],
        "effects": [{"name": name, "count": effects.get(name, 0)} for name in EFFECTS] if data.repair else [],
        "tags": [
            {"group": visible(tag[0]), "label": label, "count": counts[tag], "derived": tag[0] in derived}
            for tag, label in tag_labels(tags).items()
        ],
        "versions": ["old", "new", "repaired"][: 3 if data.repair else 2],
        "compact": all(len(row.input) <= SHORT and len(row.gold) <= SHORT / 2 for row in rows),
        "panels": _panels(data),
    }


def _panels(data: ReportData) -> list[dict[str, Any]]:
    panels = scatter_panels(data)
    if not panels:
        return []
    frame = svg.frame_over(panels)
    size = {"low": frame.low, "high": frame.high, "left": frame.left, "top": frame.top, "size": frame.size}
    return [size for _ in panels]


def scatter_panels(data: ReportData) -> list[Points]:
    """The scatter plots that there are: none, one, or with a repair two."""
    return [points for points in (data.instances.before, data.instances.after) if points is not None]


def chunks(data: ReportData) -> list[str]:
    """The instances by columns, `ROWS` at a time, each chunk packed; texts are written once per chunk."""
    rows, tags = data.instances.rows, row_tags(data)
    numbers = {tag: number for number, tag in enumerate(tag_labels(tags))}
    tagged = [sorted(numbers[tag] for tag in own.items()) for own in tags]
    places = [_places(points, len(rows)) for points in scatter_panels(data)]
    packed = []
    for start in range(0, len(rows), ROWS):
        part = rows[start : start + ROWS]
        chunk = _chunk(part) | {"tags": tagged[start : start + ROWS]}
        chunk["points"] = [[column[start : start + ROWS] for column in panel] for panel in places]
        packed.append(pack(chunk))
    return packed


def _places(points: Points, count: int) -> tuple[list[float | None], list[float | None]]:
    x: list[float | None] = [None] * count
    y: list[float | None] = [None] * count
    for row, old, new in zip(points.row.tolist(), points.old.tolist(), points.new.tolist(), strict=True):
        x[row], y[row] = round(old, 4), round(new, 4)
    return x, y


def _chunk(rows: Sequence[Instance]) -> dict[str, Any]:
    texts: dict[str, int] = {}

    def text(value: str) -> int:
        return texts.setdefault(visible(value), len(texts))

    kinds, effects = list(KINDS), list(EFFECTS)
    shown = [_shown_options(row) for row in rows]
    return {
        "id": [visible(row.id) for row in rows],
        "kind": [kinds.index(row.kind) for row in rows],
        "effect": [effects.index(row.effect) if row.effect else -1 for row in rows],
        "input": [text(row.input) for row in rows],
        "gold": [text(row.gold) for row in rows],
        "options": [[text(row.options[k]) for k in own] for row, own in zip(rows, shown, strict=True)],
        "hidden": [len(row.options) - len(own) for row, own in zip(rows, shown, strict=True)],
        "answers": [
            {
                "text": [text(answer.text) for answer in column],
                "output": [-1 if answer.output is None else text(answer.output) for answer in column],
                "right": [-1 if answer.correct is None else int(answer.correct) for answer in column],
                "score": [_score(answer) for answer in column],
                "margin": [_number(answer.margin) for answer in column],
                "logprobs": [
                    [_number(answer.logprobs[k]) for k in own] if len(answer.logprobs) == len(row.options) else []
                    for answer, row, own in zip(column, rows, shown, strict=True)
                ],
            }
            for column in zip(*(row.answers for row in rows), strict=True)
        ],
        "texts": list(texts),
    }


def _shown_options(row: Instance) -> list[int]:
    """Which options to show: all, or of many the gold one and those that any version finds likeliest."""
    scored = [answer.logprobs for answer in row.answers if len(answer.logprobs) == len(row.options)]
    if not scored:
        return []
    if len(row.options) <= MOST_OPTIONS:
        return list(range(len(row.options)))
    best = sorted(
        range(len(row.options)), key=lambda k: (row.options[k] != row.gold, -max(values[k] for values in scored))
    )
    return sorted(best[:MOST_OPTIONS])


def _score(answer: Answer) -> float | None:
    # A score of 0 or 1 beside right or wrong would be said twice.
    return None if answer.correct is not None and answer.score in (0.0, 1.0) else _number(answer.score)


def _number(value: float | None) -> float | None:
    return round(value, 4) if value is not None and math.isfinite(value) else None
