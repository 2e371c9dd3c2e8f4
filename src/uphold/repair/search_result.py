"""What a search leaves behind: every trial with its numbers, what was chosen and why, and what was not tried."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from uphold.core.errors import CorruptError, DataError, UsageError
from uphold.core.stats import MarginTest
from uphold.core.storage import read_json, write_json
from uphold.measure.rates import Rate, format_value
from uphold.repair.result import Headline
from uphold.repair.search_choice import MARGIN, Candidate, ranked

FILE = "search.json"
TRIALS = "trials"
FORMAT = 1
MINUTES = 60.0
"""The budget where neither minutes nor trials are given."""
Status = Literal["finished", "failed", "unfinished"]


@dataclass(frozen=True)
class SearchConfig:
    """Options of a search."""

    methods: tuple[str, ...] = ()
    """Names of the methods to try; all that need nothing but two models and a task where there are none."""
    minutes: float | None = None
    """Wall-clock budget, earlier calls included; 60 where no number of trials is given either."""
    trials: int | None = None
    """Most trials, earlier calls and failed ones included."""
    margin: float = MARGIN
    """The loss of accuracy against the new version that the non-inferiority test tolerates, in [0, 1)."""
    strict: bool = False
    """Choose only what is shown to be non-inferior."""
    pairs: bool = False
    """Whether a repair may be chosen that keeps both models at inference; else such repairs are paragons: tried, shown,
    and not chosen."""
    controls: bool = True
    """Train the controls of the chosen repair, where it is a trained one."""
    force: bool = False
    """Go on although the new model is worse than the old one on validation."""

    def __post_init__(self) -> None:
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            raise UsageError(f"a budget must be above 0 minutes and finite, not {self.minutes}")
        if self.trials is not None and self.trials < 1:
            raise UsageError(f"a search needs at least one trial, not {self.trials}")
        if not 0 <= self.margin < 1:
            raise UsageError(f"the margin must be a share from 0 to below 1, such as 0.005, not {self.margin}")

    @property
    def seconds(self) -> float | None:
        """The budget in seconds; None where only the trials are counted."""
        if self.minutes is None and self.trials is not None:
            return None
        return 60 * (MINUTES if self.minutes is None else self.minutes)


@dataclass(frozen=True)
class Measured:
    """A version on the test split, against the old one."""

    score: Rate
    """Accuracy, or mean score."""
    nfr: Rate

    @classmethod
    def of(cls, headline: Headline) -> Measured:
        """The two numbers of a comparison's headline."""
        return cls(headline.score, headline.nfr)


@dataclass(frozen=True)
class Trial:
    """One method with one set of options."""

    name: str
    """Of its folder in `trials/`."""
    label: str
    """The method and the options that differ from its defaults."""
    method: str
    kind: str
    """See `uphold.repair.search_plan.KINDS`."""
    config: Mapping[str, Any]
    status: Status
    seconds: float
    """Wall-clock time, that of interrupted calls included."""
    error: str = ""
    """Why it failed."""
    form: str = ""
    """What it made: `adapter`, `weights` or `pair`."""
    validation: Candidate | None = None
    """What it may be chosen by; None where it did not finish."""
    test: Measured | None = None
    """What it is reported by; never looked at for choosing."""

    @property
    def paragon(self) -> bool:
        """Whether it keeps both models at inference."""
        return self.form == "pair"


@dataclass(frozen=True)
class Skipped:
    """What was not tried."""

    label: str
    reason: str


@dataclass(frozen=True)
class Control:
    """A control of the chosen repair, on the test split."""

    label: str
    test: Measured


@dataclass(frozen=True)
class Search:
    """A selection among repairs, with its evidence."""

    task: str
    old: str
    new: str
    config: SearchConfig
    count: int
    """Instances of the test split scored for both versions."""
    old_score: Rate
    """The old version's accuracy or mean score on the test split."""
    plain: Measured
    """The plain update on the test split."""
    trials: tuple[Trial, ...]
    """In the order in which they were tried."""
    chosen: str | None
    """Name of the trial whose repair is to be shipped; None where the plain update is to stay."""
    on_test: MarginTest | None = None
    """Of the chosen repair: non-inferiority to the new version on the test split, looked at after the choice."""
    controls: tuple[Control, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    """Spent on trials and controls, earlier calls included."""
    continuous: bool = False
    """Whether answers have scores only and are not right or wrong."""
    folder: Path = field(default=Path(), compare=False)

    @property
    def winner(self) -> Trial | None:
        """The chosen trial."""
        return next((trial for trial in self.trials if trial.name == self.chosen), None)

    @property
    def finished(self) -> tuple[Trial, ...]:
        """The trials that finished, as the choice ranks them; those that may not be chosen for their form last."""
        open_ = [trial for trial in self.trials if trial.validation and (self.config.pairs or not trial.paragon)]
        order = [one.name for one in ranked([t.validation for t in open_ if t.validation], self.config.strict)]
        rest = [trial for trial in self.trials if trial.validation and trial.name not in order]
        return (*sorted(open_, key=lambda trial: order.index(trial.name)), *rest)

    @property
    def failed(self) -> tuple[Trial, ...]:
        """The trials that failed."""
        return tuple(trial for trial in self.trials if trial.status == "failed")

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain JSON."""
        return {"format": FORMAT, **{key: value for key, value in asdict(self).items() if key != "folder"}}

    def save(self) -> Path:
        """Write `search.json` to the search's folder."""
        write_json(self.folder / FILE, self.to_dict())
        return self.folder / FILE

    def verdict(self) -> str:
        """One sentence: what was chosen, and what it does on the test split."""
        tried = f"{len(self.trials)} repair{'s' if len(self.trials) > 1 else ''} tried"
        chosen = self.winner
        if chosen is None or chosen.test is None:
            return f"{tried}, none to ship: keep the plain update, or look at the trials."
        nfr = f"{format_value(self.plain.nfr.value, 'share')} to {format_value(chosen.test.nfr.value, 'share')}"
        unit = chosen.test.score.unit
        score = f"{format_value(self.plain.score.value, unit)} to {format_value(chosen.test.score.value, unit)}"
        noun = "mean score" if self.continuous else "accuracy"
        return f"{tried}, chosen: {chosen.label}. On test it takes the NFR from {nfr}, and {noun} from {score}."

    def table(self) -> list[tuple[str, ...]]:
        """Rows (repair, validation NFR, validation accuracy, standing, test NFR, test accuracy), the header first."""
        noun = "score" if self.continuous else "accuracy"
        rows: list[tuple[str, ...]] = [("", "val. NFR", f"val. {noun}", "accuracy kept?", "test NFR", f"test {noun}")]
        unit = self.plain.score.unit

        def row(label: str, nfr: float | None, score: float | None, standing: str, test: Measured) -> tuple[str, ...]:
            shown = [format_value(nfr, "share"), format_value(score, unit)]
            return (
                label,
                *shown,
                standing,
                format_value(test.nfr.value, "share"),
                format_value(test.score.value, unit),
            )

        first = next((trial.validation for trial in self.trials if trial.validation), None)
        if first is not None:
            rows.append(row("new (plain update)", first.plain_nfr, first.plain_score, "", self.plain))
        for trial in self.finished:
            one = trial.validation
            assert one is not None
            assert trial.test is not None
            standing = "keeps both models" if trial.paragon and not self.config.pairs else standing_word(one)
            mark = "* " if trial.name == self.chosen else ""
            rows.append(row(mark + trial.label, one.nfr, one.score, standing, trial.test))
        return rows

    def __str__(self) -> str:
        rows = self.table()
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = [
            "  ".join(
                [f"{row[0]:<{widths[0]}}", *(f"{row[c]:>{widths[c]}}" for c in range(1, len(row)))],
            ).rstrip()
            for row in rows
        ]
        lines += [f"failed: {trial.label}: {trial.error}" for trial in self.failed]
        lines += [f"not tried: {one.label}: {one.reason}" for one in self.skipped]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes), self.verdict()])


def standing_word(one: Candidate) -> str:
    """A candidate's standing in few words: is its accuracy shown to be at most the margin lower?"""
    return {
        "kept": "yes",
        "level": "not shown",
        "near": "not shown, just lower",
        "below": "not shown, lower",
        "lost": "no",
    }[one.standing]


def is_search(folder: Path) -> bool:
    """Whether `folder` holds a search."""
    return (folder / FILE).is_file() and (folder / TRIALS).is_dir()


def load_search(folder: str | Path) -> Search:
    """The search saved in `folder`.

    Raises:
        DataError: there is none.
        CorruptError: the file does not hold what was written.
    """
    place = Path(folder)
    if not is_search(place):
        raise DataError(f"no search in {place}: expected {FILE}; 'uphold repair search OLD NEW' makes one")
    saved = read_json(place / FILE)
    try:
        if saved.pop("format") != FORMAT:
            raise ValueError("another format")
        test = saved.pop("on_test")
        return Search(
            task=saved["task"],
            old=saved["old"],
            new=saved["new"],
            config=SearchConfig(**{**saved["config"], "methods": tuple(saved["config"]["methods"])}),
            count=saved["count"],
            old_score=Rate(**saved["old_score"]),
            plain=_measured(saved["plain"]),
            trials=tuple(trial_from(entry) for entry in saved["trials"]),
            chosen=saved["chosen"],
            on_test=MarginTest(**test) if test else None,
            controls=tuple(Control(entry["label"], _measured(entry["test"])) for entry in saved["controls"]),
            skipped=tuple(Skipped(**entry) for entry in saved["skipped"]),
            notes=tuple(saved["notes"]),
            seconds=saved["seconds"],
            continuous=saved["continuous"],
            folder=place,
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CorruptError(f"{place / FILE} is not a saved search ({error!r}); search again") from error


def trial_from(saved: Mapping[str, Any]) -> Trial:
    """A trial from its plain JSON."""
    one, test = saved["validation"], saved["test"]
    known = Candidate(**{**one, "test": MarginTest(**one["test"])}) if one else None
    return Trial(**{**saved, "validation": known, "test": _measured(test) if test else None})


def _measured(saved: Mapping[str, Any]) -> Measured:
    return Measured(Rate(**saved["score"]), Rate(**saved["nfr"]))
