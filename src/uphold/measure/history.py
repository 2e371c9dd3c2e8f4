"""The versions of one model on one task, in the order in which they were made: what each broke, and what came back."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from uphold.core import stats
from uphold.core.errors import EmptyError, NotComparableError, UsageError
from uphold.core.progress import Progress, silent
from uphold.core.runs import Run, RunStore, run_key
from uphold.core.stats import Interval
from uphold.measure.comparable import check_comparable
from uphold.measure.stored import chosen, stored_runs
from uphold.measure.timelines import Timeline, Timelines, changes, kind, timelines

FILE = "history.json"
FORMAT = 1
MOST_VERSIONS = 62


@dataclass(frozen=True)
class Flips:
    """One version against an earlier one. Where scores are continuous, flips are falls and rises of the score."""

    against: int
    """Position of the earlier version, from 0."""
    count: int
    negative: int
    positive: int
    p: float
    """Two-sided exact McNemar p-value (the sign test, where scores are continuous)."""
    adjusted_p: float
    """The same, corrected for the number of versions (Holm, Scandinavian Journal of Statistics 1979)."""

    @property
    def nfr(self) -> float:
        """Share of all instances that flip from right to wrong."""
        return self.negative / self.count

    @property
    def pfr(self) -> float:
        """Share of all instances that flip from wrong to right."""
        return self.positive / self.count

    @property
    def nfr_interval(self) -> Interval:
        """95% interval of the NFR (Wilson, JASA 1927)."""
        return stats.proportion_interval(self.negative, self.count, method="wilson")

    @property
    def pfr_interval(self) -> Interval:
        """95% interval of the PFR (Wilson)."""
        return stats.proportion_interval(self.positive, self.count, method="wilson")

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON."""
        intervals = {"nfr_interval": list(self.nfr_interval), "pfr_interval": list(self.pfr_interval)}
        return asdict(self) | {"nfr": self.nfr, "pfr": self.pfr} | intervals


@dataclass(frozen=True)
class Version:
    """One version in its history."""

    label: str
    """Its run's name, with a number where two versions share one."""
    run: Run
    score: float
    """Accuracy, or the mean score where scores are continuous."""
    interval: Interval
    """95% interval of `score`: Wilson's for accuracies, Student's t for mean scores."""
    previous: Flips | None
    """Against the version before it; None for the first version, as are the next two."""
    first: Flips | None
    """Against the first version."""
    best: Flips | None
    """Against the most accurate of the versions before it (the earlier one of equals)."""
    debt: int
    """Regression debt: instances that some earlier version had right and this one has wrong."""
    broken_since: int
    """Instances that the version before it had right and that no version from this one on has right."""

    def to_dict(self) -> dict[str, Any]:
        """Everything but the records, as plain JSON."""
        against = {"previous": self.previous, "first": self.first, "best": self.best}
        return {
            "label": self.label,
            "sha256": self.run.sha256,
            "fingerprint": dict(self.run.fingerprint),
            "score": self.score,
            "interval": list(self.interval),
            **{name: flips.to_dict() if flips else None for name, flips in against.items()},
            "debt": self.debt,
            "broken_since": self.broken_since,
        }


@dataclass(frozen=True)
class Pattern:
    """A sequence of right and wrong through the versions, and how many instances show it."""

    marks: str
    """One character per version: 1 right, 0 wrong (see `uphold.measure.timelines.Timelines` for continuous scores)."""
    count: int

    @property
    def changes(self) -> int:
        """How often it turns from right to wrong or back."""
        return changes(self.marks)

    @property
    def kind(self) -> str:
        """A key of `uphold.measure.timelines.KINDS`."""
        return kind(self.marks)


@dataclass(frozen=True)
class History:
    """What became of every instance through the versions of one model."""

    task: str
    versions: tuple[Version, ...]
    """In the order given."""
    judged: bool
    """Whether answers are right or wrong; otherwise a version holds an instance where its score is not below that of
    any earlier version."""
    count: int
    """Instances scored in every version."""
    unscored: int
    """Instances left out because one of the versions has no score there."""
    kinds: dict[str, int]
    """How many instances of each kind there are; see `uphold.measure.timelines.KINDS`."""
    oscillating: dict[int, int]
    """How many instances change how often, from two changes on."""
    patterns: tuple[Pattern, ...]
    """The commonest patterns first, up to a limit."""
    pattern_count: int
    """How many patterns there are in all."""
    instances: tuple[Timeline, ...]
    """Instances that oscillate (most changes first), then those lost for good (latest first), up to a limit of each."""
    notes: tuple[str, ...]
    """How the runs still differ, and what was left out."""

    @property
    def best(self) -> int:
        """Position of the most accurate version; the earliest of equals."""
        return _best_of([version.score for version in self.versions])

    def to_dict(self) -> dict[str, Any]:
        """Everything but the records, as plain JSON."""
        return {
            "format": FORMAT,
            "task": self.task,
            "count": self.count,
            "unscored": self.unscored,
            "judged": self.judged,
            "versions": [version.to_dict() for version in self.versions],
            "best": self.best,
            "kinds": dict(self.kinds),
            "oscillating": {str(often): count for often, count in self.oscillating.items()},
            "patterns": [asdict(entry) | {"kind": entry.kind, "changes": entry.changes} for entry in self.patterns],
            "pattern_count": self.pattern_count,
            "instances": [asdict(entry) | {"kind": entry.kind, "changes": entry.changes} for entry in self.instances],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        from uphold.measure.history_text import summary

        return "\n".join(summary(self))


def history(runs: Sequence[Run], allow_mismatch: bool = False, *, limit: int = 500, patterns: int = 200) -> History:
    """Follow the versions of one model through one task.

    The instances are joined and counted out of core; only the shown ones are read with their texts.

    Args:
        runs: the versions' runs, the oldest first; 2 to 62.
        allow_mismatch: follow runs that did not answer the same questions in the same way, on the instances that all
            of them share; what differs is noted.
        limit: how many oscillating and how many lost instances to read with their texts.
        patterns: how many patterns to keep.

    Raises:
        UsageError: fewer than two runs, or more than 62.
        NotComparableError: two of them are the same run, or they did not answer the same questions in the same way.
        EmptyError: no instance is scored in all of them.
    """
    if not 2 <= len(runs) <= MOST_VERSIONS:
        raise UsageError(f"a history follows 2 to {MOST_VERSIONS} runs, not {len(runs)}: name them in their order")
    labels = _labels(runs)
    notes = _comparable(runs, labels, allow_mismatch)
    with timelines(runs) as lines:
        notes += _left_out(lines, runs, labels, allow_mismatch)
        shown, total = lines.patterns(patterns)
        return History(
            runs[0].task,
            _versions(lines, runs, labels),
            lines.judged,
            lines.count,
            lines.joined - lines.count,
            lines.kinds(),
            lines.oscillating(),
            tuple(Pattern(marks, count) for marks, count in shown),
            total,
            tuple(lines.instances(limit)),
            tuple(notes),
        )


def stored_versions(
    named: Sequence[Any],
    task: str | None = None,
    *,
    store: RunStore | None = None,
    log: Mapping[str, Any] | None = None,
    progress: Progress = silent,
) -> list[Run]:
    """The runs of one task that folders and logs hold, in the order named.

    Args:
        named: runs, folders with a stored run (or with folders of them), or other tools' logs.
        task: which task, where they hold several.
        store: where the records of logs are kept.
        log: how logs are to be read: keyword arguments of `uphold.importers.import_log`.
        progress: called while logs are read.

    Raises:
        UsageError: something is neither, or they share several tasks, or none, and `task` is not given.
    """
    found = []
    for what in named:
        runs = stored_runs(what, store=store, progress=progress, **(log or {}))
        if runs is None:
            raise UsageError(
                f"'{what}' is neither a stored run nor another tool's log: "
                "'uphold evaluate MODEL --task TASK' makes a run"
            )
        found.append(chosen(runs, [task] if task else [], str(what)))
    if all(len(runs) == 1 for runs in found):
        return [run for runs in found for run in runs.values()]
    shared = [name for name in found[0] if all(name in runs for runs in found)] if found else []
    if len(shared) == 1:
        return [runs[shared[0]] for runs in found]
    if not shared:
        raise UsageError("the runs share no task: name runs of one task")
    raise UsageError(f"the runs share {len(shared)} tasks ({', '.join(shared)}): choose one with --task")


def _labels(runs: Sequence[Run]) -> list[str]:
    total = Counter(run.name for run in runs)
    seen: Counter[str] = Counter()
    labels = []
    for run in runs:
        seen[run.name] += 1
        labels.append(run.name if total[run.name] == 1 else f"{run.name} ({seen[run.name]})")
    return labels


def _comparable(runs: Sequence[Run], labels: Sequence[str], allow_mismatch: bool) -> list[str]:
    """Remarks on how the runs differ, each against the first."""
    places: dict[str, int] = {}
    for place, run in enumerate(runs):
        before = places.setdefault(run_key(run.fingerprint), place)
        if before != place:
            raise NotComparableError(
                f"versions {before + 1} ('{labels[before]}') and {place + 1} ('{labels[place]}') are one and the same "
                "run (equal weights, task and settings): name every version once"
            )
    notes = []
    for place, run in enumerate(runs[1:], start=2):
        notes += [f"version {place}: {note}" for note in check_comparable(runs[0], run, allow_mismatch)]
    return notes


def _left_out(lines: Timelines, runs: Sequence[Run], labels: Sequence[str], allow_mismatch: bool) -> list[str]:
    """Remarks on instances that are not followed.

    Raises:
        NotComparableError: the runs answered different instances, and `allow_mismatch` is not set.
        EmptyError: nothing is left.
    """
    notes = []
    lonely = [(run.count - lines.joined, label) for run, label in zip(runs, labels, strict=True)]
    if any(count for count, _ in lonely):
        text = ", ".join(f"{count:,} of '{label}'" for count, label in lonely if count)
        if not allow_mismatch:
            raise NotComparableError(
                f"instances that not every version answered: {text}: evaluate all on the same instances, "
                "or follow those that all share with --allow-mismatch"
            )
        notes.append(f"mismatch allowed: instances that not every version answered are left out: {text}")
    if not lines.count:
        raise EmptyError("no instance is scored in every version: there is nothing to follow")
    if lines.joined > lines.count:
        notes.append(f"{lines.joined - lines.count:,} instances have no score in one of the versions and are left out")
    return notes


def _versions(lines: Timelines, runs: Sequence[Run], labels: Sequence[str]) -> tuple[Version, ...]:
    means = lines.means()
    scores = [mean for mean, _ in means]
    later = range(1, len(runs))
    against = {
        "previous": [(place - 1, place) for place in later],
        "first": [(0, place) for place in later],
        "best": [(_best_of(scores[:place]), place) for place in later],
    }
    counts = lines.flips(sorted({pair for pairs in against.values() for pair in pairs}))
    flips: dict[str, list[Flips | None]] = {}
    for name, pairs in against.items():
        p_values = [stats.mcnemar_exact(*counts[pair]) for pair in pairs]
        adjusted = stats.holm(p_values)
        flips[name] = [
            None,
            *(
                Flips(pair[0], lines.count, *counts[pair], p, float(corrected))
                for pair, p, corrected in zip(pairs, p_values, adjusted, strict=True)
            ),
        ]
    debts, broken = lines.debts(), lines.broken_since()
    return tuple(
        Version(
            labels[k],
            run,
            scores[k],
            _score_interval(lines, *means[k]),
            flips["previous"][k],
            flips["first"][k],
            flips["best"][k],
            debts[k],
            broken[k],
        )
        for k, run in enumerate(runs)
    )


def _best_of(scores: Sequence[float]) -> int:
    return max(range(len(scores)), key=lambda place: (scores[place], -place))


def _score_interval(lines: Timelines, mean: float, deviation: float) -> Interval:
    if lines.judged:
        return stats.proportion_interval(round(mean * lines.count), lines.count, method="wilson")
    if lines.count == 1:
        return Interval(0.0, 1.0)
    from scipy.special import stdtrit

    half = float(stdtrit(lines.count - 1, 0.975)) * deviation / math.sqrt(lines.count)
    return Interval(max(0.0, mean - half), min(1.0, mean + half))
