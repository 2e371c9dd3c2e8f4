"""A comparison: two runs joined on instance id, with every registered measure and the noise floor beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from uphold.core import registry, stats
from uphold.core.errors import CorruptError, DataError
from uphold.core.runs import Run, load_run
from uphold.core.storage import read_json, writable_folder, write_json
from uphold.measure.flips import DEFINITIONS, FlipMatrix, flip_matrix
from uphold.measure.pairs import check_comparable, join
from uphold.measure.rates import Rate, format_value
from uphold.measure.slices import Slice, slices

FILE = "comparison.json"
_WITHOUT_FLOOR = {entry.name for entry in DEFINITIONS if not entry.has_floor} | {"score_old", "score_new"}


@dataclass(frozen=True)
class Verdict:
    """Whether an update may ship; `exit_code` is what the command line returns."""

    passed: bool
    reason: str

    @property
    def exit_code(self) -> int:
        """0 pass, 1 gate failed."""
        return 0 if self.passed else 1


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

    def __getitem__(self, name: str) -> Rate:
        """The rate called `name`, e.g. `comparison["nfr"]`."""
        for rate in self.rates:
            if rate.name == name:
                return rate
        raise KeyError(f"no rate '{name}'; there are {', '.join(rate.name for rate in self.rates)}")

    def gate(self, max_nfr: float, level: float = 0.95) -> Verdict:
        """Whether the one-sided exact upper bound of the NFR stays within `max_nfr` (a share in [0, 1])."""
        if self.matrix is not None:
            flips, count = self.matrix.negative_flips, self.matrix.total
        else:
            flips, count = round((self["nfr_score"].value or 0.0) * self.count), self.count
        bound = stats.proportion_upper_bound(flips, count, level)
        passed = bound <= max_nfr
        verdict = "pass" if passed else "FAIL"
        return Verdict(
            passed,
            f"gate {verdict}: {flips} negative flips in {count}, {level:.0%} upper bound of the NFR "
            f"{bound:.2%} {'<=' if passed else '>'} {max_nfr:.2%}",
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything but the records, as plain JSON."""
        return {
            "old": _run_dict(self.old),
            "new": _run_dict(self.new),
            "again": _run_dict(self.again) if self.again else None,
            "count": self.count,
            "unscored": self.unscored,
            "rates": [asdict(rate) for rate in self.rates],
            "matrix": asdict(self.matrix) | {"mcnemar_p": self.matrix.mcnemar_p} if self.matrix else None,
            "slices": [asdict(part) for part in self.slices],
            "notes": list(self.notes),
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
        return "\n".join(table_lines(self.rates, self.matrix)) + "".join(f"\nnote: {note}" for note in self.notes)


def table_lines(rates: Sequence[Rate], matrix: FlipMatrix | None) -> list[str]:
    """The rates as aligned lines of text: name, value, interval, noise floor."""
    rows = [("", "value", "95% interval", "noise floor")]
    for rate in rates:
        interval = (
            "" if rate.low is None else (f"[{format_value(rate.low, rate.unit)}, {format_value(rate.high, rate.unit)}]")
        )
        floor = "" if rate.floor is None else format_value(rate.floor, rate.unit)
        rows.append((rate.label, format_value(rate.value, rate.unit), interval, floor))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        f"{row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:<{widths[2]}}  {row[3]:>{widths[3]}}".rstrip()
        for row in rows
    ]
    if matrix is not None:
        lines.append(
            f"{matrix.total} instances: {matrix.both_right} stay right, {matrix.negative_flips} negative flips, "
            f"{matrix.positive_flips} positive flips, {matrix.both_wrong} stay wrong; "
            f"exact McNemar p = {matrix.mcnemar_p:.3g}"
        )
    return lines


def compare_runs(old: Run, new: Run, again: Run | None = None) -> Comparison:
    """Compare two finished runs.

    Args:
        old: the run of the version that users have.
        new: the run of the version that is to replace it.
        again: the old model once more under other batching or another seed, for the noise floor.

    Raises:
        NotComparableError: they are one run, or did not answer the same questions in the same way.
        EmptyError: no instance is scored in both.
    """
    notes = check_comparable(old, new)
    pairs = join(old, new)
    rates = _measured(pairs)
    if again is not None:
        check_comparable(old, again)
        floors = {rate.name: rate.value for rate in _measured(join(old, again))}
        rates = [replace(rate, floor=None if rate.name in _WITHOUT_FLOOR else floors.get(rate.name)) for rate in rates]
    else:
        notes.append("no noise floor: the old model was not evaluated a second time")
    if pairs.unscored:
        notes.append(f"{pairs.unscored} instances have no score in one of the runs and are left out")
    parts = slices(old, new) if pairs.old_correct is not None else []
    return Comparison(
        old, new, again, len(pairs), pairs.unscored, tuple(rates), flip_matrix(pairs), tuple(parts), tuple(notes)
    )


def _measured(pairs: Any) -> list[Rate]:
    return [rate for method in registry.methods("measure") for rate in method.function(pairs)]


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
    matrix = dict(saved["matrix"]) if saved["matrix"] else None
    if matrix:
        del matrix["mcnemar_p"]
    return Comparison(
        runs["old"],
        runs["new"],
        runs["again"],
        saved["count"],
        saved["unscored"],
        tuple(Rate(**rate) for rate in saved["rates"]),
        FlipMatrix(**matrix) if matrix else None,
        tuple(Slice(**part) for part in saved["slices"]),
        tuple(saved["notes"]),
    )


def _run_dict(run: Run) -> dict[str, Any]:
    return {"name": run.name, "count": run.count, "sha256": run.sha256, "fingerprint": dict(run.fingerprint)}
