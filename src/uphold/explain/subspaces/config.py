"""Options of the subspace method; imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from uphold.core.errors import UsageError, unknown_name

Direction = Literal["das", "mean-difference", "probe", "random"]
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
Loss = Literal["cross-entropy", "difference"]
LOSSES: tuple[Loss, ...] = get_args(Loss)


@dataclass(frozen=True)
class SubspaceConfig:
    """Options; those of DAS default to the settings of Makelov et al. (arXiv:2311.17030) for GPT-2 Small."""

    direction: Direction = "das"
    """How the subspace is found: by gradient search for what flips the answer (DAS), as the difference of class means,
    as the weights of a linear probe, or at random."""
    k: int = 1
    """Dimensions of the subspace."""
    loss: Loss = "cross-entropy"
    """What DAS minimises: cross-entropy of the expected answer over the whole vocabulary, or the logit of the base's
    answer minus that of the expected one."""
    lr: float = 0.01
    """Of Adam at the start; it falls linearly."""
    final_lr: float = 0.1
    """What is left of `lr` at the last step, in [0, 1]."""
    epochs: int = 30
    """Passes over the pairs to train on."""
    batch: int = 20
    """Pairs in one training step."""
    tolerance: float | None = None
    """Singular values of the next map below this share of the largest count as zero; None: max(n, d) times the spacing
    of the weights' floats, at least of float32's, and at most 0.01."""
    placebos: int = 5
    """Random subspaces that the effect is compared with."""
    arbitrary_labels: bool = True
    """Whether DAS is run once more towards expected answers that are dealt out at random."""
    least: float = 0.1
    """A smaller FLDD counts as nothing found."""
    level: float = 0.95
    """Of the intervals."""
    draws: int = 2000
    """Of the paired bootstrap."""
    rows: int = 64
    """Pairs in one forward pass of the measurement."""
    seed: int = 0
    """Of starting points, order of pairs, placebos, arbitrary labels and bootstrap."""

    def __post_init__(self) -> None:
        if self.direction not in DIRECTIONS:
            raise unknown_name("direction", self.direction, DIRECTIONS)
        if self.loss not in LOSSES:
            raise unknown_name("loss", self.loss, LOSSES)
        for name in ("k", "epochs", "batch", "placebos", "draws", "rows"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}: expected at least 1")
        if not (self.lr > 0 and 0 <= self.final_lr <= 1 and 0 < self.level < 1):
            raise UsageError(
                f"lr {self.lr}, final_lr {self.final_lr}, level {self.level}: expected lr above 0, final_lr in [0, 1] "
                "and level between 0 and 1"
            )
        if self.tolerance is not None and not 0 <= self.tolerance < 1:
            raise UsageError(
                f"tolerance is {self.tolerance}: expected a share of the largest singular value, in [0, 1)"
            )
