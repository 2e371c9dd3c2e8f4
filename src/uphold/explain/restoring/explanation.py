"""What an explanation of flips says, as plain numbers that can be stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from uphold.core.errors import CorruptError, DataError
from uphold.core.storage import read_json, writable_folder, write_json

FILE = "explanation.json"


@dataclass(frozen=True)
class Share:
    """How many of some instances, with a 95% interval (Wilson)."""

    count: int
    of: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """The share; 0 of none."""
        return self.count / self.of if self.of else 0.0

    def __str__(self) -> str:
        return f"{self.value:.0%} [{self.low:.0%}, {self.high:.0%}]"


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
    flips: int
    """Negative flips whose answers part at a token."""
    gains: int
    left_out: int
    """Flips and gains whose answers cannot be told apart by one token."""
    held_out: int
    """Flips that nothing was chosen on; every number in `sites`, `together` and `random` is of these."""
    ceiling: Share
    """Flips restored with all sites of these kinds as in the old model."""
    estimates: Mapping[str, float]
    """By site, the first-order estimate of the share of the distance recovered, on the flips that choosing used."""
    sites: tuple[SiteEffect, ...]
    """The sites that were chosen, the best first, by flips that are not among those they are measured on."""
    together: tuple[SiteEffect, ...]
    """The first 1, 2, ... of them at once."""
    random: tuple[SiteEffect, ...]
    """Random sites of the same kinds, as many as are in the last of `together`."""
    edges: tuple[Edge, ...]
    layers: int
    heads: int
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)

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
            mean = sum(one.restored.value for one in self.random) / len(self.random)
            lost = sum(one.lost.value for one in self.random) / len(self.random)
            part = sum(one.recovered for one in self.random) / len(self.random)
            what = f"{len(self.random[0].sites)} random sites, mean of {len(self.random)}"
            found.append((what, f"{mean:.0%}", f"{lost:.0%}", f"{part:.0%}"))
        return [*found, ("all sites", str(self.ceiling), "", "")]

    def __str__(self) -> str:
        rows = [("site", "flips restored", "gains lost", "of the distance"), *self.rows()]
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        lines = [
            f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]:<{widths[2]}}  {row[3]:>{widths[3]}}".rstrip()
            for row in rows
        ]
        lines.append(f"{self.old} -> {self.new} on {self.task}: {self.flips} negative flips, {self.gains} gains")
        lines.append(f"measured on {self.held_out} flips that nothing was chosen on")
        if self.left_out:
            lines.append(f"left out: {self.left_out} whose answers do not part at a token")
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
        values["ceiling"] = Share(**values["ceiling"])
        for name in ("sites", "together", "random"):
            values[name] = tuple(_effect(one) for one in values[name])
        values["edges"] = tuple(Edge(**one) for one in values["edges"])
        return Explanation(**values)
    except (KeyError, TypeError) as error:
        raise CorruptError(f"{path} is not an explanation: make it again with 'uphold explain flips'") from error


def _effect(values: dict[str, Any]) -> SiteEffect:
    return SiteEffect(tuple(values["sites"]), Share(**values["restored"]), Share(**values["lost"]), values["recovered"])


def _row(name: str, one: SiteEffect) -> tuple[str, str, str, str]:
    return name, str(one.restored), str(one.lost), f"{one.recovered:.0%}"
