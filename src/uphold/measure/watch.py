"""A limit that is watched while instances come in."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from uphold.core import stats
from uphold.core.errors import UsageError
from uphold.core.records import Record
from uphold.core.stats.anytime import Side
from uphold.measure.gate import FLIPS, ON_CHANGE, Check, matching
from uphold.measure.limits import Outcome
from uphold.measure.pairs import TIE
from uphold.measure.stored import fits

if TYPE_CHECKING:
    from uphold.core.policy import Limit, LimitRule, Policy
    from uphold.tasks.base import Instance


def _broken(old: Record, new: Record) -> float:
    if old.correct is None or new.correct is None:
        return float(_change(old, new) < -TIE)
    return float(old.correct and not new.correct)


def _inconsistent(old: Record, new: Record) -> float:
    if new.correct is None:
        raise UsageError("max_inconsistency needs right or wrong answers, but this task has continuous scores")
    return float(not new.correct and old.answer != new.answer)


def _change(old: Record, new: Record) -> float:
    assert old.score is not None
    assert new.score is not None
    return new.score - old.score


_MEASURES: dict[LimitRule, Callable[[Record, Record], float]] = {
    "max_nfr": _broken,
    "max_inconsistency": _inconsistent,
    "margin": _change,
    "max_gain": _change,
}


@dataclass
class Watch:
    """One rule on the whole task or one slice, and what was seen of it so far."""

    rule: LimitRule
    slice: tuple[str, str] | None
    """Tag and value; None for the whole task."""
    limit: float
    """The highest share that is allowed; for `margin` the lowest difference, minus the margin."""
    keeps: stats.EProcess
    """Evidence that the limit is kept: against the hypothesis that it is broken or just reached."""
    breaks: stats.EProcess
    """Evidence that it is broken: against the hypothesis that it is kept."""
    values: Counter[float] = field(default_factory=Counter)
    flips: list[str] = field(default_factory=list)
    """The first instances that count against the limit."""

    @classmethod
    def over(cls, rule: LimitRule, value: float, part: tuple[str, str] | None = None) -> Watch:
        """A watch that has seen nothing.

        Raises:
            UsageError: the limit is at the end of what the quantity can be, where no data could decide it.
        """
        low, high = (-1.0, 1.0) if rule in ON_CHANGE else (0.0, 1.0)
        limit = -value if rule == "margin" else value
        if not low < limit < high:
            raise UsageError(f"{rule}: {value:g} can never be broken, so there is nothing to wait for: leave it out")
        keeps, breaks = (stats.EProcess(limit, low, high, side) for side in _sides(rule))
        return cls(rule, part, limit, keeps, breaks)

    def see(self, pairs: Sequence[tuple[Record, Record]]) -> None:
        """Take in what the old and the new model did on the next instances; those without a score do not count."""
        values = []
        for old, new in pairs:
            if self._concerns(old) and _scored(old) and _scored(new):
                value = _MEASURES[self.rule](old, new)
                values.append(value)
                against = value < 0 if self.rule == "margin" else value > 0 and self.rule != "max_gain"
                if against and len(self.flips) < FLIPS:
                    self.flips.append(old.id)
        self.take(values)

    def take(self, values: Sequence[float]) -> None:
        """Take in the rule's quantity on the next instances: 0 or 1 for a share, the score's change for `margin`."""
        self.values.update(values)
        self.keeps.update(values)
        self.breaks.update(values)

    def _concerns(self, record: Record) -> bool:
        return self.slice is None or record.tags.get(self.slice[0]) == self.slice[1]

    def verdict(self, alpha: float, limits: int) -> Outcome:
        """What is decided, at whatever time it is asked; of `limits` limits in all."""
        if self.keeps.p <= alpha:
            return "pass"
        return "fail" if self.breaks.p <= alpha / limits else "inconclusive"

    def check(self, task: str, alpha: float, limits: int) -> Check:
        """The verdict, with the bounds of a confidence sequence."""
        verdict, count = self.verdict(alpha, limits), self.values.total()
        low, high = stats.confidence_sequence(self.values, self.keeps.low, self.keeps.high, 1 - 2 * alpha)
        bounds = f"anytime-valid {1 - alpha:.0%} bounds {_percent(low, self.rule)} and {_percent(high, self.rule)}"
        name = {"pass": "keeps", "fail": "breaks", "inconclusive": "neither keeps nor breaks"}[verdict]
        reason = (
            f"{_percent(self.value, self.rule)} of {count:,} instances, {bounds}: {name} the limit of "
            f"{_percent(self.limit, self.rule)}"
        )
        part = None if self.slice is None else "=".join(self.slice)
        flips = tuple(self.flips) if verdict == "fail" else ()
        p = min(1.0, self.breaks.p * limits)
        return Check(
            task, part, self.rule, verdict, reason, self.value, low, high, self.limit, count=count, flips=flips, p=p
        )

    @property
    def value(self) -> float:
        """The quantity in the sample; 0 where nothing was seen."""
        return sum(value * count for value, count in self.values.items()) / max(1, self.values.total())

    def __str__(self) -> str:
        part = "" if self.slice is None else f" of {'='.join(self.slice)}"
        return f"{self.rule}{part}: {_percent(self.value, self.rule)} against {_percent(self.limit, self.rule)}"


def _sides(rule: LimitRule) -> tuple[Side, Side]:
    """Where the mean lies if the limit is kept, and if it is broken."""
    return ("greater", "less") if rule == "margin" else ("less", "greater")


def _percent(value: float, rule: LimitRule) -> str:
    return f"{100 * value:+.2f} points" if rule in ON_CHANGE else f"{value:.2%}"


def _scored(record: Record) -> bool:
    return record.score is not None and not math.isnan(record.score)


def watches(policy: Policy, task: str, instances: Sequence[Instance]) -> list[Watch]:
    """A watch for every limit of `policy` on the task.

    Raises:
        UsageError: the policy says nothing about the task, or a slice is no tag of its instances.
    """
    limits = [limit for limit in policy.limits if fits(task, limit.task)]
    if not limits and not policy.must_keep:
        raise UsageError(f"the policy says nothing about the task '{task}': there is nothing to decide")
    tags = {f"{tag}={value}": (tag, value) for one in instances for tag, value in one.tags.items()}
    found = {
        (rule, part, value): Watch.over(rule, value, part)
        for limit in limits
        for part in _parts(limit, tags)
        for rule, value in limit.rules.items()
    }
    return list(found.values())


def _parts(limit: Limit, tags: dict[str, tuple[str, str]]) -> list[tuple[str, str] | None]:
    if limit.slice is None:
        return [None]
    hint = "Slices that depend on the answers are not known before all instances are asked."
    return [tags[name] for name in matching(limit.slice, tags, "slice in the policy's limits", hint)]
