"""The gate: may this update ship? A policy's limits against what was measured."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from uphold.core import stats
from uphold.core.errors import DataError, UsageError, unknown_name
from uphold.measure import limits
from uphold.measure.comparison import Comparison
from uphold.measure.gate_text import Wording, result_text
from uphold.measure.limits import Evidence, Outcome
from uphold.measure.lookups import KeptInstance, Lookups
from uphold.measure.slices import Slice
from uphold.measure.stored import fits

if TYPE_CHECKING:
    from uphold.core.policy import AllowedFlip, Limit, LimitRule, Policy

FILE = "gate.json"
FLIPS = 20
"""Flips of a failed check that are named."""
_EXIT_CODES: dict[Outcome, int] = {"pass": 0, "fail": 1, "inconclusive": 3}

Rule = Literal["max_nfr", "margin", "max_gain", "max_inconsistency", "must_keep"]
ON_CHANGE = ("margin", "max_gain")
"""Rules on the change of accuracy or mean score; the others are on shares."""


@dataclass(frozen=True)
class Check:
    """One limit on one task or slice, or the must-keep instances of one task."""

    task: str
    slice: str | None
    """`TAG=VALUE`; None for the whole task."""
    rule: Rule
    verdict: Outcome
    reason: str
    """What was seen, how sure it is, what the limit says, in one sentence."""
    value: float
    """The share in [0, 1]; for `margin` the difference new - old in [-1, 1]; for `must_keep` the number of flips."""
    low: float | None
    """One-sided lower bound at level 1 - alpha; None for `must_keep`, which needs no statistics."""
    high: float | None
    """One-sided upper bound at level 1 - alpha."""
    limit: float
    """The highest value that is allowed; for `margin` the lowest, minus the margin."""
    flips: tuple[str, ...] = ()
    """Ids of the first flips where the check failed; none of a slice that gathers a tag's rare values."""
    count: int = 0
    """Instances."""
    p: float | None = None
    """p-value, after Holm's correction, of the hypothesis that the limit is kept."""
    needed: int | None = None
    """About how many instances would decide an inconclusive limit at the rates seen; None where that is unknown."""

    @property
    def place(self) -> str:
        """Task and slice."""
        return self.task if self.slice is None else f"{self.task}, {self.slice}"


@dataclass(frozen=True)
class GateResult:
    """What the gate says; the printed verdict and the exit code are both read from here."""

    checks: tuple[Check, ...]
    notes: tuple[str, ...]
    """Exceptions, exclusions, and how the runs differ."""
    alpha: float
    cluster: str | None
    """The policy's cluster tag; without one, that of each comparison was taken."""
    versions: tuple[tuple[str, str], ...]
    """Names of the old and the new model; one pair where all tasks have the same."""
    allow_inconclusive: bool = False
    """Whether an inconclusive verdict lets the update pass."""

    @property
    def verdict(self) -> Outcome:
        """`fail` if any check fails, else `inconclusive` if any is, else `pass`."""
        found = {check.verdict for check in self.checks}
        return "fail" if "fail" in found else "inconclusive" if "inconclusive" in found else "pass"

    @property
    def exit_code(self) -> int:
        """0 pass, 1 fail, 3 inconclusive (0 where that is allowed)."""
        return 0 if self.verdict == "inconclusive" and self.allow_inconclusive else _EXIT_CODES[self.verdict]

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON."""
        return {
            "verdict": self.verdict,
            "exit_code": self.exit_code,
            "allow_inconclusive": self.allow_inconclusive,
            "alpha": self.alpha,
            "cluster": self.cluster,
            "versions": [{"old": old, "new": new} for old, new in self.versions],
            "checks": [{**asdict(check), "flips": list(check.flips)} for check in self.checks],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        return result_text(self)


@dataclass(frozen=True)
class _Target:
    """One number of the policy and what it limits."""

    task: str
    part: Slice | None
    rule: LimitRule
    limit: float

    @property
    def slice(self) -> str | None:
        return None if self.part is None else slice_name(self.part)


def gate(
    policy: Policy,
    comparisons: Mapping[str, Comparison],
    today: datetime.date | None = None,
    *,
    allow_inconclusive: bool = False,
) -> GateResult:
    """Hold the limits of `policy` against `comparisons`.

    A limit passes when its one-sided bound at level 1 - alpha keeps it; it fails when the opposite bound breaks it,
    corrected for the number of limits; else it is inconclusive. What alpha bounds, for instances (clusters) drawn
    independently from those that the limits are about:

    - P(verdict `pass`, though at least one limit is broken) <= alpha. A pass needs every limit to pass, the broken one
      included, whose own test errs with at most alpha (intersection-union test, Berger, Technometrics 1982); no
      correction for their number is needed.
    - P(any limit fails, though all limits are kept) <= alpha, by Holm's correction.

    Both hold exactly for shares and accuracies of independent instances, nearly for their mean scores, and in large
    samples for clusters (`uphold.measure.limits`). Must-keep instances are looked at one by one; that is no inference,
    and they fail the gate without any p-value.

    Args:
        policy: what must hold.
        comparisons: by task name, as `uphold.measure.compare.compare_all` and `load_comparisons` give them.
        today: the day on which allowed flips are judged; by default the machine's.
        allow_inconclusive: let an undecided update pass.

    Raises:
        UsageError: a limit names a task, slice or cluster tag that is not there.
        DataError: a must-keep instance is in no comparison, or a limit does not fit a task's scores.
    """
    if not comparisons:
        raise UsageError("there is nothing to gate: give at least one comparison")
    targets = _targets(policy, comparisons)
    with ExitStack() as stack:
        lookups = {task: stack.enter_context(Lookups(one)) for task, one in comparisons.items()}
        checks = _statistical(policy, targets, comparisons, lookups)
        kept, notes = _must_keep(policy, comparisons, lookups, today or datetime.date.today())
    notes += _floors(targets, comparisons)
    several = len(comparisons) > 1
    for task, comparison in comparisons.items():
        notes += [f"{task}: {note}" if several else note for note in comparison.notes]
    return GateResult(
        tuple(checks + kept),
        tuple(dict.fromkeys(notes)),
        policy.alpha,
        policy.cluster,
        tuple(dict.fromkeys((one.old.name, one.new.name) for one in comparisons.values())),
        allow_inconclusive,
    )


def slice_name(part: Slice) -> str:
    """How a policy names a slice."""
    return f"{part.tag}={part.value}"


def _targets(policy: Policy, comparisons: Mapping[str, Comparison]) -> list[_Target]:
    found = [
        _Target(task, part, rule, value)
        for limit in policy.limits
        for task in matching(limit.task, comparisons, "task in the policy's limits")
        for part in _parts(limit, task, comparisons[task])
        for rule, value in limit.rules.items()
    ]
    return list(dict.fromkeys(found))


def matching(pattern: str, names: Iterable[str], what: str, hint: str = "") -> list[str]:
    """The name itself, or all that the pattern matches.

    Raises:
        UsageError: there is none; the message suggests the nearest name, and ends in `hint`.
    """
    known = list(names)
    chosen = [pattern] if pattern in known else [name for name in known if fits(name, pattern)]
    if not chosen:
        raise unknown_name(what, pattern, known, hint)
    return chosen


def _parts(limit: Limit, task: str, comparison: Comparison) -> list[Slice | None]:
    if limit.slice is None:
        return [None]
    parts = {slice_name(part): part for part in comparison.slices}
    names = matching(limit.slice, parts, f"slice of the task '{task}' in the policy's limits")
    return [parts[name] for name in sorted(names)]


def _statistical(
    policy: Policy, targets: Sequence[_Target], comparisons: Mapping[str, Comparison], lookups: Mapping[str, Lookups]
) -> list[Check]:
    if not targets:
        return []
    evidence = [_evidence(target, policy, comparisons[target.task], lookups[target.task]) for target in targets]
    outcomes = limits.settle(evidence, policy.alpha)
    corrected = stats.holm([one.p_broken for one in evidence])
    return [
        _check(target, found, outcome, float(p), policy, len(targets), comparisons[target.task], lookups[target.task])
        for target, found, outcome, p in zip(targets, evidence, outcomes, corrected, strict=True)
    ]


def _check(
    target: _Target,
    found: Evidence,
    outcome: Outcome,
    p: float,
    policy: Policy,
    number: int,
    comparison: Comparison,
    lookup: Lookups,
) -> Check:
    """The check on one of `number` limits, in words."""
    needed = _needed(target, found, policy.alpha, comparison, lookup) if outcome == "inconclusive" else None
    cluster = policy.cluster or comparison.cluster
    wording = Wording(target.rule, comparison.matrix is not None, policy.alpha, number, cluster)
    # An update that is too much better breaks no single instance.
    failed = outcome == "fail" and target.rule != "max_gain"
    return Check(
        task=target.task,
        slice=target.slice,
        rule=target.rule,
        verdict=outcome,
        reason=wording.reason(found, outcome, p, needed),
        value=found.value,
        low=found.low,
        high=found.high,
        limit=found.limit or 0.0,  # a margin of 0 gives -0.0
        flips=lookup.flip_ids(target.part, target.rule == "max_inconsistency", FLIPS) if failed else (),
        count=found.count,
        p=p,
        needed=needed,
    )


def _evidence(target: _Target, policy: Policy, comparison: Comparison, lookup: Lookups) -> Evidence:
    part, alpha, value = target.part, policy.alpha, target.limit
    judged = comparison.matrix is not None
    if target.rule == "max_inconsistency" and not judged:
        raise DataError(
            f"max_inconsistency needs right or wrong answers, but the task '{target.task}' has continuous scores: "
            "give that limit a task"
        )
    cluster = policy.cluster or comparison.cluster
    if cluster is not None:
        sums = lookup.cluster_sums(cluster, part)
        if target.rule in ON_CHANGE:
            check = limits.check_clustered_accuracy if judged else limits.check_clustered_mean
            if target.rule == "max_gain":
                return check(sums.mirrored(), value, alpha).mirrored()
            return check(sums, value, alpha)
        against = sums.falls if target.rule == "max_nfr" else sums.inconsistent
        return limits.check_clustered_share(against, sums.sizes, value, alpha)
    if target.rule in ON_CHANGE:
        back = target.rule == "max_gain"
        if judged:
            both_right, negative, positive, both_wrong = _outcomes(comparison, part)
            turned = (positive, negative) if back else (negative, positive)
            found = limits.check_accuracy(both_right, *turned, both_wrong, value, alpha)
        else:
            changes = lookup.score_sums(part)
            found = limits.check_mean_score(changes.mirrored() if back else changes, value, alpha)
        return found.mirrored() if back else found
    events, count = _events(target.rule, comparison, part)
    return limits.check_share(events, count, value, alpha)


def _outcomes(comparison: Comparison, part: Slice | None) -> tuple[int, int, int, int]:
    """Both right, negative flips, positive flips, both wrong."""
    matrix = comparison.matrix
    assert matrix is not None
    if part is None:
        return matrix.both_right, matrix.negative_flips, matrix.positive_flips, matrix.both_wrong
    assert part.old_right is not None
    both_right = part.old_right - part.negative_flips
    both_wrong = part.count - both_right - part.negative_flips - part.positive_flips
    return both_right, part.negative_flips, part.positive_flips, both_wrong


def _events(rule: LimitRule, comparison: Comparison, part: Slice | None) -> tuple[int, int]:
    """Instances that count against a limit on a share, and all."""
    if part is not None:
        events = part.negative_flips if rule == "max_nfr" else part.inconsistent
        assert events is not None
        return events, part.count
    if rule == "max_nfr" and comparison.matrix is not None:
        return comparison.matrix.negative_flips, comparison.matrix.total
    share = comparison["nfr_mc" if rule == "max_inconsistency" else "nfr_score"].value
    assert share is not None
    return round(share * comparison.count), comparison.count


def _needed(target: _Target, found: Evidence, alpha: float, comparison: Comparison, lookup: Lookups) -> int | None:
    if target.rule not in ON_CHANGE:
        return limits.needed_for_share(found, alpha)
    if comparison.matrix is not None:
        _, negative, positive, _ = _outcomes(comparison, target.part)
        squares = float(negative + positive)
    else:
        squares = lookup.score_sums(target.part).squares
    found = found.mirrored() if target.rule == "max_gain" else found
    return limits.needed_for_difference(found, max(0.0, squares / found.count - found.value**2), alpha)


def _floors(targets: Sequence[_Target], comparisons: Mapping[str, Comparison]) -> list[str]:
    """Notes on limits that the old model breaks against itself, so that hardly any update could keep them."""
    notes = []
    for target in targets:
        comparison = comparisons[target.task]
        if target.part is not None or target.rule in ON_CHANGE:
            continue
        names: dict[LimitRule, str] = {"max_nfr": "nfr" if comparison.matrix is not None else "nfr_score"}
        rate = comparison[names.get(target.rule, "nfr_mc")]
        if rate.floor is not None and rate.floor >= target.limit:
            notes.append(
                f"{target.task}: the old model against itself has a {rate.label} of {rate.floor:.2%}, which is not "
                f"below the limit of {target.limit:.2%}: hardly any update can keep it"
            )
    return notes


def _must_keep(
    policy: Policy, comparisons: Mapping[str, Comparison], lookups: Mapping[str, Lookups], today: datetime.date
) -> tuple[list[Check], list[str]]:
    if not policy.must_keep:
        return [], []
    ids = list(dict.fromkeys(policy.must_keep))
    found = {task: lookup.kept(ids) for task, lookup in lookups.items()}
    missing = set(ids) - {one.id for kept in found.values() for one in kept}
    if missing:
        shown = [f"'{name}'" for name in ids if name in missing]
        more = f" and {len(shown) - 10} more" if len(shown) > 10 else ""
        raise DataError(
            f"must_keep names {len(shown)} instances that no comparison has: {', '.join(shown[:10])}{more}: "
            "remove them, or compare the tasks they belong to"
        )
    allowed = {flip.id: flip for flip in policy.allowed_flips}
    judgements = [_judged(task, kept, allowed, today) for task, kept in found.items() if kept]
    return [check for check, _ in judgements], [note for _, notes in judgements for note in notes]


def _judged(
    task: str, kept: Sequence[KeptInstance], allowed: Mapping[str, AllowedFlip], today: datetime.date
) -> tuple[Check, list[str]]:
    """The check on the must-keep instances of one task, and notes on them."""
    flips, undecided, notes = [], [], []
    for one in kept:
        exception = allowed.get(one.id)
        holds = exception is not None and today <= exception.expires
        if exception is not None and not holds:
            notes.append(f"{task}: the exception for {one.id} expired on {exception.expires}: {exception.reason}")
        if not one.scored:
            undecided.append(one.id)
        elif one.fell and holds:
            assert exception is not None
            notes.append(f"{task}: {one.id} flips, allowed until {exception.expires}: {exception.reason}")
        elif one.fell:
            flips.append(one.id)
        elif holds:
            notes.append(f"{task}: {one.id} may flip but does not: its exception can go")
        if one.scored and one.old_right is False:
            now = "right" if one.new_right else "wrong"
            notes.append(f"{task}: must-keep instance {one.id} is wrong with the old model already; new: {now}")
    check = Check(task, None, "must_keep", "pass", "", len(flips), None, None, 0, count=len(kept))
    if flips:
        reason = f"{len(flips)} of {len(kept)} must-keep instances flip: {_listed(flips)}"
        return replace(check, verdict="fail", reason=reason, flips=tuple(flips[:FLIPS])), notes
    if undecided:
        reason = f"{len(undecided)} of {len(kept)} must-keep instances have no score in both runs: {_listed(undecided)}"
        return replace(check, verdict="inconclusive", reason=reason), notes
    return replace(check, reason=f"none of {len(kept)} must-keep instances flips against the policy"), notes


def _listed(ids: Sequence[str], most: int = 5) -> str:
    return ", ".join(ids[:most]) + (f" and {len(ids) - most} more" if len(ids) > most else "")
