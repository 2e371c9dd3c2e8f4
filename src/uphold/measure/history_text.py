"""A history in words and as a table of text."""

from __future__ import annotations

from uphold.core.stats import Interval
from uphold.measure.history import History
from uphold.measure.rates import format_value
from uphold.measure.timelines import KINDS

_SHOWN = 10


def summary(history: History) -> list[str]:
    """The lines that a terminal shows: versions, kinds of instance, those that oscillate, notes."""
    names = KINDS if history.judged else ("kept", "recovered", "lost")
    return [
        f"{history.task}: {history.count:,} instances, {len(history.versions)} versions",
        *_table(history),
        "",
        *(f"{history.kinds[name]:>9,}  {name:<9}  {said(KINDS[name], history.judged)}" for name in names),
        "",
        *_oscillations(history),
        *(f"note: {note}" for note in history.notes),
    ]


def marks(pattern: str) -> str:
    """A pattern of 0 and 1 as people read it: ✓✗✓."""
    return pattern.replace("1", "✓").replace("0", "✗")


def said(text: str, judged: bool) -> str:
    """A sentence about right and wrong as it reads where scores are continuous."""
    if judged:
        return text
    return {
        KINDS["kept"]: "in no version below an earlier one",
        KINDS["recovered"]: "fell below an earlier version, is back at its best in the last one",
        KINDS["lost"]: "in the last version below an earlier one",
    }.get(text, text)


def _table(history: History) -> list[str]:
    unit = "share" if history.judged else "score"
    rows = [("", "version", "accuracy" if history.judged else "mean score", "95% interval", "NFR vs previous",
             "95% interval", "Holm p", "vs first", "vs best (which)", "debt")]  # fmt: skip
    for place, version in enumerate(history.versions):
        cells = [str(place + 1), version.label, format_value(version.score, unit), _interval(version.interval, unit)]
        if version.previous and version.first and version.best:
            step = version.previous
            cells += [format_value(step.nfr, "share"), _interval(step.nfr_interval, "share"), f"{step.adjusted_p:.2g}"]
            cells += [
                format_value(version.first.nfr, "share"),
                f"{format_value(version.best.nfr, 'share')} ({version.best.against + 1})",
            ]
        else:
            cells += [""] * 5
        rows.append((*cells, format_value(version.debt / history.count, "share")))  # type: ignore[arg-type]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            f"{cell:<{width}}" if column in (1, 3, 5) else f"{cell:>{width}}"
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _interval(interval: Interval, unit: str) -> str:
    return f"[{format_value(interval.low, unit)}, {format_value(interval.high, unit)}]"


def _oscillations(history: History) -> list[str]:
    total = sum(history.oscillating.values())
    if not total:
        return ["no instance changes twice"]
    shown = [entry for entry in history.instances if entry.changes >= 2][:_SHOWN]
    lines = [f"{total:,} instances change twice or more; {'those' if total <= _SHOWN else 'some'} with most changes:"]
    for entry in shown:
        question = " ".join(entry.input.split())
        lines.append(
            f"  {marks(entry.pattern)}  {entry.id}  {question if len(question) <= 60 else '…' + question[-59:]}"
        )
    return lines
