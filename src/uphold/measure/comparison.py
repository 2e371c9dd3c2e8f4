"""A comparison: two runs joined on instance id, with every registered measure and the noise floor beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import Any

from uphold.core import registry, stats
from uphold.core.errors import CorruptError, DataError
from uphold.core.runs import Run, load_run
from uphold.core.storage import read_json, writable_folder, write_json
from uphold.core.text import one_line
from uphold.measure.comparable import check_comparable
from uphold.measure.discover import Rule, look_for_rules
from uphold.measure.flips import DEFINITIONS, FlipMatrix, flip_matrix
from uphold.measure.paired_test import PairedTest, paired_test
from uphold.measure.pairs import Pairs, join
from uphold.measure.rates import Rate, format_value
from uphold.measure.slices import Slice, slices

FILE = "comparison.json"
_ALPHA, _SLICES = 0.05, 5
"""Slices with a q-value up to this are printed, at most so many."""
_WITHOUT_FLOOR = {entry.name for entry in DEFINITIONS if not entry.has_floor} | {"score_old", "score_new"}


@dataclass(frozen=True)
class Comparison:
    """What changed, per instance and in sum, between an old and a new model on one task."""

    old: Run
    new: Run
    again: Run | None
    """The old model evaluated a second time (another batch composition or seed): the noise floor."""
    count: int
    """Instances scored in both runs."""
    unscored: int
    """Instances left out because one of the models has no score there."""
    rates: tuple[Rate, ...]
    matrix: FlipMatrix | None
    """None when the task has continuous scores only."""
    slices: tuple[Slice, ...]
    notes: tuple[str, ...]
    """How two comparable runs still differ, and what was left out."""
    cluster: str | None
    """Tag whose values, not instances, were taken as independent; None where instances were."""
    discovered: tuple[Rule, ...]
    """Kinds of instances in which negative flips pile up."""
    test: PairedTest
    """Whether the new version is better or worse beyond chance."""
    smallest_visible_nfr: float | None
    """The smallest NFR that so many instances would show to be above the noise floor, with a power of 80% (clusters
    count as what they are worth in independent instances); None where not even an NFR of 1 would be seen."""

    def __getitem__(self, name: str) -> Rate:
        """The rate called `name`, e.g. `comparison["nfr"]`."""
        for rate in self.rates:
            if rate.name == name:
                return rate
        raise KeyError(f"no rate '{name}'; there are {', '.join(rate.name for rate in self.rates)}")

    def to_dict(self) -> dict[str, Any]:
        """Everything but the records, as plain JSON."""
        return {
            "old": _run_dict(self.old),
            "new": _run_dict(self.new),
            "again": _run_dict(self.again) if self.again else None,
            "count": self.count,
            "unscored": self.unscored,
            "rates": [asdict(rate) for rate in self.rates],
            "matrix": asdict(self.matrix) if self.matrix else None,
            "slices": [asdict(part) for part in self.slices],
            "notes": list(self.notes),
            "cluster": self.cluster,
            "discovered": [asdict(rule) for rule in self.discovered],
            "test": asdict(self.test),
            "smallest_visible_nfr": self.smallest_visible_nfr,
        }

    def save(self, folder: str | Path) -> Path:
        """Write `comparison.json` and copies of the runs to `folder`, from which `load` and a report can be made."""
        path = writable_folder(Path(folder))
        for role, run in (("old", self.old), ("new", self.new), ("again", self.again)):
            if run is not None:
                run.copy_to(path / "runs" / role)
        write_json(path / FILE, self.to_dict())
        return path

    def __str__(self) -> str:
        lines = [*_rate_lines(self.rates), f"{self._counts()}; {self.test}"]
        if self.smallest_visible_nfr is not None:
            visible = f"{100 * self.smallest_visible_nfr:.2g}%"
            clusters = f" in {self.test.clusters:,} clusters" if self.test.clusters else ""
            floor = "" if self.again else ", were the noise floor 0"
            lines.append(
                f"with {self.count:,} instances{clusters} an NFR of {visible} would be seen with 80% power{floor}"
            )
        lines += [f"flips pile up where {rule}" for rule in self.discovered]
        high = sorted((part for part in self.slices if part.q <= _ALPHA), key=lambda part: (part.q, -part.nfr))
        lines += [f"slice with a high NFR: {part}" for part in high[:_SLICES]]
        if len(high) > _SLICES:
            lines.append(f"and {len(high) - _SLICES} more slices with a high NFR")
        return "\n".join(lines + [f"note: {one_line(note, len(note))}" for note in self.notes])

    def _counts(self) -> str:
        if self.matrix is None:
            falls, rises = (round((self[name].value or 0.0) * self.count) for name in ("nfr_score", "pfr_score"))
            ties = self.count - falls - rises
            return f"{self.count} instances: {falls} scores fall, {rises} rise, {ties} stay as they are"
        both_right, negative, positive, both_wrong = astuple(self.matrix)
        return (
            f"{self.count} instances: {both_right} stay right, {negative} negative flips, {positive} positive flips, "
            f"{both_wrong} stay wrong"
        )


def _rate_lines(rates: Sequence[Rate]) -> list[str]:
    """The rates as aligned lines of text: name, value, interval, noise floor."""
    rows = [("", "value", "95% interval", "noise floor")]
    for rate in rates:
        interval = (
            "" if rate.low is None else (f"[{format_value(rate.low, rate.unit)}, {format_value(rate.high, rate.unit)}]")
        )
        floor = "" if rate.floor is None else format_value(rate.floor, rate.unit)
        rows.append((rate.label, format_value(rate.value, rate.unit), interval, floor))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return [
        f"{row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:<{widths[2]}}  {row[3]:>{widths[3]}}".rstrip()
        for row in rows
    ]


def compare_runs(
    old: Run,
    new: Run,
    again: Run | None = None,
    *,
    allow_mismatch: bool = False,
    cluster: str | None = None,
    discover: bool = True,
) -> Comparison:
    """Compare two finished runs.

    Args:
        old: the run of the version that users have.
        new: the run of the version that is to replace it.
        again: the old model once more under other batching or another seed, for the noise floor.
        allow_mismatch: compare runs that were asked differently, on the instances that they share; what differs
            becomes a note.
        cluster: tag by which instances belong together; its values, not instances, are then taken as independent.
        discover: look for kinds of instances in which negative flips pile up.

    Raises:
        NotComparableError: they are one run, or did not answer the same questions in the same way.
        EmptyError: no instance is scored in both.
        DataError: an instance lacks the tag `cluster`, or all have the same value of it.
    """
    notes = check_comparable(old, new, allow_mismatch)
    pairs = join(old, new, allow_mismatch, cluster)
    rates = _measured(pairs)
    if again is not None:
        check_comparable(old, again)
        floors = {rate.name: rate.value for rate in _measured(join(old, again))}
        rates = [replace(rate, floor=None if rate.name in _WITHOUT_FLOOR else floors.get(rate.name)) for rate in rates]
    found = look_for_rules(old, new) if discover else None
    return Comparison(
        old=old,
        new=new,
        again=again,
        count=len(pairs),
        unscored=pairs.unscored,
        rates=tuple(rates),
        matrix=flip_matrix(pairs),
        slices=tuple(slices(old, new)),
        notes=(*notes, *_notes(pairs, again is not None, cluster), *(found.notes if found else ())),
        cluster=cluster,
        discovered=found.rules if found else (),
        test=paired_test(pairs),
        smallest_visible_nfr=_smallest_visible(pairs, rates),
    )


def _measured(pairs: Pairs) -> list[Rate]:
    return [rate for method in registry.methods("measure") for rate in method.function(pairs)]


def _notes(pairs: Pairs, has_floor: bool, cluster: str | None) -> list[str]:
    """What was left out, and what the numbers rest on."""
    notes = []
    if not has_floor:
        notes.append("no noise floor: the old model was not evaluated a second time")
    if pairs.unscored:
        notes.append(f"instances without a score in one of the runs, left out: {pairs.unscored}")
    if pairs.old_only or pairs.new_only:
        notes.append(f"left out: {pairs.old_only} instances of the old run only, {pairs.new_only} of the new run only")
    if cluster is not None:
        few = f", which with fewer than {stats.FEW_CLUSTERS} is rough" if pairs.clusters < stats.FEW_CLUSTERS else ""
        notes.append(
            f"intervals and test take the {pairs.clusters} values of '{cluster}' as independent{few}; slices and "
            "discovered rules take instances"
        )
    return notes


def _smallest_visible(pairs: Pairs, rates: Sequence[Rate]) -> float | None:
    floor = next((rate.floor for rate in rates if rate.name in ("nfr", "nfr_score")), None) or 0.0
    smallest = stats.smallest_visible_rate(pairs.independent, floor=floor) if floor < 1 else math.inf
    return smallest if smallest <= 1 else None


def load_comparison(folder: Path) -> Comparison:
    """The comparison saved in `folder`.

    Raises:
        DataError: there is none.
        CorruptError: its file or one of its runs does not hold what was written.
    """
    if not (folder / FILE).is_file():
        raise DataError(
            f"no comparison in {folder}: expected {FILE}; 'uphold compare OLD NEW --task TASK --out {folder}' makes one"
        )
    saved = read_json(folder / FILE)
    try:
        return _from_dict(saved, folder)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CorruptError(
            f"{folder / FILE} is not a saved comparison ({error!r}); compare the models again"
        ) from error


def _from_dict(saved: Any, folder: Path) -> Comparison:
    runs = {role: load_run(folder / "runs" / role) if saved.get(role) else None for role in ("old", "new", "again")}
    if runs["old"] is None or runs["new"] is None:
        raise DataError(f"{folder / FILE} names no old and new run; compare the models again")
    return Comparison(
        old=runs["old"],
        new=runs["new"],
        again=runs["again"],
        count=saved["count"],
        unscored=saved["unscored"],
        rates=tuple(Rate(**rate) for rate in saved["rates"]),
        matrix=FlipMatrix(**saved["matrix"]) if saved["matrix"] else None,
        slices=tuple(Slice(**part) for part in saved["slices"]),
        notes=tuple(saved["notes"]),
        cluster=saved["cluster"],
        discovered=tuple(Rule(**{**rule, "conditions": tuple(rule["conditions"])}) for rule in saved["discovered"]),
        test=PairedTest(**saved["test"]),
        smallest_visible_nfr=saved["smallest_visible_nfr"],
    )


def _run_dict(run: Run) -> dict[str, Any]:
    return {"name": run.name, "count": run.count, "sha256": run.sha256, "fingerprint": dict(run.fingerprint)}
