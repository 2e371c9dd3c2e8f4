"""Everything a report shows, gathered from a saved comparison or repair."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from uphold.core import stats
from uphold.core.errors import CorruptError
from uphold.core.storage import read_json
from uphold.explain.restoring.explanation import FILE as EXPLANATION_FILE
from uphold.explain.restoring.explanation import Explanation, load_explanation
from uphold.measure.comparison import Comparison, load_comparison
from uphold.measure.flips import FlipMatrix
from uphold.measure.rates import Rate
from uphold.measure.slices import Slice
from uphold.repair.result import FILE as REPAIR_FILE
from uphold.repair.result import REPAIRED, Epoch, Headline, Repair, headline, load_repair
from uphold.report.instances import LIMIT, Instances, read_instances
from uphold.report.text import finite

FORMAT = 1
GATE_FILE = "gate.json"
_VERDICTS = ("pass", "fail", "inconclusive")


@dataclass(frozen=True)
class Version:
    """One version of the model: a row of the table of arms."""

    name: str
    """`old`, `new`, `repaired`, or a control's name."""
    label: str
    role: str
    """`old`, `new`, `repaired` or `control`."""
    score: Rate
    """Accuracy, or mean score where answers are not right or wrong."""
    comparison: Comparison | None
    """The old model against this version; None for the old model itself."""
    history: tuple[Epoch, ...] = ()
    validation: Headline | None = None
    """Score and NFR on the validation split; None for the old model, and where there is no repair."""

    def rate(self, name: str) -> Rate | None:
        """The rate called `name` against the old model; None where it was not measured."""
        return find_rate(self.comparison, name) if self.comparison else None


@dataclass(frozen=True)
class SlicePair:
    """One slice before the repair, and after it where there is one."""

    before: Slice
    after: Slice | None

    @property
    def label(self) -> str:
        """`tag = value`."""
        return f"{self.before.tag} = {self.before.value}"


@dataclass(frozen=True)
class GateCheck:
    """One line of a gate's verdict."""

    verdict: str
    """`pass`, `fail` or `inconclusive`."""
    task: str
    slice: str | None
    rule: str
    """Which promise was checked, e.g. `max_nfr`."""
    reason: str


@dataclass(frozen=True)
class Gate:
    """A gate's verdict, as saved in `gate.json`."""

    verdict: str
    """`pass`, `fail` or `inconclusive`."""
    checks: tuple[GateCheck, ...]
    """Those that fail first, then those that are inconclusive."""
    saved: Mapping[str, Any]
    """All that the file holds."""

    def count(self, verdict: str) -> int:
        """How many checks have this verdict."""
        return sum(check.verdict == verdict for check in self.checks)


@dataclass(frozen=True)
class ReportData:
    """What the three files of a report are made from."""

    before: Comparison
    """The old model against the plain update."""
    repair: Repair | None
    versions: tuple[Version, ...]
    """Old, new, repaired, controls."""
    slices: tuple[SlicePair, ...]
    """Those with the strongest evidence of a high NFR first: by q, then p, then the lower end of the interval."""
    instances: Instances
    gate: Gate | None = None
    """What a gate said about this update; None where the folder holds no `gate.json`."""
    explanation: Explanation | None = None
    """Where in the network its flips come from; None where the folder holds no `explanation.json` of these runs."""
    stale: str = ""
    """Why an `explanation.json` that is there is not shown."""

    @property
    def continuous(self) -> bool:
        """Whether answers have scores only and are not right or wrong."""
        return self.before.matrix is None

    @property
    def nfr(self) -> str:
        """The name of the negative flip rate that counts here."""
        return "nfr_score" if self.continuous else "nfr"

    @property
    def pfr(self) -> str:
        """The name of the positive flip rate that counts here."""
        return "pfr_score" if self.continuous else "pfr"

    @property
    def task(self) -> str:
        """The task's name."""
        return self.before.old.task

    @property
    def new(self) -> Version:
        """The plain update."""
        return self.versions[1]

    @property
    def repaired(self) -> Version | None:
        """The repaired update, if any."""
        return next((version for version in self.versions if version.role == "repaired"), None)

    @property
    def repair_p(self) -> float | None:
        """Exact McNemar p-value of fixed against newly broken instances; None without a repair."""
        if self.repair is None:
            return None
        effects = self.instances.effects
        return stats.mcnemar_exact(effects.get("newly broken", 0), effects.get("fixed", 0))

    @property
    def notes(self) -> tuple[str, ...]:
        """How comparable runs still differ, and what was left out; those of an arm carry its label."""
        found = list(self.before.notes)
        for version in self.versions[2:]:
            own = version.comparison.notes if version.comparison else ()
            found += [f"{version.label}: {note}" for note in own if note not in self.before.notes]
        return tuple(found + list(self.repair.notes if self.repair else ()))

    def column(self, version: Version, name: str) -> Rate | None:
        """The rate called `name` as a table shows it in the version's column.

        The old model's own figures are those of the plain comparison wherever they agree: bootstrap intervals
        that differ in the last digit from column to column would look like a finding.
        """
        rate, plain = version.rate(name), self.new.rate(name)
        if name not in ("accuracy_old", "score_old") or not rate or not plain:
            return rate
        if rate.value is None or plain.value is None:
            return rate
        return plain if math.isclose(rate.value, plain.value, rel_tol=1e-9) else rate

    def change(self, version: Version) -> float | None:
        """The version's NFR relative to the plain update's, minus one; None (undefined) when that is zero."""
        now, plain = version.rate(self.nfr), self.new.rate(self.nfr)
        if now is None or plain is None or now.value is None or not plain.value:
            return None
        return now.value / plain.value - 1


def place(task: str, part: str | None) -> str:
    """Where a gate's check looked, in words."""
    return f"{task}: {part}" if part else task


def find_rate(comparison: Comparison, name: str) -> Rate | None:
    """The comparison's rate called `name`, or None."""
    return next((rate for rate in comparison.rates if rate.name == name), None)


def gather(folder: Path, limit: int = LIMIT) -> ReportData:
    """Read the comparison or repair saved in `folder`, and up to `limit` of its instances.

    Raises:
        DataError: there is neither.
        CorruptError: a file does not hold what was written.
    """
    repair = load_repair(folder) if (folder / REPAIR_FILE).is_file() else None
    before = repair.before if repair else load_comparison(folder)
    continuous = before.matrix is None
    score_old, score_new = ("score_old", "score_new") if continuous else ("accuracy_old", "accuracy_new")
    versions = [
        Version("old", "old", "old", before[score_old], None),
        Version(
            "new",
            "new (plain update)" if repair else "new",
            "new",
            before[score_new],
            before,
            validation=headline(repair.validation) if repair else None,
        ),
    ]
    for arm in repair.arms if repair else ():
        role = "control" if arm.control else REPAIRED
        versions.append(
            Version(
                arm.name,
                arm.label,
                role,
                arm.comparison[score_new],
                arm.comparison,
                arm.history,
                headline(arm.validation),
            )
        )
    repaired = repair.repaired.comparison if repair else None
    instances = read_instances(before.old, before.new, repaired.new if repaired else None, not continuous, limit)
    explanation, stale = _explanation(folder, before)
    found = _slices(before, repaired)
    return ReportData(before, repair, tuple(versions), found, instances, _gate(folder / GATE_FILE), explanation, stale)


def _explanation(folder: Path, before: Comparison) -> tuple[Explanation | None, str]:
    """The explanation in a folder, or why one that is there is not shown."""
    if not (folder / EXPLANATION_FILE).is_file():
        return None, ""
    try:
        found = load_explanation(folder)
    except CorruptError as error:
        return None, f"Not shown: {error}."
    if found.runs != (before.old.sha256, before.new.sha256):
        return None, f"{EXPLANATION_FILE} is of other answers and not shown: run 'uphold explain flips' again."
    return found, ""


def _gate(path: Path) -> Gate | None:
    if not path.is_file():
        return None
    saved = read_json(path)
    try:
        checks = [
            GateCheck(line["verdict"], line["task"], line["slice"], line["rule"], line["reason"])
            for line in saved["checks"]
        ]
        verdict = saved["verdict"]
        order = ("fail", "inconclusive", "pass")
        checks.sort(key=lambda check: order.index(check.verdict))
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptError(f"{path} is not a gate's verdict ({error!r}); run 'uphold gate' again") from error
    if verdict not in _VERDICTS:
        raise CorruptError(f"{path} has the verdict {verdict!r}: expected pass, fail or inconclusive")
    return Gate(verdict, tuple(checks), saved)


def _slices(before: Comparison, after: Comparison | None) -> tuple[SlicePair, ...]:
    later = {(part.tag, part.value): part for part in after.slices} if after else {}
    pairs = [SlicePair(part, later.get((part.tag, part.value))) for part in before.slices]
    return tuple(sorted(pairs, key=_evidence))


def _evidence(pair: SlicePair) -> tuple[float, float, float, str]:
    part = pair.before
    return part.q, part.p, -part.nfr_interval.low, pair.label


def to_json(data: ReportData, verdict: str, remarks: tuple[str, ...]) -> dict[str, Any]:
    """The report as plain JSON without NaN: the same numbers, and the flips by id."""
    saved = data.before.to_dict()
    content: dict[str, Any] = finite(
        {
            "format": FORMAT,
            "kind": "repair" if data.repair else "comparison",
            "verdict": verdict,
            "remarks": list(remarks),
            "task": data.task,
            "old": data.before.old.name,
            "new": data.before.new.name,
            "count": data.before.count,
            "unscored": data.before.unscored,
            "arms": [_version_json(data, version) for version in data.versions],
            "rates": saved["rates"],
            "matrix": saved["matrix"],
            "test": asdict(data.before.test),
            "cluster": data.before.cluster,
            "smallest_visible_nfr": data.before.smallest_visible_nfr,
            "gate": data.gate.saved if data.gate else None,
            "explanation": data.explanation.to_dict() if data.explanation else None,
            "discovered": [asdict(rule) for rule in data.before.discovered],
            "slices": [_slice_json(pair) for pair in data.slices],
            "repair": _repair_json(data.repair, data.repair_p),
            "instances": _instances_json(data.instances),
            "notes": saved["notes"],
            "fingerprints": fingerprints(data),
        }
    )
    return content


def fingerprints(data: ReportData) -> dict[str, Mapping[str, Any]]:
    """What each run was made with, by version; `old again` is the run behind the noise floor."""
    found: dict[str, Mapping[str, Any]] = {"old": data.before.old.fingerprint}
    if data.before.again is not None:
        found["old again"] = data.before.again.fingerprint
    for version in data.versions[1:]:
        if version.comparison is not None:
            found[version.name] = version.comparison.new.fingerprint
    return {name: dict(fingerprint) for name, fingerprint in found.items()}


def _version_json(data: ReportData, version: Version) -> dict[str, Any]:
    comparison = version.comparison
    matrix: FlipMatrix | None = comparison.matrix if comparison else None
    compared = comparison is not None and version.role not in ("old", "new")
    return {
        "name": version.name,
        "label": version.label,
        "role": version.role,
        "score": asdict(version.score),
        "rates": {rate.name: asdict(rate) for rate in comparison.rates} if comparison else {},
        "nfr_against_plain": data.change(version) if compared else None,
        "matrix": asdict(matrix) if matrix else None,
        "test": asdict(comparison.test) if comparison else None,
        "notes": list(comparison.notes) if comparison else [],
        "validation": {"score": asdict(version.validation.score), "nfr": asdict(version.validation.nfr)}
        if version.validation
        else None,
        "history": [
            {
                "epoch": line.epoch,
                "train": dict(line.train),
                "validation": dict(line.validation),
                "chosen": line.chosen,
            }
            for line in version.history
        ],
    }


def _slice_json(pair: SlicePair) -> dict[str, Any]:
    return {
        side: asdict(part) | {"nfr": part.nfr, "nfr_interval": list(part.nfr_interval)} if part else None
        for side, part in (("before", pair.before), ("after", pair.after))
    }


def _repair_json(repair: Repair | None, p: float | None) -> dict[str, Any] | None:
    if repair is None:
        return None
    saved = repair.to_dict()
    kept = ("method", "paper", "config", "splits", "artifact", "form", "notes")
    return {key: saved[key] for key in kept} | {"fixed_against_newly_broken_p": p}


def _instances_json(instances: Instances) -> dict[str, Any]:
    flips = [
        {"id": row.id, "kind": row.kind, "effect": row.effect}
        for row in instances.rows
        if row.kind in ("negative", "positive") or row.effect in ("newly broken", "extra gain")
    ]
    return {
        "total": instances.total,
        "shown": len(instances.rows),
        "kinds": dict(instances.kinds),
        "effects": dict(instances.effects),
        "flips": flips,
    }
