"""Write a report: one HTML file for people, one JSON for programs, one Markdown for pull requests."""

from __future__ import annotations

from pathlib import Path

from uphold.core.storage import writable_folder, write_json, write_text
from uphold.repair.result import FILE as REPAIR_FILE
from uphold.repair.search_result import is_search
from uphold.report.data import gather, to_json
from uphold.report.verdict import remarks, verdict


def write_report(folder: str | Path, out: str | Path | None = None) -> Path:
    """Write `report.html`, `report.json` and `report.md` on a saved comparison or repair.

    Of a search, `search.html` and `search.md` are written, too; where it chose nothing, only those. The same folder
    gives the same bytes every time.

    Args:
        folder: where `Comparison.save` or `Repair.save` wrote to.
        out: where the three files go; `folder` itself when left out.

    Returns:
        The path of `report.html`, or of `search.html` where that is all there is.

    Raises:
        DataError: `folder` holds neither a comparison nor a repair nor a search.
        CorruptError: one of its files does not hold what was written.
        StorageError: the disk refused a write.
    """
    from uphold.report.html import render_html
    from uphold.report.markdown import render_markdown

    if is_search(Path(folder)):
        from uphold.report.search import write_search

        page = write_search(folder, out)
        if not (Path(folder) / REPAIR_FILE).is_file():
            return page
    data = gather(Path(folder))
    target = writable_folder(Path(out if out is not None else folder))
    write_json(target / "report.json", to_json(data, verdict(data), remarks(data)))
    write_text(target / "report.md", render_markdown(data))
    write_text(target / "report.html", render_html(data))
    return target / "report.html"
