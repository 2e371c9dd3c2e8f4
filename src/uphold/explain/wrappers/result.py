"""What the wrapper method found."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from uphold.core.storage import write_json
from uphold.explain.wrappers.probes import Profile
from uphold.explain.wrappers.relearning import Relearning
from uphold.explain.wrappers.revival import Revival
from uphold.explain.wrappers.scaling import Scaling
from uphold.explain.wrappers.skill import Behaviour
from uphold.explain.wrappers.verdict import Sign, Verdict


@dataclass(frozen=True)
class WrapperResult:
    """What an update did to a skill."""

    verdict: Verdict
    reason: str
    """The numbers that the verdict goes by."""
    signs: tuple[Sign, ...]
    """What each tool says."""
    target: float
    """Accuracy that counts as having the old skill: a share of the old model's."""
    behaviour: tuple[Behaviour, ...]
    """Both models on every skill."""
    revival: Revival
    profiles: tuple[Profile, ...]
    """Probes of the new model, the old one, and an untrained one where it was given."""
    relearning: Relearning
    scaling: Scaling
    notes: tuple[str, ...]
    level: float
    """Of the intervals."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON: the fields, and what follows from them."""
        values: dict[str, Any] = _plain(asdict(self))
        for one, probe in zip(self.profiles, values["profiles"], strict=True):
            for item, plain in zip(one.probes, probe["probes"], strict=True):
                plain["selectivity"] = item.selectivity
        for arm, plain in zip(self.relearning.arms, values["relearning"]["arms"], strict=True):
            plain["mean"] = list(arm.mean)
            plain["band"] = [None if one is None else list(one) for one in arm.band(self.level)]
            plain["steps_to_target"] = list(arm.reached(self.relearning.target))
            plain["half_life"] = list(arm.reached(self.relearning.half))
        leads = self.relearning.leads()
        values["relearning"]["leads"] = None if leads is None else [asdict(one) for one in leads]
        values["scaling"]["returns"] = self.scaling.returns
        return values

    def write(self, path: str | Path) -> None:
        """Write it as JSON, whole or not at all."""
        write_json(Path(path), self.to_dict())

    def table(self) -> str:
        """For people."""
        lines = [self.verdict.upper(), f"  {self.reason}", "", *self._behaviour(), "", *self._revival(), ""]
        lines += [*self._probes(), "", *self._relearning(), "", *self._scaling()]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def __str__(self) -> str:
        return self.table()

    def _behaviour(self) -> list[str]:
        width = max(len(one.skill) for one in self.behaviour) + 2
        lines = [f"{'model':8}{'skill':{width}}{'accuracy':>9} {f'{self.level:.0%} interval':>18}{'balanced':>10}  top"]
        for one in self.behaviour:
            top, times = max(one.predicted, key=lambda pair: pair[1])
            lines.append(
                f"{one.model:8}{one.skill:{width}}{one.accuracy:>9.1%} "
                f"{f'{one.interval.low:.1%} to {one.interval.high:.1%}':>18}{one.balanced:>10.1%}  "
                f"{top} in {times / one.n:.0%}"
            )
        return lines

    def _revival(self) -> list[str]:
        found = self.revival
        biases = "" if found.kind != "neurons" else ", biases pruned too" if found.bias else ", biases kept"
        scores = "scores taken anew after each" if found.rescored else "scores taken once"
        lines = [
            f"revival, {found.kind} of {found.candidates:,}{biases}, {scores}: "
            "K, old skill, balanced, most frequent, random, others"
        ]
        for one in found.curve:
            others = " ".join(f"{new.accuracy:.1%}" for new in one.new)
            random = f"{min(one.random):.1%} to {max(one.random):.1%}"
            lines.append(
                f"{one.k:>6}{one.old.accuracy:>9.1%}{one.old.balanced:>9.1%}{one.old.collapse:>9.0%}{random:>19}  "
                f"{others}"
            )
        return lines

    def _probes(self) -> list[str]:
        lines = ["probes: accuracy, less that with shuffled labels"]
        lines.append(f"{'':18}" + "".join(f"{one.model:>18}" for one in self.profiles))
        for row in zip(*(one.probes for one in self.profiles), strict=True):
            cells = "".join(f"{f'{one.accuracy:.1%} - {one.shuffled:.1%}':>18}" for one in row)
            lines.append(f"{row[0].site:18}{cells}")
        return lines

    def _relearning(self) -> list[str]:
        found = self.relearning
        width = max(len(one.name) for one in found.arms) + 2
        seeds = f"{len(found.seeds)} seed" + ("s" if len(found.seeds) > 1 else "")
        lines = [f"relearning at {found.learning_rate:g}, old skill after so many steps, mean over {seeds}"]
        lines.append(
            f"{'':{width}}" + "".join(f"{step:>8}" for step in found.arms[0].steps) + "   half-life; to target"
        )
        for arm in found.arms:
            half, whole = (
                "/".join(f">{arm.steps[-1]}" if one is None else str(one) for one in arm.reached(goal))
                for goal in (found.half, found.target)
            )
            lines.append(f"{arm.name:{width}}" + "".join(f"{one:>8.1%}" for one in arm.mean) + f"   {half}; {whole}")
            if (bands := arm.band(self.level))[0] is not None:
                for edge in ("low", "high"):
                    lines.append(f"{f'  {edge}':{width}}" + "".join(f"{getattr(one, edge):>8.1%}" for one in bands))
        return lines

    def _scaling(self) -> list[str]:
        found = self.scaling
        what = "the adapter" if found.adapter else "the weight change"
        where = "nowhere" if found.returns is None else f"up to alpha = {found.returns:g}"
        lines = [f"scaling {what}: alpha, old skill, others; the old skill is there {where}"]
        for one in found.curve:
            others = " ".join(f"{new.accuracy:.1%}" for new in one.new)
            lines.append(f"{one.alpha:>8g}{one.old.accuracy:>9.1%}  {others}")
        return lines


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value
