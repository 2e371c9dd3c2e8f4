"""Edges of a decoder: which part acts on which other, estimated for all and patched for the strongest.

Syed et al., "Attribution Patching Outperforms Automated Circuit Discovery", arXiv:2310.10348; with gradients averaged
between the two inputs: Hanna et al., arXiv:2403.17806.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from uphold.core.errors import UsageError, unknown_name
from uphold.core.progress import Progress, silent
from uphold.core.registry import explain

if TYPE_CHECKING:
    from uphold.explain.circuits.edges import EdgeEffects
    from uphold.explain.circuits.measures import Measure
    from uphold.explain.circuits.prompts import Prompts
    from uphold.models.load import ModelLike

SENDERS = ("head", "attention", "mlp")


@dataclass(frozen=True)
class EdgesConfig:
    """Options of edge attribution."""

    senders: tuple[str, ...] = ("head", "mlp")
    """Kinds of parts that send, beside the embeddings: head, attention, mlp."""
    measure: Measure = "logit-difference"
    """What is measured: logit-difference or probability."""
    steps: int = 5
    """Points from the clean embeddings to the others over which gradients are averaged; 1 takes those of the clean run,
    and is as good where two versions embed the same prompts alike."""
    confirm: int = 40
    """How many of the strongest edges are patched."""
    batch: int = 32
    """Prompts whose runs are kept at once."""

    def __post_init__(self) -> None:
        for name in self.senders:
            if name not in SENDERS:
                raise unknown_name("sender", name, SENDERS)
        if "head" in self.senders and "attention" in self.senders:
            raise UsageError("heads are what their attention writes: name head or attention, not both")
        if self.measure not in ("logit-difference", "probability"):
            raise unknown_name("measure", self.measure, ("logit-difference", "probability"))
        if not self.senders or min(self.steps, self.confirm, self.batch) < 1:
            raise UsageError("edges need at least 1 of senders, steps, confirm and batch")


@explain("edges", paper="arXiv:2310.10348")
def edges(
    model: ModelLike,
    clean: Prompts,
    corrupt: Prompts | None = None,
    *,
    other: ModelLike | None = None,
    config: EdgesConfig | None = None,
    progress: Progress = silent,
) -> EdgeEffects:
    """Rank what parts send to each other by what it does to the answer.

    Args:
        model: the model that is patched: a reference, or a loaded module.
        clean: the prompts that it is run on.
        corrupt: as many prompts, of the same length, row by row: what senders hold there is put in; those of `clean`
            where None, and `other` is given.
        other: another version of the model, which what is put in comes from; the same where None.
        config: the options.
        progress: called on the way.

    Raises:
        UsageError: the prompts do not go together; or neither other prompts nor another version is given.
        ModelError: the versions are not of one architecture; or parts of the model cannot be told apart.
    """
    from uphold.explain.circuits.edges import edge_effects

    return edge_effects(model, clean, corrupt, other, config or EdgesConfig(), progress)
