"""What an explanation of flips says, as plain numbers that can be stored."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from uphold.core.errors import CorruptError, DataError, UsageError
from uphold.core.storage import read_json, writable_folder, write_json
from uphold.models.sites.site import parse_site

FILE = "explanation.json"
FORMAT = 1
NONE = "none there"
"""A share of no instances."""


@dataclass(frozen=True)
class Share:
    """How many of some instances, with an exact 95% interval (Clopper-Pearson)."""

    count: int
    of: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """The share; 0 of none."""
        return self.count / self.of if self.of else 0.0

    def __str__(self) -> str:
        return f"{self.value:.0%} [{self.low:.0%}, {self.high:.0%}]" if self.of else NONE


@dataclass(frozen=True)
class SiteEffect:
    """What one site, or several together, of the old model do in the new one."""

    sites: tuple[str, ...]
    restored: Share
    """Negative flips whose old answer is back, of those held out."""
    lost: Share
    """Gains whose old, wrong answer is back, of those held out."""
    recovered: float
    """Share of the distance between the new and the old model's margins, means over the held-out flips."""


@dataclass(frozen=True)
class Edge:
    """How much of one site's effect goes through another."""

    source: str
    target: str
    share: float
    """Of the source's effect on the margin that is gone where the target is held; below 0 where it grows."""


@dataclass(frozen=True)
class Explanation:
    """Which sites of the old model, put into the new one on the same input, bring negative flips back."""

    old: str
    new: str
    task: str
    split: str
    runs: tuple[str, str]
    """SHA-256 of the records that were compared, of the old and the new model."""
    options: Mapping[str, Any]
    all_flips: int
    """Negative flips of the comparison."""
    flips: int
    """Those that were looked at: drawn, and decided at the first token in which the answers differ."""
    gains: int
    """Gains that were looked at."""
    left_out: int
    """Flips and gains that were drawn and are not decided at that token."""
    held_out: int
    """Flips that nothing was chosen on; every number in `sites`, `together`, `random` and `every` is of these."""
    every: SiteEffect
    """All sites of these kinds at once."""
    estimates: Mapping[str, float]
    """By site, the first-order estimate of the share of the distance recovered, on the flips that choosing used."""
    sites: tuple[SiteEffect, ...]
    """The sites that were chosen, the best first, by flips that are not among those they are measured on."""
    together: tuple[SiteEffect, ...]
    """The first 1, 2, ... of them at once."""
    random: tuple[SiteEffect, ...]
    """Random others of the same kinds, as many as are in the last of `together`; none where there are too few."""
    edges: tuple[Edge, ...]
    layers: int
    heads: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"format": FORMAT, **asdict(self)}

    def save(self, folder: str | Path) -> Path:
        """Write `explanation.json` to a folder."""
        path = writable_folder(Path(folder)) / FILE
        write_json(path, self.to_dict())
        return path

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Name, flips restored, gains lost, and share of the distance, as a table shows them."""
        found = [_row(", ".join(one.sites), one) for one in self.sites]
        found += [_row(f"first {len(one.sites)} together", one) for one in self.together[1:]]
        if self.random:
            lost = [one.lost.value for one in self.random] if self.every.lost.of else []
            restored = [one.restored.value for one in self.random]
            recovered = [one.recovered for one in self.random]
            what = f"{len(self.random[0].sites)} random others, mean of {len(self.random)}"
            found.append((what, _span(restored), _span(lost), _span(recovered)))
        return [*found, _row("all sites", self.every)]

    def notes(self) -> list[str]:
        """What a reader has to know beside the numbers."""
        found = [
            f"measured on {self.held_out} flips and {self.every.lost.of} gains that nothing was chosen on, "
            "with exact 95% intervals"
        ]
        if self.left_out:
            found.append(
                f"left out: {self.left_out} flips and gains that are not decided at the first token in which the "
                "answers differ"
            )
        if not self.random and self.sites:
            found.append("there are too few other sites of these kinds to compare with")
        elif self.sites:
            beaten = sum(self.together[-1].recovered > one.recovered for one in self.random)
            of = len(self.random)
            found.append(f"together the chosen sites recover more of the distance than {beaten} of {of} random sets")
        if self.split == "test":
            found.append(
                "these are flips of the test split: a repair at sites chosen by them is to be measured on other "
                "instances; compare on the validation split for that"
            )
        return found

    def __str__(self) -> str:
        rows = [("site", "flips restored", "gains lost", "of the distance"), *self.rows()]
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        lines = [
            f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]:<{widths[2]}}  {row[3]}".rstrip() for row in rows
        ]
        lines.append(
            f"{self.old} -> {self.new} on {self.task} ({self.split}): {self.flips} of {self.all_flips} negative flips, "
            f"{self.gains} gains"
        )
        lines += [f"note: {note}" for note in self.notes()]
        return "\n".join(lines)


def load_explanation(folder: str | Path) -> Explanation:
    """The explanation that `Explanation.save` wrote.

    Raises:
        DataError: there is none.
        CorruptError: the file is not what was written.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        raise DataError(f"{folder} holds no {FILE}: 'uphold explain flips' writes one")
    values = read_json(path)
    try:
        if values.pop("format") != FORMAT:
            raise KeyError("format")
        values["every"] = _effect(values["every"])
        values["runs"] = tuple(values["runs"])
        for name in ("sites", "together", "random"):
            values[name] = tuple(_effect(one) for one in values[name])
        values["edges"] = tuple(Edge(**one) for one in values["edges"])
        found = Explanation(**values)
        for site, value in found.estimates.items():
            if parse_site(site).layer >= found.layers or not math.isfinite(value):
                raise ValueError(site)
    except (AttributeError, KeyError, TypeError, ValueError, UsageError) as error:
        raise CorruptError(f"{path} is not an explanation: make it again with 'uphold explain flips'") from error
    return found


def _effect(values: dict[str, Any]) -> SiteEffect:
    return SiteEffect(tuple(values["sites"]), Share(**values["restored"]), Share(**values["lost"]), values["recovered"])


def _row(name: str, one: SiteEffect) -> tuple[str, str, str, str]:
    return name, str(one.restored), str(one.lost), _percent(one.recovered)


def _span(values: Sequence[float]) -> str:
    """Mean, smallest and largest."""
    if not values:
        return NONE
    return f"{_percent(sum(values) / len(values))} ({_percent(min(values))} to {_percent(max(values))})"


def _percent(value: float) -> str:
    return f"{value:.0%}".replace("-0%", "0%") if abs(value) < 0.05 else f"{value:.0%}"
