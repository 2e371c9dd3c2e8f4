"""Cross-model activation patching: which heads carry what a new version does better.

Prakash et al., "Fine-Tuning Enhances Existing Mechanisms: A Case Study on Entity Tracking", arXiv:2402.14811.
Both versions read the same prompt; a group of heads of one takes what it holds in the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from uphold.core.errors import UsageError, unknown_name
from uphold.core.progress import Progress, silent
from uphold.core.registry import explain

if TYPE_CHECKING:
    from uphold.explain.circuits.compare import CmapReport
    from uphold.explain.circuits.prompts import Node, Prompts
    from uphold.models.load import ModelLike

PAPER = "arXiv:2402.14811"
Side = Literal["output", "input"]
SIDES: tuple[Side, ...] = get_args(Side)


@dataclass(frozen=True)
class CmapConfig:
    """Options of patching across versions."""

    side: Side = "output"
    """`output`: what the heads write. `input`: their queries, and keys and values at all earlier positions."""
    randoms: int = 3
    """Random groups with as many nodes per role beside each group."""
    batch: int = 256
    """Prompts in one forward pass."""
    seed: int = 0
    """Of the random groups."""

    def __post_init__(self) -> None:
        if self.side not in SIDES:
            raise unknown_name("side", self.side, SIDES)
        if self.batch < 1 or self.randoms < 0:
            raise UsageError("patching needs a batch of at least 1 and no negative number of random groups")


@explain("cmap", paper=PAPER)
def cmap(
    old: ModelLike,
    new: ModelLike,
    prompts: Prompts,
    *,
    groups: Mapping[str, Iterable[Node]] | None = None,
    config: CmapConfig | None = None,
    progress: Progress = silent,
) -> CmapReport:
    """Patch groups of heads of the new version into the old one and the other way round, on the same prompts.

    Args:
        old: the model before: a reference, or a loaded module.
        new: one that was tuned from it.
        prompts: of the task, with an answer and roles each; not those that the groups were chosen with.
        groups: by name, heads at roles; all heads of each block at each role where None.
        config: the options.
        progress: called on the way.

    Raises:
        ModelError: the models are not of one architecture.
    """
    from uphold.explain.circuits.compare import compare

    return compare(old, new, prompts, groups, config or CmapConfig(), progress)
