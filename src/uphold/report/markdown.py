"""The Markdown report, for a pull request: the same numbers, and the first negative flips."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from uphold.measure.rates import Rate, format_value
from uphold.report.data import ReportData, Version, place
from uphold.report.glossary import KINDS
from uphold.report.instances import Instance
from uphold.report.text import clip, p_value, signed_percent, visible
from uphold.report.verdict import remarks, verdict

FLIPS = 20
SLICES = 10
_CELL_LIMIT = 200

# `|` and HTML as entities, because table syntax is read before backslashes; the rest of Markdown, links that
# GitHub makes of bare addresses (`:`, `www.`), mentions and issue numbers behind backslashes.
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;", "@": "&#64;", "\t": " "}
_BACKSLASHED = re.compile(r"([\\`*_{}\[\]~$^]|(?<=www)\.|:(?=//)|#(?=\d)|^[#+\-=])")


def escape(text: object) -> str:
    """`text` as Markdown that shows it literally on one line, fit for a table cell."""
    escaped = _BACKSLASHED.sub(r"\\\1", visible(text).strip())
    escaped = "".join(_ENTITIES.get(char, char) for char in escaped)
    return re.sub(r"\s*\n\s*", " ⏎ ", escaped)


def render_markdown(data: ReportData) -> str:
    """The report as Markdown."""
    names = f"{escape(data.before.old.name)} → {escape(data.before.new.name)}"
    parts = [
        f"# {escape(data.task)}: {names}",
        f"**{escape(verdict(data))}**",
        "\n".join(f"- {escape(line)}" for line in remarks(data)),
        _gate(data),
        "## Versions\n\n" + _arms(data),
        "## All rates\n\n" + _rates(data),
        _matrices(data),
        _rules(data),
        _slices(data),
        _explanation(data),
        _flips(data),
        _how(data),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _explanation(data: ReportData) -> str:
    if data.explanation is None:
        return ""
    rows = [[escape(cell) for cell in row] for row in data.explanation.rows()]
    table = _table(("site", "flips restored", "gains lost", "of the distance"), rows)
    notes = "\n".join(f"- {escape(note)}" for note in data.explanation.notes())
    return f"## Where in the network\n\n{table}\n\n{notes}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], numbers_from: int = 1) -> str:
    rule = ["---" if column < numbers_from else "---:" for column in range(len(header))]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, rule, *rows))


def _cell(rate: Rate | None) -> str:
    if rate is None:
        return "–"
    text = format_value(rate.value, rate.unit)
    if rate.low is None or rate.high is None:
        return text
    return f"{text} [{format_value(rate.low, rate.unit)}, {format_value(rate.high, rate.unit)}]"


def _gate(data: ReportData) -> str:
    if data.gate is None:
        return ""
    rows = [
        [check.verdict, escape(check.rule), escape(place(check.task, check.slice)), escape(check.reason)]
        for check in data.gate.checks
    ]
    return f"## Gate: {data.gate.verdict}\n\n" + _table(["verdict", "rule", "where", "why"], rows, 4)


def _arms(data: ReportData) -> str:
    extra = ("m_g", "m_r") if data.continuous else ("nfr_mc", "relative_nfr")
    names = ["M_g", "M_r"] if data.continuous else ["NFR^mc", "relative NFR"]
    score = "mean score" if data.continuous else "accuracy"
    header = ["version", score, "NFR", "NFR vs plain", "PFR", *(escape(name) for name in names)]
    rows = []
    for version in data.versions:
        change = "–" if version.role in ("old", "new") else signed_percent(data.change(version))
        rates = [version.rate(name) for name in (data.nfr, data.pfr, *extra)]
        cells = [_cell(rate) for rate in rates]
        rows.append([escape(version.label), _cell(version.score), cells[0], change, *cells[1:]])
    return _table(header, rows)


def _rates(data: ReportData) -> str:
    compared: tuple[Version, ...] = data.versions[1:]
    header = ["rate", *(escape(version.label) for version in compared), "noise floor"]
    rows = []
    for rate in data.before.rates:
        floor = "–" if rate.floor is None else format_value(rate.floor, rate.unit)
        rows.append([escape(rate.label), *(_cell(data.column(version, rate.name)) for version in compared), floor])
    return _table(header, rows) + "\n\nEach version against the old model, with 95% intervals."


def _matrices(data: ReportData) -> str:
    rows = []
    for version in data.versions[1:]:
        if version.comparison is None or version.comparison.matrix is None:
            continue
        matrix = version.comparison.matrix
        counts = (matrix.both_right, matrix.negative_flips, matrix.positive_flips, matrix.both_wrong)
        test = version.comparison.test
        p = escape(f"{test.name} {p_value(test.p)}")
        rows.append([escape(version.label), *(f"{count:,} ({count / matrix.total:.1%})" for count in counts), p])
    if not rows:
        return ""
    header = ["version", "both right", "negative flips", "positive flips", "both wrong", "paired test"]
    return "## Flip matrix\n\n" + _table(header, rows)


def _rules(data: ReportData) -> str:
    if not data.before.discovered:
        return ""
    rows = []
    for rule in data.before.discovered:
        flips = f"{rule.negative_flips:,} / {rule.count:,}"
        sample = "" if rule.sample is None else f" (estimated from {rule.sample:,} instances)"
        conditions = escape(" and ".join(rule.conditions)) + sample
        rows.append([conditions, flips, f"{rule.nfr:.2%}", f"{rule.nfr_rest:.2%}", escape(p_value(rule.p))])
    header = ["where negative flips pile up", "flips / n", "NFR", "NFR elsewhere", "corrected p"]
    return "## Where it hurts\n\n" + _table(header, rows)


def _slices(data: ReportData) -> str:
    if not data.slices:
        return ""
    rows = []
    for pair in data.slices[:SLICES]:
        row = [escape(pair.label), f"{pair.before.count:,}"]
        for part in (pair.before, pair.after) if data.repair else (pair.before,):
            if part is None:
                row += ["–", "–"]
                continue
            low, high = part.nfr_interval
            row += [f"{part.nfr:.2%} [{low:.2%}, {high:.2%}]", f"{part.negative_flips:,} / {part.positive_flips:,}"]
        rows.append([*row, f"{pair.before.q:.3f}"])
    header = ["slice", "n", "NFR", "negative / positive flips"]
    if data.repair:
        header += ["NFR after repair", "negative / positive after"]
    header.append("q")
    more = len(data.slices) - len(rows)
    tail = f" {more:,} more are in report.json." if more else ""
    return (
        "## Worst slices\n\n" + _table(header, rows) + "\n\nThe strongest evidence first: q is the one-sided Fisher "
        "test against all other instances, corrected for the number of slices (Benjamini–Hochberg)." + tail
    )


def _flips(data: ReportData) -> str:
    total = data.instances.kinds.get("negative", 0)
    if not total:
        return "## Negative flips\n\nThere are none."
    chosen = [row for row in data.instances.rows if row.kind == "negative"][:FLIPS]
    header = ["question", "gold", "old answer", "new answer"]
    if data.repair:
        header += ["repaired answer", "repair"]
    rows = [_flip(row) for row in chosen]
    return f"## Negative flips\n\nThe first {len(chosen):,} of {total:,}.\n\n" + _table(header, rows, len(header))


def _flip(row: Instance) -> list[str]:
    texts = [row.input, row.gold, *(answer.text for answer in row.answers)]
    cells = [escape(clip(text, _CELL_LIMIT)) or "(empty)" for text in texts]
    return [*cells, row.effect] if row.effect else cells


def _how(data: ReportData) -> str:
    lines = [f"{data.before.count:,} instances scored in both runs, {data.before.unscored:,} left out without a score"]
    lines += [f"{KINDS[kind]}: {count:,}" for kind, count in sorted(data.instances.kinds.items())]
    if data.repair is not None:
        lines.append("splits: " + ", ".join(f"{name} {size:,}" for name, size in data.repair.splits.items()))
        lines.append(f"method: {data.repair.method}" + (f" ({data.repair.paper})" if data.repair.paper else ""))
    return "## How this was measured\n\n" + "\n".join(f"- {escape(line)}" for line in [*lines, *data.notes])
