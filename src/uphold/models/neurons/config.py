"""Options of neuron repair, and what it is told to repair. Light: the command line reads this for its help."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Any, Literal, get_args

from uphold.core.errors import UsageError, unknown_name
from uphold.models.encode import Encoded

Mode = Literal["mix", "add"]
Locate = Literal["attribution", "activation", "random"]
Layers = Literal["all", "half", "quarter", "last3"]
Direction = Literal["delta", "basis"]
LADDER: dict[Mode, tuple[float, ...]] = {
    "mix": (0.01, 0.03, 0.1, 0.3, 1.0),
    "add": (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
}
"""Strengths that are tried in turn where none is given."""


@dataclass(frozen=True)
class NeuronConfig:
    """Options of a repair of single neurons (MINT)."""

    strength: float | None = None
    """f: how far an edit moves a neuron towards the direction. None: ascending from 0.01, until few neurons do."""
    mode: Mode = "mix"
    """`mix` is (w + f p) / (1 + f), which ends at p; `add` is w + f p with a line search on the last edit's f."""
    max_neurons: int = 3
    """Without a strength: how many edits one strength may take before the next one is tried; the last may take
    max_edits."""
    max_edits: int = 10
    """Edits of one wrong token, after which it is given up and all of them are undone."""
    pool: int = 10
    """How many neurons are candidates, the highest scores over all layers looked at."""
    locate: Locate = "attribution"
    """What scores neurons: activation times gradient, the activation alone, or chance (the last two as controls)."""
    layers: Layers = "half"
    """Where candidates are looked for: in all layers, the last half, the last quarter, or the last three."""
    direction: Direction = "delta"
    """The basis vector of the right token less that of the wrong one, or (`basis`) a mean of the right one's and the
    last prompt token's embedding, by depth."""
    divide_by_gain: bool = False
    """Divide the direction by the final norm's gain, and centre it where that norm centres."""
    max_nll_rise: float = 0.01
    """Nats per token of the guard set by which one repair may make the model worse; more is undone."""
    min_agreement: float = 0.98
    """Share of the guard set's next-token predictions that one repair must leave alone; less is undone."""
    total_nll_rise: float = 0.05
    """The same for all repairs together: where one passes it, it is undone and no more are tried."""
    total_agreement: float = 0.95
    """The same for all repairs together."""
    modules: str | None = None
    """Which modules are the down-projections, as a pattern (`*.mlp.down_proj`); None: known by their names."""
    seed: int = 0
    """Of random candidates."""

    def __post_init__(self) -> None:
        if self.strength is not None and not 0 <= self.strength < inf:
            raise UsageError(f"strength must be 0 or more, not {self.strength}: 0.01 to 1 is usual")
        if not 1 <= self.max_neurons <= self.max_edits:
            raise UsageError(
                f"expected 1 <= max_neurons <= max_edits, not max_neurons {self.max_neurons}, max_edits "
                f"{self.max_edits}"
            )
        if self.pool < 1 or self.seed < 0:
            raise UsageError(f"pool must be at least 1 and seed at least 0, not {self.pool} and {self.seed}")
        if not all(0 <= one < inf for one in (self.max_nll_rise, self.total_nll_rise)):
            raise UsageError("max_nll_rise and total_nll_rise must be 0 or more, and finite: 100 switches them off")
        if not (0 <= self.min_agreement <= 1 and 0 <= self.total_agreement <= 1):
            raise UsageError("min_agreement and total_agreement must be in [0, 1]; 0 switches them off")
        for what, value, known in (
            ("mode", self.mode, get_args(Mode)),
            ("locate", self.locate, get_args(Locate)),
            ("layers", self.layers, get_args(Layers)),
            ("direction", self.direction, get_args(Direction)),
        ):
            if value not in known:
                raise unknown_name(what, value, known)

    @property
    def rungs(self) -> tuple[tuple[float, int], ...]:
        """(strength, edits it may take) in the order in which they are tried."""
        if self.strength is not None:
            return ((self.strength, self.max_edits),)
        *first, last = LADDER[self.mode]
        return (*((strength, self.max_neurons) for strength in first), (last, self.max_edits))


@dataclass(frozen=True)
class Failure:
    """A prompt that a model continues wrongly. Token ids throughout: text that is tokenised anew may differ."""

    prompt: tuple[int, ...]
    target: tuple[int, ...]
    """The correct continuation."""
    paraphrases: tuple[tuple[int, ...], ...] = ()
    """Other prompts that should be continued in the same way; only measured, never trained on."""
    name: str = ""
    """How a report calls it."""

    def __post_init__(self) -> None:
        if not self.prompt or not self.target or not all(self.paraphrases):
            raise UsageError(
                f"the failure {self.name or '(unnamed)'} needs at least one token in every prompt and target"
            )


@dataclass(frozen=True)
class Guard:
    """What repairs must not change."""

    rows: tuple[Encoded, ...] = ()
    """Sequences; predictions are compared at their answers' tokens."""
    check: Callable[[Any], bool] | None = None
    """Called with the patched model after every repair; the repair is undone where it returns False."""

    def __post_init__(self) -> None:
        if not self.rows and self.check is None:
            raise UsageError("an empty guard set guards nothing: give it texts or a check, or leave it out")
