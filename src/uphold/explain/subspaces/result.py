"""What the diagnostics of a subspace came out as."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from uphold.core.stats.types import Interval
from uphold.core.storage import write_json
from uphold.explain.subspaces.gap import Gap

if TYPE_CHECKING:
    import torch

Verdict = Literal["faithful", "illusory", "nothing found", "undecided"]


@dataclass(frozen=True)
class Effect:
    """What one condition does to the answers."""

    name: str
    difference: float
    """Mean logit of the base's answer minus that of the expected one."""
    fldd: float
    """Fractional logit-difference decrease, 1 - mean(difference) / mean(clean difference): 1 where the difference is
    gone, 2 where it is turned round."""
    fldd_interval: Interval | None
    """Paired bootstrap; None where it is not defined in more than 5% of the draws."""
    iia: float
    """Interchange accuracy: share of pairs where the expected answer has the largest of all logits."""
    iia_interval: Interval | None


@dataclass(frozen=True)
class Contrast:
    """The FLDD of one condition minus that of another."""

    name: str
    value: float
    interval: Interval | None

    @property
    def above(self) -> bool:
        """Whether it is above zero beyond noise."""
        return self.interval is not None and self.interval.low > 0

    @property
    def below(self) -> bool:
        """Whether it is below zero beyond noise."""
        return self.interval is not None and self.interval.high < 0


@dataclass(frozen=True)
class Map:
    """The next linear map, as far as the split goes by it."""

    name: str
    width: int
    """Numbers that it takes, n."""
    rank: int
    """Directions that it transmits."""
    tolerance: float
    """Singular values up to this share of the largest counted as zero."""
    cosines: tuple[float, ...]
    """Of the principal angles between the subspace and what is transmitted."""
    row_share: float
    """Mean squared cosine; rank / width for a random subspace."""


@dataclass(frozen=True)
class Fit:
    """How well a search did what it was asked for: shares of pairs with the answer it was trained towards."""

    name: str
    trained: float
    """On the pairs that it was trained on."""
    held_out: float
    """On the pairs that are measured."""


@dataclass(frozen=True)
class SubspaceResult:
    """A subspace, what patching along it does, and whether that is read from live directions."""

    site: str
    method: str
    """How the subspace was found."""
    k: int
    pairs: int
    """That were measured."""
    verdict: Verdict
    reason: str
    """The numbers that the verdict goes by."""
    reply: str
    """How the published reply (Wu et al., arXiv:2401.12631) reads the same numbers."""
    effects: tuple[Effect, ...]
    contrasts: tuple[Contrast, ...]
    map: Map
    gap: Gap
    additivity: float | None
    """(row-read + null-read) / patch, in FLDD: 1 where all that follows is linear; None where a patch does nothing."""
    fits: tuple[Fit, ...]
    """Of DAS: the expected answers, and the controls that were run."""
    notes: tuple[str, ...]
    level: float
    """Of the intervals."""
    seed: int
    basis: torch.Tensor = field(repr=False, compare=False)
    """U: orthonormal columns, float64 of shape (n, k); not part of the JSON."""

    def effect(self, name: str) -> Effect:
        """One condition by name."""
        return next(one for one in self.effects if one.name == name)

    def contrast(self, name: str) -> Contrast:
        """One contrast by name."""
        return next(one for one in self.contrasts if one.name == name)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        values = {name: value for name, value in self.__dict__.items() if name not in ("basis", "gap")}
        for name in ("effects", "contrasts", "fits"):
            values[name] = [_plain(one) for one in values[name]]
        values["map"] = _plain(self.map)
        return {**values, "notes": list(self.notes), "gap": self.gap.to_dict()}

    def write(self, path: str | Path) -> None:
        """Write it as JSON, whole or not at all."""
        write_json(Path(path), self.to_dict())

    def table(self) -> str:
        """For people."""
        names = [one.name for one in self.effects] + [one.name for one in self.contrasts]
        width = max(map(len, names)) + 2
        lines = [
            f"{self.site}, {self.method}, k = {self.k}, {self.pairs} pairs: {self.verdict.upper()}",
            f"  {self.reason}",
            f"  the reply's reading: {self.reply}",
            f"  next map {self.map.name}: rank {self.map.rank} of {self.map.width} (relative tolerance "
            f"{self.map.tolerance:.1e}); {self.map.row_share:.1%} of the subspace lies in what it transmits",
            f"{'':{width}}{'FLDD':>8} {f'{self.level:.0%} interval':>20}{'IIA':>9} {f'{self.level:.0%} interval':>20}"
            f"{'logit diff.':>13}",
        ]
        for one in self.effects:
            lines.append(
                f"{one.name:{width}}{one.fldd:>8.1%} {_shown(one.fldd_interval):>20}{one.iia:>9.1%} "
                f"{_shown(one.iia_interval):>20}{one.difference:>13.3f}"
            )
        lines += [f"{one.name:{width}}{one.value:>+8.1%} {_shown(one.interval):>20}" for one in self.contrasts]
        if self.additivity is not None:
            lines.append(f"row-read and null-read together: {self.additivity:.0%} of the patch")
        ratio = "" if self.gap.ratio is None else f", {self.gap.ratio:.1f} times"
        lines.append(
            f"to first order: full patch {self.gap.full:.3f} logits, largest of one direction {self.gap.largest:.3f}"
            f"{ratio}; one for all pairs {self.gap.shared:.3f}"
        )
        lines += [
            f"DAS towards {one.name}: {one.trained:.1%} trained, {one.held_out:.1%} held out" for one in self.fits
        ]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def __str__(self) -> str:
        return self.table()


def _plain(value: Any) -> Any:
    """A dataclass as plain JSON; intervals as [low, high]."""
    return {name: list(one) if isinstance(one, tuple) else one for name, one in asdict(value).items()}


def _shown(interval: Interval | None) -> str:
    return "not defined" if interval is None else f"{interval.low:.1%} to {interval.high:.1%}"
