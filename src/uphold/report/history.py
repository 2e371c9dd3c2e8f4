"""The report on a history: a page for people, JSON for programs, Markdown for pull requests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from uphold.core.storage import writable_folder, write_json, write_text
from uphold.measure.history import FILE, Flips, History
from uphold.measure.history_text import marks, said
from uphold.measure.rates import format_value
from uphold.measure.timelines import KINDS, Timeline
from uphold.report.history_svg import HEIGHT, Line, bands, lines
from uphold.report.page import render_page
from uphold.report.text import clip, finite, short, visible

_ALPHA = 0.05
_SHOWN_PATTERNS = 60
_INPUT_LIMIT, _ANSWER_LIMIT, _TAG_LIMIT = 1500, 600, 120
_MARKDOWN_ROWS, _CELL_LIMIT = 20, 160


def write_history(history: History, folder: str | Path) -> Path:
    """Write `history.html`, `history.json` and `history.md` to `folder`, and return the page's path.

    The same history gives the same bytes every time.

    Raises:
        StorageError: the disk refused a write.
    """
    target = writable_folder(Path(folder))
    write_json(target / FILE, finite(history.to_dict()))
    write_text(target / "history.md", render_markdown(history))
    write_text(target / "history.html", render_html(history))
    return target / "history.html"


def verdict(history: History) -> str:
    """What the last version lost of what earlier ones could do."""
    last, number = history.versions[-1], len(history.versions)
    score = _score(history, last.score)
    if not history.judged:
        worse = f"{_of(last.debt, history)} fare" if last.debt else "no instance fares"
        return f"Version {number} has a mean score of {score}, and {worse} worse than in some earlier version."
    if not last.debt:
        return f"Version {number} is right on {score} of instances, among them all that an earlier version had right."
    return (
        f"Version {number} is right on {score} of instances, and wrong on {short(last.debt / history.count)} "
        f"({last.debt:,} of {history.count:,}) that an earlier version had right."
    )


def remarks(history: History) -> list[str]:
    """Sentences on the best version, on chance, and on instances that come and go."""
    best = history.versions[history.best]
    found = [f"The best version is number {history.best + 1}, at {_score(history, best.score)}."]
    noun = "accuracy" if history.judged else "scores"
    certain = [
        f"{place} → {place + 1}"
        for place, version in enumerate(history.versions)
        if version.previous and version.previous.adjusted_p < _ALPHA
    ]
    test = "exact McNemar test" if history.judged else "sign test"
    steps = len(history.versions) - 1
    found.append(
        f"Of {steps} update{'s' if steps > 1 else ''}, {len(certain) or 'none'} changed {noun} beyond chance"
        f"{': ' + ', '.join(certain) if certain else ''} ({test}, corrected for {steps})."
    )
    total = sum(history.oscillating.values())
    if total:
        found.append(f"{total:,} instances changed twice or more.")
    return found


def render_html(history: History) -> str:
    """The history as one self-contained HTML page."""
    grouped: dict[str, list[tuple[str, int]]] = {}
    for pattern in history.patterns:
        grouped.setdefault(pattern.kind, []).append((pattern.marks, pattern.count))
    drawing, labels = bands(history.kinds, grouped, len(history.versions))
    count = len(history.versions)
    return render_page(
        "history.html.j2",
        ["history.css"],
        ["history.js"],
        _payload(history),
        history=history,
        verdict=verdict(history),
        remarks=remarks(history),
        rows=[_row(history, place) for place in range(count)],
        cards=_cards(history),
        bands=Markup(drawing),
        bands_height=HEIGHT,
        labels=[
            {"top": f"{label.top:.0f}", "count": history.kinds[label.kind], "kind": label.kind} for label in labels
        ],
        kinds={name: said(text, history.judged) for name, text in KINDS.items()},
        numbers=[place + 1 if count <= 20 or place % 5 == 0 or place == count - 1 else "" for place in range(count)],
        patterns=history.patterns[:_SHOWN_PATTERNS],
        largest=max(pattern.count for pattern in history.patterns),
        charts=_charts(history),
    ).html


def _of(count: int, history: History) -> str:
    return f"{count:,} of {history.count:,} instances ({short(count / history.count)})"


def _score(history: History, value: float) -> str:
    return short(value, "share" if history.judged else "score")


def _row(history: History, place: int) -> dict[str, Any]:
    version = history.versions[place]
    unit = "share" if history.judged else "score"
    step = version.previous
    return {
        "number": place + 1,
        "label": version.label,
        "score": format_value(version.score, unit),
        "interval": _interval(*version.interval, unit),
        "best": place == history.best,
        "previous": _flips(version.previous),
        "first": _flips(version.first),
        "best_so_far": _flips(version.best),
        "p": "" if step is None else "< 0.0001" if step.adjusted_p < 1e-4 else f"{step.adjusted_p:.2g}",
        "broken": version.broken_since,
        "debt": format_value(version.debt / history.count, "share"),
        "debt_count": version.debt,
    }


def _flips(flips: Flips | None) -> dict[str, Any] | None:
    if flips is None:
        return None
    return {
        "nfr": format_value(flips.nfr, "share"),
        "pfr": format_value(flips.pfr, "share"),
        "nfr_interval": _interval(*flips.nfr_interval, "share"),
        "pfr_interval": _interval(*flips.pfr_interval, "share"),
        "negative": flips.negative,
        "positive": flips.positive,
        "against": flips.against + 1,
    }


def _interval(low: float, high: float, unit: str) -> str:
    return f"[{100 * low:.1f}, {100 * high:.1f}]" if unit == "share" else f"[{low:.3f}, {high:.3f}]"


def _cards(history: History) -> list[tuple[str, str, str]]:
    first, last = history.versions[0], history.versions[-1]
    ever = last.score + last.debt / history.count
    cards = [
        (
            "Accuracy" if history.judged else "Mean score",
            f"{_score(history, first.score)} → {_score(history, last.score)}",
            f"version 1 → {len(history.versions)}",
        ),
        ("Regression debt", short(last.debt / history.count), f"{last.debt:,} instances, last version"),
        ("Oscillating", f"{sum(history.oscillating.values()):,}", "instances change twice or more"),
    ]
    if history.judged:
        cards.insert(1, ("Right in some version", short(ever), "what the last version would reach without its debt"))
    return cards


def _charts(history: History) -> list[dict[str, Any]]:
    versions = history.versions
    shares = [version.debt / history.count for version in versions]
    scores = [version.score for version in versions]
    noun = "accuracy" if history.judged else "mean score"
    own = Line("line-a", noun, scores, [(version.interval.low, version.interval.high) for version in versions])
    top = [own]
    if history.judged:
        ever = [score + share for score, share in zip(scores, shares, strict=True)]
        top = [Line("line-c", "right in this or an earlier version", ever), own]
    flips = [
        Line("line-c", "NFR against the first version", _nfrs([version.first for version in versions])),
        Line("line-a", "NFR against the version before", _nfrs([version.previous for version in versions])),
        Line("line-b", "regression debt", shares),
    ]
    return [
        {
            "title": noun.capitalize(),
            "hint": "bars are 95% intervals" + ("; the shaded gap is the regression debt" if history.judged else ""),
            "lines": top,
            "svg": Markup(lines(noun, top, history.judged, False, between=history.judged)),
        },
        {
            "title": "What was lost",
            "hint": "shares of all instances",
            "lines": flips,
            "svg": Markup(lines("negative flips and regression debt", flips, True, True)),
        },
    ]


def _nfrs(flips: Sequence[Flips | None]) -> list[float | None]:
    return [None if entry is None else entry.nfr for entry in flips]


def _payload(history: History) -> dict[str, Any]:
    """The instances as compact JSON, long texts cut in their middle."""
    limit = max(80, _ANSWER_LIMIT * 8 // max(8, len(history.versions)))
    return {
        "judged": history.judged,
        "kinds": {name: said(text, history.judged) for name, text in KINDS.items()},
        "versions": [visible(clip(version.label, _TAG_LIMIT)) for version in history.versions],
        "rows": [_payload_row(entry, limit) for entry in history.instances],
    }


def _payload_row(entry: Timeline, limit: int) -> list[Any]:
    return [
        visible(entry.id),
        entry.pattern,
        entry.kind,
        entry.changes,
        visible(clip(entry.input, _INPUT_LIMIT)),
        visible(clip(entry.gold, limit)),
        [visible(clip(f"{tag} = {value}", _TAG_LIMIT)) for tag, value in sorted(entry.tags.items())],
        [
            [visible(clip(answer.text, limit)), None if answer.score is None else round(answer.score, 4)]
            for answer in entry.answers
        ],
    ]


def render_markdown(history: History) -> str:
    """The history as Markdown: the table of versions, the kinds of instance, those that oscillate."""
    from uphold.report.markdown import escape

    score = "accuracy" if history.judged else "mean score"
    header = ["", "version", score, "NFR vs previous", "Holm p", "NFR vs first", "NFR vs best so far", "debt"]
    table = [header, ["---:", "---", *["---:"] * 6]]
    for row in (_row(history, place) for place in range(len(history.versions))):
        cells = [f"{row['number']}", escape(clip(row["label"], _CELL_LIMIT)), f"{row['score']} {row['interval']}"]
        if row["previous"] is None:
            cells += ["–"] * 4
        else:
            step, best = row["previous"], row["best_so_far"]
            cells += [f"{step['nfr']} {step['nfr_interval']}", escape(row["p"]), row["first"]["nfr"]]
            cells.append(f"{best['nfr']} (version {best['against']})")
        table.append([*cells, f"{row['debt']} ({row['debt_count']:,})"])
    parts = [
        f"# {escape(history.task)}: {len(history.versions)} versions",
        f"**{escape(verdict(history))}**",
        "\n".join(f"- {escape(line)}" for line in remarks(history)),
        "\n".join("| " + " | ".join(cells) + " |" for cells in table),
        "\n".join(
            f"- {name}: {count:,} ({escape(said(KINDS[name], history.judged))})"
            for name, count in history.kinds.items()
            if count or history.judged
        ),
        _markdown_instances([entry for entry in history.instances if entry.changes >= 2], history),
    ]
    if history.notes:
        parts.append("## Notes\n\n" + "\n".join(f"- {escape(note)}" for note in history.notes))
    return "\n\n".join(part for part in parts if part) + "\n"


def _markdown_instances(entries: Sequence[Timeline], history: History) -> str:
    from uphold.report.markdown import escape

    if not entries:
        return ""
    total, shown = sum(history.oscillating.values()), entries[:_MARKDOWN_ROWS]
    lines_ = [f"## Instances that oscillate\n\n{len(shown):,} of {total:,}.\n", "| versions | question | gold |"]
    lines_.append("| --- | --- | --- |")
    for entry in shown:
        texts = [escape(clip(text, _CELL_LIMIT)) or "(empty)" for text in (entry.input, entry.gold)]
        lines_.append(f"| {marks(entry.pattern)} | {texts[0]} | {texts[1]} |")
    return "\n".join(lines_)
