"""The gate on GitHub: annotations, the step summary, and the body of a pull request comment."""

from collections.abc import Mapping

from uphold.measure.comparison import Comparison
from uphold.measure.gate import FLIPS, GateResult
from uphold.measure.gate_text import RULES, headline, row
from uphold.measure.rates import format_value
from uphold.report.markdown import escape
from uphold.report.text import clip, visible

MARKER = "<!-- uphold gate -->"
"""First line of a comment, by which a workflow finds the one it wrote before."""
_ALERTS = {"pass": "TIP", "inconclusive": "WARNING", "fail": "CAUTION"}
_TITLES = {
    "pass": "This update may ship",
    "inconclusive": "Not enough data to say",
    "fail": "This update must not ship",
}
_MARKS = {"pass": "✅ pass", "inconclusive": "❔ inconclusive", "fail": "❌ fail"}
_CELL = 160
_MOST_LINES = 50
# GitHub refuses comments and summaries beyond 65,536 characters and 1 MiB.
_LONGEST = 60_000


def annotations(result: GateResult) -> list[str]:
    """Workflow commands: an error per failed check, a warning per inconclusive one, and a notice with the verdict."""
    kinds = {"fail": "error", "inconclusive": "warning"}
    lines = [
        _command(kinds[check.verdict], f"uphold gate: {check.place}, {RULES[check.rule]}", check.reason)
        for check in result.checks
        if check.verdict in kinds
    ]
    return [*lines, _command("notice", "uphold gate", headline(result))]


def _command(kind: str, title: str, text: str) -> str:
    message, name = (
        visible(part).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A") for part in (text, title)
    )
    return f"::{kind} title={name.replace(':', '%3A').replace(',', '%2C')}::{message}"


def step_summary(result: GateResult) -> str:
    """Markdown for `$GITHUB_STEP_SUMMARY`: verdict, a row per check, what failed and why."""
    return _limited([f"## {escape(headline(result))}", _versions(result), *_sections(result)])


def markdown_comment(result: GateResult, comparisons: Mapping[str, Comparison]) -> str:
    """Markdown for a pull request: verdict in an alert box, why, the flips behind it, and the main rates.

    Args:
        result: what the gate said.
        comparisons: what it was said of, by task name; the texts of flips are read from their runs.

    Raises:
        CorruptError: a run cannot be read.
    """
    alert = f"> [!{_ALERTS[result.verdict]}]\n> **{_TITLES[result.verdict]}** — {escape(headline(result))}"
    return _limited(
        [MARKER, alert, _versions(result), *_sections(result), _rates(comparisons), *_flips(result, comparisons)]
    )


def _limited(parts: list[str]) -> str:
    """The parts that fit, each whole; the last ones are the least important."""
    kept, size = [], 0
    for part in parts:
        size += len(part) + 2
        if size > _LONGEST:
            kept.append("The rest is too long to be shown here; it is in the report.")
            break
        kept.append(part)
    return "\n\n".join(part for part in kept if part) + "\n"


def _versions(result: GateResult) -> str:
    names = ", ".join(f"{escape(old)} → {escape(new)}" for old, new in result.versions)
    return f"{names}; error rate at most {100 * result.alpha:g}%."


def _sections(result: GateResult) -> list[str]:
    parts = []
    for verdict, title in (("fail", "Failed"), ("inconclusive", "Inconclusive")):
        lines = [
            f"- **{escape(check.place)}, {escape(RULES[check.rule])}**: {escape(check.reason)}"
            for check in result.checks
            if check.verdict == verdict
        ]
        if lines:
            parts.append(f"### {title}\n\n" + _first(lines, "- and"))
    parts.append("### Checks\n\n" + _checks(result))
    if result.notes:
        parts.append("### Notes\n\n" + _first([f"- {escape(note)}" for note in result.notes], "- and"))
    return parts


def _first(lines: list[str], word: str) -> str:
    """The first lines of a list, and how many more there are."""
    more = [f"{word} {len(lines) - _MOST_LINES:,} more, which gate.json lists"] if len(lines) > _MOST_LINES else []
    return "\n".join(lines[:_MOST_LINES] + more)


def _checks(result: GateResult) -> str:
    header = ["task", "slice", "what", "instances", "value", "bounds", "limit", "verdict"]
    rows = [[*map(escape, row(check)[:-1]), _MARKS[check.verdict]] for check in result.checks]
    table = _table(header, rows[:_MOST_LINES], (3, 4, 6))
    more = len(rows) - _MOST_LINES
    return f"{table}\n\n{more:,} more are in gate.json." if more > 0 else table


def _table(header: list[str], rows: list[list[str]], right: tuple[int, ...] = ()) -> str:
    rule = ["---:" if column in right else "---" for column in range(len(header))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *rows))


def _rates(comparisons: Mapping[str, Comparison]) -> str:
    rows = []
    for task, comparison in comparisons.items():
        judged = comparison.matrix is not None
        names = ("accuracy_old", "accuracy_new", "nfr") if judged else ("score_old", "score_new", "nfr_score")
        old, new, nfr = (comparison[name] for name in names)
        interval = ""
        if nfr.low is not None and nfr.high is not None:
            interval = f" [{format_value(nfr.low, nfr.unit)}, {format_value(nfr.high, nfr.unit)}]"
        floor = "–" if nfr.floor is None else format_value(nfr.floor, nfr.unit)
        shown = [format_value(rate.value, rate.unit) for rate in (old, new, nfr)]
        rows.append([escape(task), f"{comparison.count:,}", *shown[:2], shown[2] + interval, floor])
    header = ["task", "instances", "old", "new", "NFR, 95% interval", "noise floor"]
    return "### Rates\n\n" + _table(header, rows, (1, 2, 3, 4, 5))


def _flips(result: GateResult, comparisons: Mapping[str, Comparison]) -> list[str]:
    """The flips behind failed checks, each once, with the answers of both models."""
    wanted = dict.fromkeys((check.task, name) for check in result.checks for name in check.flips)
    chosen = list(wanted)[:FLIPS]
    rows = [
        line
        for task in dict.fromkeys(task for task, _ in chosen)
        for line in _texts(task, comparisons[task], [name for own, name in chosen if own == task])
    ]
    if not rows:
        return []
    seen = f"Those behind the failed checks, {FLIPS} at most."
    header = ["task", "instance", "question", "gold", "old answer", "new answer"]
    return [f"<details><summary>Flips</summary>\n\n{seen}\n\n{_table(header, rows)}\n\n</details>"]


def _texts(task: str, comparison: Comparison, ids: list[str]) -> list[list[str]]:
    from uphold.measure.lookups import Lookups

    with Lookups(comparison) as lookups:
        found = lookups.texts(ids)
    return [[escape(task), *(escape(clip(text, _CELL)) or "(empty)" for text in texts)] for texts in found]
