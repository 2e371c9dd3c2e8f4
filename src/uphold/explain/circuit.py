"""Circuits: the few heads that do a task, at the positions where they do it, and whether an update kept them.

Prakash et al., "Fine-Tuning Enhances Existing Mechanisms: A Case Study on Entity Tracking", arXiv:2402.14811.

    F(C) = accuracy with every head outside C, at every position, set to its mean
    faithfulness of C = F(C) / F(model)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from uphold.core.errors import UsageError
from uphold.core.progress import Progress, silent
from uphold.core.registry import explain

if TYPE_CHECKING:
    from uphold.explain.circuits.find import CircuitReport
    from uphold.explain.circuits.prompts import Prompts
    from uphold.models.load import ModelLike

PAPER = "arXiv:2402.14811"


@dataclass(frozen=True)
class CircuitConfig:
    """Options of the search."""

    target: float = 0.9
    """Nodes are added, the most important first, until the circuit is this faithful on the prompts that choose."""
    confirm: int | None = None
    """Ablate only so many nodes, those that a gradient ranks highest; all where None."""
    randoms: int = 10
    """Random circuits of equal size."""
    subsets: int = 20
    """Random subsets for completeness."""
    batch: int = 256
    """Prompts in one forward pass."""
    seed: int = 0
    """Of the halves, the random circuits and the subsets."""

    def __post_init__(self) -> None:
        if not self.target > 0:
            raise UsageError(f"a circuit needs a target above 0, not {self.target}")
        if min(self.randoms, self.subsets, self.batch, 1 if self.confirm is None else self.confirm) < 1:
            raise UsageError("a circuit needs at least 1 of confirm, randoms, subsets and batch")


@explain("circuit", paper=PAPER)
def circuit(
    old: ModelLike,
    prompts: Prompts,
    *,
    new: ModelLike | None = None,
    reference: Prompts | None = None,
    config: CircuitConfig | None = None,
    progress: Progress = silent,
) -> CircuitReport:
    """Find the heads that do a task in the old model, and see whether the new model does it by the same ones.

    Heads are chosen on one random half of the prompts, and all that is reported of them is measured on the other.

    Args:
        old: the model to look into: a reference, or a loaded module.
        prompts: of the task, with an answer and roles each; `uphold.explain.circuits.entity_tracking` makes some.
        new: the version that was tuned from it.
        reference: prompts to take means over; those that choose where None.
        config: the options.
        progress: called on the way.

    Raises:
        EmptyError: the model solves no prompt, or its heads have no part in it.
        ModelError: a model has no attention heads that are known here.
    """
    from uphold.explain.circuits.find import find

    return find(old, prompts, new, reference, config or CircuitConfig(), progress)
