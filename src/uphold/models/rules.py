"""What a distillation loss is made of: tokens, terms, and the rule that says what counts how much."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    import torch

    from uphold.models.divergence import Divergence, GoldStatistics, Mix


class Trained(NamedTuple):
    """The trained next-token predictions of a batch; tensors of shape (n,)."""

    sequence: torch.Tensor
    """Which row of the batch each belongs to."""
    position: torch.Tensor
    """Where in that row the prediction is made; the token after it is predicted."""
    targets: torch.Tensor
    """The token that follows."""
    is_answer: torch.Tensor
    """Whether that token belongs to the answer."""
    instance: torch.Tensor
    """Which instance of the split the row is of."""


class SequenceStatistics(NamedTuple):
    """Log-likelihoods of whole rows of a batch, summed over their trained tokens."""

    student: torch.Tensor
    """Shape (rows,)."""
    teachers: tuple[torch.Tensor, ...]
    """One of shape (rows,) per teacher."""


@dataclass(frozen=True)
class Tokens:
    """What a rule sees: n tokens, no gradients."""

    trained: Trained
    student: GoldStatistics
    """How the student likes the gold tokens."""
    teachers: tuple[GoldStatistics, ...]
    """The same for each teacher."""
    sequences: SequenceStatistics | None = None
    """Only for rules with `whole_sequences`."""

    @property
    def none(self) -> torch.Tensor:
        """Zeros, shape (n,)."""
        # Made of the targets: statistics are found when they are asked for, and most rules ask for few.
        return self.trained.targets.new_zeros(self.trained.targets.shape).float()


@dataclass(frozen=True)
class Term:
    """One divergence of a loss."""

    name: str
    """What it is logged as."""
    divergence: Divergence
    teacher: int | torch.Tensor
    """Which teacher is the target; or how much of each is in it, shape (n, teachers), rows summing to 1."""
    weight: torch.Tensor
    """How much it counts for each token, shape (n,), not negative; a token of weight 0 costs nothing."""
    mix: Mix = "probabilities"
    """How several teachers make one target."""


@dataclass(frozen=True)
class Weights:
    """What counts for some tokens."""

    terms: Sequence[Term] = field(default=())
    cross_entropy: torch.Tensor | None = None
    """How much -log p(gold) counts for each token, shape (n,); None for not at all."""


class Rule(Protocol):
    """Says what counts for each token."""

    @property
    def whole_sequences(self) -> bool:
        """Whether it needs `Tokens.sequences`, which costs another projection of every token."""
        ...

    def __call__(self, tokens: Tokens) -> Weights:
        """What counts for `tokens`."""
        ...
