"""The gate in words: the sentence on each check, and the table that people read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from uphold.core.text import one_line
from uphold.measure.limits import Evidence, Outcome

if TYPE_CHECKING:
    from uphold.core.policy import LimitRule
    from uphold.measure.gate import Check, GateResult

RULES = {
    "max_nfr": "NFR",
    "margin": "change of score",
    "max_gain": "change of score",
    "max_inconsistency": "NFR^mc",
    "must_keep": "must keep",
}
"""What a table calls a check; the change is that of the accuracy, or of the mean score."""
MARKS: dict[Outcome, str] = {"pass": "pass", "fail": "FAIL", "inconclusive": "INCONCLUSIVE"}


@dataclass(frozen=True)
class Wording:
    """How to speak of one limit."""

    rule: LimitRule
    judged: bool
    """Whether answers are right or wrong; else scores are continuous."""
    alpha: float
    limits: int
    """Limits that the p-value is corrected for."""
    cluster: str | None

    def reason(self, found: Evidence, outcome: Outcome, p: float, needed: int | None) -> str:
        """One sentence: what was seen, how sure it is, what the limit says."""
        if self.rule in ("margin", "max_gain"):
            return f"{self._seen_change(found)}: {self._change(found, outcome, p, needed)}"
        return f"{self._seen_share(found)}: {self._share(found, outcome, p, needed)}"

    @property
    def _sure(self) -> str:
        return f"at {100 * (1 - self.alpha):g}% confidence"

    def _seen_share(self, found: Evidence) -> str:
        events = {"max_nfr": "negative flips" if self.judged else "falls of the score"}.get(self.rule, "inconsistent")
        seen = f"{round(found.value * found.count):,} {events} in {found.count:,} ({found.value:.2%})"
        return seen + self._clusters(found)

    def _seen_change(self, found: Evidence) -> str:
        what = "accuracy" if self.judged else "mean score"
        return f"{what} {amount(found.value, self.judged)} over {found.count:,} instances{self._clusters(found)}"

    def _clusters(self, found: Evidence) -> str:
        if self.cluster is None:
            return ""
        return f", by {self.cluster} worth {found.independent:,.0f} independent ones"

    def _share(self, found: Evidence, outcome: Outcome, p: float, needed: int | None) -> str:
        limit = f"{found.limit:.2%}"
        if outcome == "pass":
            return f"at most {found.high:.2%} {self._sure}, within {limit}"
        if outcome == "fail":
            return f"at least {found.low:.2%} {self._sure}, above {limit}{self._corrected(p)}"
        if found.low > found.limit:
            return self._not_after_correction(p)
        between = f"between {found.low:.2%} and {found.high:.2%}, the limit is {limit}"
        if found.value >= found.limit:
            return f"{between}; at this rate no number of instances would pass"
        return between + _more(needed, found.count, "at this rate")

    def _change(self, found: Evidence, outcome: Outcome, p: float, needed: int | None) -> str:
        seen, word = (found, "lower") if self.rule == "margin" else (found.mirrored(), "higher")
        margin = amount(-seen.limit, self.judged).lstrip("+")
        if outcome == "pass":
            worst = f"no {word}" if seen.low >= 0 else f"at most {_size(seen.low, self.judged)} {word}"
            return f"{worst} {self._sure}, within the margin of {margin}"
        if outcome == "fail":
            least = f"at least {_size(seen.high, self.judged)} {word} {self._sure}"
            return f"{least}, beyond the margin of {margin}{self._corrected(p)}"
        if seen.high < seen.limit:
            return self._not_after_correction(p)
        between = (
            f"between {amount(found.low, self.judged)} and {amount(found.high, self.judged)}, the margin is {margin}"
        )
        if seen.value <= seen.limit:
            return f"{between}; at this difference no number of instances would pass"
        return between + _more(needed, found.count, "at this difference")

    def _corrected(self, p: float) -> str:
        shown = "p < 0.0001" if p < 1e-4 else f"p = {p:.2g}"
        return f" ({shown}{f', corrected for {self.limits} limits' if self.limits > 1 else ''})"

    def _not_after_correction(self, p: float) -> str:
        return f"broken if looked at alone, but not after the correction for {self.limits} limits (p = {p:.2g})"


def amount(value: float, judged: bool) -> str:
    """A difference with its sign: in points (percent of instances) for accuracies, else as a score."""
    return f"{100 * value:+.2f} points" if judged else f"{value:+.4f}"


def result_text(result: GateResult) -> str:
    """Lines for people: a row per check, a sentence for each that did not pass, notes, and the verdict at the end."""
    rows = [("task", "slice", "what", "instances", "value", "bounds", "limit", "verdict"), *map(row, result.checks)]
    widths = [max(len(one[column]) for one in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            text.rjust(width) if column in (3, 4, 6) else text.ljust(width)
            for column, (text, width) in enumerate(zip(one, widths, strict=True))
        ).rstrip()
        for one in rows
    ]
    for check in result.checks:
        if check.verdict != "pass":
            lines.append(f"{MARKS[check.verdict]} {one_line(check.place, 160)}, {RULES[check.rule]}: {check.reason}")
    lines += [f"note: {one_line(note, len(note))}" for note in result.notes]
    return "\n".join([*lines, headline(result)])


def headline(result: GateResult) -> str:
    """The verdict in one line."""
    counts = {mark: sum(check.verdict == mark for check in result.checks) for mark in ("fail", "inconclusive", "pass")}
    names = {"fail": "failed", "inconclusive": "inconclusive", "pass": "passed"}
    parts = [f"{count} {names[mark]}" for mark, count in counts.items() if count]
    allowed = " (allowed)" if result.verdict == "inconclusive" and result.allow_inconclusive else ""
    return f"gate {MARKS[result.verdict]}{allowed}: {', '.join(parts)} of {len(result.checks)} checks"


def row(check: Check) -> tuple[str, str, str, str, str, str, str, str]:
    """The cells of one check: task, slice, what, instances, value, bounds, limit, verdict."""
    bounds = (
        ""
        if check.low is None or check.high is None
        else f"{_number(check, check.low)} to {_number(check, check.high)}"
    )
    relation = ">=" if check.rule == "margin" else "<="
    return (
        one_line(check.task),
        one_line(check.slice or ""),
        RULES[check.rule],
        f"{check.count:,}",
        _number(check, check.value),
        bounds,
        f"{relation} {_number(check, check.limit)}",
        MARKS[check.verdict],
    )


def _number(check: Check, value: float) -> str:
    if check.rule == "must_keep":
        return f"{value:.0f}"
    return f"{value:+.2%}" if check.rule in ("margin", "max_gain") else f"{value:.2%}"


def _size(value: float, judged: bool) -> str:
    return amount(abs(value), judged).lstrip("+")


def _more(needed: int | None, count: int, condition: str) -> str:
    if needed is None or needed <= count:
        return "; more instances are needed"
    return f"; about {needed:,} instances would pass {condition}"
