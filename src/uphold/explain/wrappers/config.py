"""Options of the wrapper method; imports nothing heavy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from uphold.core.errors import UsageError, unknown_name

UnitKind = Literal["neurons", "weights", "adapter"]
UNIT_KINDS: tuple[UnitKind, ...] = get_args(UnitKind)


@dataclass(frozen=True)
class WrapperConfig:
    """Options. Those of the verdict are our own choices: the paper reads its curves by eye."""

    learning_rate: float = 1e-4
    """Of relearning, in every arm; what it tells depends on it. At most the one of fine-tuning: a larger one relearns
    anything."""
    steps: tuple[int, ...] = (0, 1, 2, 3, 5, 7, 10, 15, 20, 30, 45, 70, 100, 150, 200, 300)
    """Relearning steps after which the old skill is measured; leads are no finer than what lies between two."""
    batch: int = 96
    """Instances in one step of relearning."""
    warmup: float = 0.0
    """Share of the steps over which the learning rate rises linearly, in every arm."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of relearning: the batches, and the start of the controls."""
    recover: float = 0.95
    """The old skill is there again at this share of the old model's accuracy."""
    units: UnitKind = "neurons"
    """What revival prunes: rows of weight matrices, single weights, or the rank-one parts of a low-rank adapter."""
    prune: tuple[int, ...] = (0, 1, 2, 5, 10, 20)
    """How many units are pruned."""
    rescore: bool = False
    """Whether scores are taken anew after every pruned unit; the paper takes them once."""
    bias: bool = False
    """Whether the bias of a pruned row goes as well; the paper does not say."""
    include_ends: bool = False
    """Whether embeddings and the output head are pruned too."""
    draws: int = 5
    """Random units that revival is compared with: as many and of about the same norm, so many times."""
    alphas: tuple[float, ...] = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0, 1.25)
    """Shares of the weight change theta_FT - theta_PT at which both skills are measured."""
    examples: int = 512
    """Instances of the old skill that pruning and probes go by; pruning takes its gradient on all in one pass."""
    shuffles: int = 3
    """Probes with shuffled labels at every site."""
    faster: float = 5.0
    """Relearning this many times sooner than every control says that the skill is still there."""
    slow: float = 1.5
    """Relearning at most this many times sooner than a control says that it is gone."""
    kept: float = 0.8
    """Share of what a probe of the old model reads above an untrained one: from here on it counts as still there."""
    lost: float = 0.2
    """Up to this share it counts as gone."""
    level: float = 0.95
    """Of the intervals."""
    rows: int = 512
    """Instances in one forward pass."""
    seed: int = 0
    """Of the batch that pruning goes by, the shuffled labels and the random units."""

    def __post_init__(self) -> None:
        if self.units not in UNIT_KINDS:
            raise unknown_name("kind of unit", self.units, UNIT_KINDS)
        if not 0 < self.learning_rate < math.inf:
            raise UsageError(f"learning_rate is {self.learning_rate}: expected a number above 0")
        for name in ("steps", "prune"):
            values = getattr(self, name)
            if not values or values[0] != 0 or list(values) != sorted(set(values)):
                raise UsageError(f"{name} is {values}: expected rising whole numbers that begin with 0")
        if not self.alphas or list(self.alphas) != sorted(set(self.alphas)):
            raise UsageError(f"alphas is {self.alphas}: expected rising numbers")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise UsageError(f"seeds is {self.seeds}: expected at least one, each once")
        for name in ("batch", "draws", "examples", "shuffles", "rows"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}: expected at least 1")
        for name in ("recover", "level"):
            if not 0 < getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}: expected a number between 0 and 1")
        if not (0 <= self.warmup < 1 and 0 <= self.lost <= self.kept and 1 <= self.slow <= self.faster):
            raise UsageError("a wrapper needs warmup in [0, 1), 0 <= lost <= kept and 1 <= slow <= faster")
