"""The budget of a search: what is left of it, and what still fits in."""

from __future__ import annotations

from collections.abc import Callable

from uphold.core.progress import Progress
from uphold.repair.search_plan import Proposal, kind_of


class OutOfTimeError(BaseException):
    """The budget is spent. Not an `Exception`, which a method may answer itself."""


class Costs:
    """What trials took, and what others will take."""

    def __init__(self) -> None:
        self._known: list[tuple[Proposal, float]] = []

    def add(self, proposal: Proposal, seconds: float) -> None:
        """Take note of a finished trial."""
        self._known.append((proposal, seconds))

    def estimate(self, proposal: Proposal) -> float | None:
        """Seconds that `proposal` will take: from trials of its method, else of its kind; None where there is none.

        Proportional to the epochs, the mean over those trials.
        """
        kind = kind_of(proposal.method)
        for alike in (
            [(other, seconds) for other, seconds in self._known if other.method.name == proposal.method.name],
            [(other, seconds) for other, seconds in self._known if kind_of(other.method) == kind],
        ):
            if alike:
                return sum(seconds / other.size for other, seconds in alike) / len(alike) * proposal.size
        return None


class Budget:
    """Wall-clock seconds and trials that may be spent, those of earlier calls included."""

    def __init__(self, seconds: float | None, trials: int | None, clock: Callable[[], float], started: float) -> None:
        self.seconds, self.trials, self.clock, self.started = seconds, trials, clock, started
        self.earlier = 0.0
        """Seconds spent by earlier calls."""
        self.costs = Costs()

    @property
    def spent(self) -> float:
        """Seconds spent so far, by earlier calls, too."""
        return self.earlier + self.clock() - self.started

    @property
    def left(self) -> float | None:
        """Seconds that are left; None where time is not limited."""
        return None if self.seconds is None else self.seconds - self.spent

    def refusal(self, proposal: Proposal, tried: int, reserved: float) -> str:
        """Why a trial does not fit in any more; "" where it does.

        Args:
            proposal: the trial.
            tried: how many have been.
            reserved: seconds to keep for what comes after the trials.
        """
        if self.trials is not None and tried >= self.trials:
            return f"{self.trials} {'trials were' if self.trials > 1 else 'trial was'} asked for"
        if self.left is None:
            return ""
        left = self.left - reserved
        needed = self.costs.estimate(proposal)
        if left <= 0:
            return "the budget is spent"
        if needed is not None and needed > left:
            return f"it would take about {duration(needed)}, and {duration(left)} are left"
        return ""

    def watch(self, progress: Progress, label: str) -> Progress:
        """Reports all that a trial does as one line called `label`, and ends it when the budget is spent."""

        def watched(what: str, done: int, total: int, note: str = "") -> None:
            if self.left is not None and self.left <= 0:
                raise OutOfTimeError
            progress(label, done, total, f"{what}{', ' if note else ''}{note}")

        return watched


def duration(seconds: float) -> str:
    """`seconds` as a sentence says it."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
