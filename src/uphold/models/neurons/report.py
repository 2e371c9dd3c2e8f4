"""What a repair of neurons did, to its failures and elsewhere."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Literal

from uphold.models.neurons.config import Failure
from uphold.models.neurons.guard import Drift, Forced

Status = Literal["right", "repaired", "failed", "vetoed", "stopped"]
"""Nothing was wrong; all tokens are right now; some token could not be repaired; undone because of what it did
elsewhere, to another failure or to the guard set; not tried, since all repairs together had done too much."""


@dataclass(frozen=True)
class TokenRepair:
    """One wrong token of a failure."""

    position: int
    """Its place in the target, from 0."""
    wrong: int
    """Token id that was predicted."""
    target: int
    """Token id that is right."""
    repaired: bool
    strength: float
    """f of the last edit that was tried."""
    neurons: tuple[tuple[int, int], ...]
    """(layer, index) of each edit that was made, in order; a neuron can be there twice."""
    gap_before: float
    """max P - P(right token), as it was found and as it was left."""
    gap_after: float
    reason: str
    """Why it was not repaired."""


@dataclass(frozen=True)
class Tried:
    """A failure after its turn."""

    status: Status
    tokens: tuple[TokenRepair, ...] = ()
    drift: Drift | None = None
    """What its repair alone did to the guard set."""
    reason: str = ""
    """Why it failed, was undone, or was not tried."""
    stop: str = ""
    """Why no more failures are tried."""

    @property
    def holds(self) -> bool:
        """Whether all its tokens are right now; later repairs may not change that."""
        return self.status in ("right", "repaired")


@dataclass(frozen=True)
class Paraphrases:
    """How other prompts with the same meaning are continued: the repair did not see them."""

    count: int
    right_before: int
    """How many are continued as they should be."""
    right_after: int
    rank_before: float
    """Mean rank of the right token; 0 is the likeliest."""
    rank_after: float
    gap_before: float
    """Mean of max P - P(right token)."""
    gap_after: float


@dataclass(frozen=True)
class FailureReport:
    """One failure."""

    failure: Failure
    status: Status
    tokens: tuple[TokenRepair, ...]
    """Its wrong tokens, in the order in which they were worked on; empty where nothing was wrong."""
    before: Forced
    """By the model as it was before any repair."""
    after: Forced
    """By the model with all repairs."""
    paraphrases: Paraphrases | None
    """None where there are none."""
    drift: Drift | None
    """What this repair alone did to the guard set, also where it was undone for that; None where not measured."""
    reason: str
    """Why it failed, was undone, or was not tried."""

    @property
    def neurons(self) -> tuple[tuple[int, int], ...]:
        """The different neurons that were edited, as (layer, index); none where it was undone."""
        if self.status != "repaired":
            return ()
        return tuple(sorted({one for token in self.tokens for one in token.neurons}))


@dataclass(frozen=True)
class NeuronReport:
    """All failures of one call."""

    failures: tuple[FailureReport, ...]
    drift: Drift | None
    """What all repairs together did to the guard set; None where there is none."""
    leverage: float
    """Trace of the hat matrix of the output projection: its rank."""

    def count(self, status: Status) -> int:
        """How many failures ended so."""
        return sum(one.status == status for one in self.failures)

    @property
    def median_neurons(self) -> float | None:
        """Neurons of a typical repair; None where nothing was repaired."""
        sizes = [len(one.neurons) for one in self.failures if one.status == "repaired"]
        return float(median(sizes)) if sizes else None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "failures": [{**asdict(one), "neurons": list(map(list, one.neurons))} for one in self.failures],
            "drift": None if self.drift is None else {**asdict(self.drift), "nll_rise": self.drift.nll_rise},
            "median_neurons": self.median_neurons,
            "leverage": self.leverage,
        }
