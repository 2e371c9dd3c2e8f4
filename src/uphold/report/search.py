"""The page on a search: what was chosen, what it was chosen from, and the test split that it was not chosen by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markupsafe import Markup

from uphold.core.storage import writable_folder, write_text
from uphold.measure.rates import Rate, format_value
from uphold.repair.search_result import Measured, Search, Trial, load_search, standing_word
from uphold.report.markdown import escape
from uphold.report.page import render_page
from uphold.report.pareto import KINDS, Point, front, interval_text, pareto_markdown, pareto_svg


def write_search(folder: str | Path, out: str | Path | None = None) -> Path:
    """Write `search.html` and `search.md` on the search saved in `folder`, and return the page's path.

    The same search gives the same bytes every time.

    Args:
        folder: where `uphold repair search` wrote to.
        out: where the two files go; `folder` itself when left out.

    Raises:
        DataError: `folder` holds no search.
        CorruptError: its file does not hold what was written.
        StorageError: the disk refused a write.
    """
    search = load_search(folder)
    target = writable_folder(Path(out if out is not None else folder))
    write_text(target / "search.md", render_markdown(search))
    write_text(target / "search.html", render_html(search))
    return target / "search.html"


def points_of(search: Search) -> list[Point]:
    """Old, new, controls and all finished trials on the test split, the trials as the choice ranks them."""
    old = search.old_score
    points = [Point("old", old.value or 0.0, 0.0, "old", _ends(old))]
    points.append(_point("new (plain update)", search.plain, "new"))
    points += [_point(control.label, control.test, "control") for control in search.controls]
    for trial in search.finished:
        kind: Any = "chosen" if trial.name == search.chosen else "paragon" if _aside(search, trial) else "repair"
        assert trial.test is not None
        points.append(_point(trial.label, trial.test, kind))
    return points


def _point(label: str, measured: Measured, kind: Any) -> Point:
    score, nfr = measured.score, measured.nfr
    return Point(label, score.value or 0.0, nfr.value or 0.0, kind, _ends(score), _ends(nfr))


def _ends(rate: Rate) -> tuple[float, float] | None:
    return None if rate.low is None or rate.high is None else (rate.low, rate.high)


def _aside(search: Search, trial: Trial) -> bool:
    return trial.paragon and not search.config.pairs


def render_html(search: Search) -> str:
    """The search as one self-contained HTML page."""
    points, share = points_of(search), not search.continuous
    best = front(points)
    before = [place for place, point in enumerate(points) if point.kind in ("old", "new", "control")]
    return render_page(
        "search.html.j2",
        ["pareto.css"],
        [],
        {},
        search=search,
        verdict=search.verdict(),
        plot=Markup(pareto_svg(points, share)),
        kinds=[(kind, text) for kind, text in KINDS.items() if any(point.kind == kind for point in points)],
        rows=[
            {
                "number": place + 1,
                "point": point,
                "score": interval_text(point.score, None, share),
                "score_interval": _brackets(point.score_interval, share),
                "nfr": interval_text(point.nfr, None),
                "nfr_interval": _brackets(point.nfr_interval, True),
                "best": place in best,
            }
            for place, point in enumerate(points)
        ],
        trials=[_row(search, trial, len(before) + place + 1) for place, trial in enumerate(search.finished)],
        others=[trial for trial in search.trials if trial.validation is None],
        noun="accuracy" if share else "mean score",
        spent=f"{search.seconds / 60:.1f}",
    ).html


def _brackets(interval: tuple[float, float] | None, share: bool) -> str:
    if interval is None:
        return ""
    low, high = interval
    return f"[{100 * low:.1f}, {100 * high:.1f}]" if share else f"[{low:.3f}, {high:.3f}]"


def _row(search: Search, trial: Trial, number: int) -> dict[str, Any]:
    one, unit = trial.validation, "score" if search.continuous else "share"
    assert one is not None
    return {
        "number": number,
        "trial": trial,
        "nfr": format_value(one.nfr, "share"),
        "score": format_value(one.score, unit),
        "difference": _signed(one.score - one.plain_score, unit),
        "bound": _signed(one.test.low, unit),
        "p": "< 0.0001" if one.test.p < 1e-4 else f"{one.test.p:.2g}",
        "standing": "keeps both models" if _aside(search, trial) else standing_word(one),
        "minutes": f"{trial.seconds / 60:.1f}",
    }


def _signed(difference: float, unit: str) -> str:
    text = f"{100 * difference:+.2f}" if unit == "share" else f"{difference:+.3f}"
    return text.replace("-", "−")


def render_markdown(search: Search) -> str:
    """The search as Markdown."""
    share = not search.continuous
    noun = "accuracy" if share else "mean score"
    parts = [
        f"# Search of a repair, {escape(search.task)}: {escape(search.old)} → {escape(search.new)}",
        f"**{escape(search.verdict())}**",
        "\n".join(f"- {escape(note)}" for note in search.notes),
        f"## On the test split, {search.count:,} instances\n\n"
        + pareto_markdown(points_of(search), share)
        + "\n\nNFR against the old version, with 95% intervals. Nothing here was chosen by these numbers.",
        f"## On validation, by which it was chosen\n\n| repair | NFR | {noun} | against new | lower bound | p | "
        f"{noun} kept? |\n| --- | ---: | ---: | ---: | ---: | ---: | --- |\n"
        + "\n".join(
            "| "
            + " | ".join(
                [
                    escape(row["trial"].label) + (" (chosen)" if row["trial"].name == search.chosen else ""),
                    *(row[key] for key in ("nfr", "score", "difference", "bound")),
                    *(escape(row[key]) for key in ("p", "standing")),
                ]
            )
            + " |"
            for row in (_row(search, trial, 0) for trial in search.finished)
        ),
        "\n".join(f"- {line}" for line in _left_out(search)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _left_out(search: Search) -> list[str]:
    ended = [f"{trial.status}: {escape(trial.label)}: {escape(trial.error)}" for trial in search.trials if trial.error]
    return ended + [f"not tried: {escape(one.label)}: {escape(one.reason)}" for one in search.skipped]
