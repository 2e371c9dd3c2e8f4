"""Desiderata-based component masking (DCM): which heads of a group carry a piece of information.

Davies et al., arXiv:2307.03637; Prakash et al., arXiv:2402.14811, section 4. Each pair of prompts says what the answer
has to become if the information is in the heads that are patched from the source into the base:

    head output = m base + (1 - m) source     L = - mean logit(target) + lambda sum (1 - m)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from uphold.core.errors import EmptyError, UsageError
from uphold.core.progress import Progress, silent
from uphold.explain.circuits.patching import Held, check_paired, moved, sites_of
from uphold.explain.circuits.prompts import Node, Prompts
from uphold.models.sites.hooks import Edit
from uphold.models.sites.layout import Layout
from uphold.models.sites.run import frozen, read, run


@dataclass(frozen=True)
class Pairs:
    """Base and source prompts, row by row, and what the base has to answer once the information is the source's."""

    base: Prompts
    source: Prompts
    targets: torch.Tensor
    """Tokens, shape (rows,)."""

    def __post_init__(self) -> None:
        check_paired(self.base, self.source)

    def __len__(self) -> int:
        return len(self.base)

    def rows(self, chosen: torch.Tensor | slice) -> Pairs:
        """The same for some rows."""
        return Pairs(self.base.rows(chosen), self.source.rows(chosen), self.targets[chosen])

    def batches(self, size: int) -> Iterator[Pairs]:
        """All rows in order, at most `size` at once."""
        for begin in range(0, len(self), size):
            yield self.rows(slice(begin, begin + size))


@dataclass(frozen=True)
class MaskConfig:
    """How a mask is learned; the defaults are the paper's."""

    penalty: float = 0.01
    """Lambda: what each patched head costs."""
    learning_rate: float = 0.1
    """Of Adam."""
    epochs: int = 2
    batch: int = 32
    check_every: int = 4
    """Batches between two validations of the rounded mask."""
    shares: tuple[float, float] = (0.5, 0.25)
    """Of the pairs to train and to validate with; the rest tests."""
    seed: int = 0
    """Of the order of pairs."""

    def __post_init__(self) -> None:
        if not (self.penalty >= 0 and self.learning_rate > 0 and min(self.epochs, self.batch, self.check_every) > 0):
            raise UsageError(f"a mask cannot be learned with {self}")
        if not (min(self.shares) > 0 and sum(self.shares) < 1):
            raise UsageError(f"shares to train and validate with must leave some to test with, not {self.shares}")


@dataclass(frozen=True)
class Mask:
    """What a group of heads carries of a piece of information. Accuracies are shares of answers that are the target."""

    patched: tuple[Node, ...]
    """The heads that are to be patched; none where no choice beats patching nothing."""
    group: tuple[Node, ...]
    accuracy: float
    """With these patched, on test pairs."""
    floor: float
    """With none patched."""
    whole: float
    """With the whole group patched."""
    validation: float
    """With the chosen heads patched, on the pairs that chose them."""
    count: int
    """Test pairs."""


def learn_mask(
    layout: Layout,
    pairs: Pairs,
    group: Sequence[Node],
    *,
    config: MaskConfig | None = None,
    progress: Progress = silent,
) -> Mask:
    """Learn which heads of a group carry what the pairs ask for.

    The mask begins with every head left alone, which stays a candidate: what comes out is never worse on validation
    pairs. Of equally good masks the one that patches more heads is taken.

    Raises:
        EmptyError: there is no head, or are too few pairs.
    """
    config = config or MaskConfig()
    if not group:
        raise EmptyError("no heads to learn a mask for")
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(config.seed))
    first = int(config.shares[0] * len(pairs))
    second = first + int(config.shares[1] * len(pairs))
    if not 0 < first < second < len(pairs):
        raise EmptyError(f"{len(pairs)} pairs are too few to train, validate and test with")
    train, validation, test = (pairs.rows(one) for one in (order[:first], order[first:second], order[second:]))
    mask = torch.ones(len(group), requires_grad=True)
    floor = target_accuracy(layout, validation, ())
    best, best_accuracy = mask.detach().clone(), floor
    optimiser = torch.optim.Adam([mask], lr=config.learning_rate)
    batches = [batch for _ in range(config.epochs) for batch in train.batches(config.batch)]
    for number, batch in enumerate(batches, 1):
        with torch.no_grad():
            mask.clamp_(0, 1)
        optimiser.zero_grad()
        mask_loss(layout, batch, group, mask, config.penalty).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        if number % config.check_every == 0 or number == len(batches):
            rounded = mask.detach().clamp(0, 1).round()
            accuracy = target_accuracy(layout, validation, _patched(group, rounded))
            if accuracy > floor and (accuracy, -float(rounded.sum())) > (best_accuracy, -float(best.sum())):
                best, best_accuracy = rounded, accuracy
        progress("learning a mask", number, len(batches))
    chosen = _patched(group, best)
    return Mask(
        chosen,
        tuple(group),
        target_accuracy(layout, test, chosen),
        target_accuracy(layout, test, ()),
        target_accuracy(layout, test, group),
        best_accuracy,
        len(test),
    )


def mask_loss(layout: Layout, pairs: Pairs, group: Sequence[Node], mask: torch.Tensor, penalty: float) -> torch.Tensor:
    """The loss of a soft mask, shape (heads,), in [0, 1]: 1 leaves a head alone, 0 patches it. A scalar."""
    held, _ = read(layout, pairs.source.inputs, sites_of(group), at=pairs.source.at)
    with frozen(layout.model):
        logits = run(layout, pairs.base.inputs, _mixed(group, mask, held, pairs), at=pairs.base.at, grad=True)
    reached = logits.gather(-1, pairs.targets.to(logits.device)[:, None]).mean()
    return penalty * (1 - mask).sum() - reached.to(mask.device)


def target_accuracy(layout: Layout, pairs: Pairs, patched: Sequence[Node], batch: int = 256) -> float:
    """Share of base prompts whose most likely answer is the target, with these heads patched from the source."""
    hits = 0
    for part in pairs.batches(batch):
        edits = []
        if patched:
            held, _ = read(layout, part.source.inputs, sites_of(patched), at=part.source.at)
            edits = [moved(node, held, part.source, part.base) for node in patched]
        logits = run(layout, part.base.inputs, edits, at=part.base.at)
        hits += int((logits.argmax(-1) == part.targets.to(logits.device)).sum())
    return hits / len(pairs)


def _mixed(group: Sequence[Node], mask: torch.Tensor, held: Held, pairs: Pairs) -> list[Edit]:
    edits = []
    for node, weight in zip(group, mask, strict=True):
        edit = moved(node, held, pairs.source, pairs.base)
        source = edit.value
        assert isinstance(source, torch.Tensor)

        def mixed(old: torch.Tensor, source: torch.Tensor = source, m: torch.Tensor = weight) -> torch.Tensor:
            m = m.to(old)
            return m * old + (1 - m) * source.to(old)

        edits.append(Edit(edit.site, mixed, edit.where))
    return edits


def _patched(group: Sequence[Node], mask: torch.Tensor) -> tuple[Node, ...]:
    return tuple(node for node, value in zip(group, mask.tolist(), strict=True) if value == 0)
