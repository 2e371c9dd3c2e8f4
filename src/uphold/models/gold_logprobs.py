"""Log-probabilities of given tokens with gradient, a chunk of logits at a time."""

from __future__ import annotations

from typing import Any

import torch

from uphold.models.distillation import CHUNK_LOGITS
from uphold.models.divergence import cross_entropy, gold_statistics
from uphold.models.projection import Projected, Whole


def gold_logprobs(logits: Projected | Whole, targets: torch.Tensor) -> torch.Tensor:
    """Log-probabilities in nats of `targets`, shape (n,), with gradient where gradients are on.

    No more logits than `uphold.models.distillation.CHUNK_LOGITS` are held at once; going back, they are made again.
    """
    return _GoldLogprobs.apply(logits.source, logits, targets)  # type: ignore[no-untyped-call, no-any-return]


def gold_rights(logits: Projected | Whole, targets: torch.Tensor) -> torch.Tensor:
    """Whether each of `targets` is the likeliest token of its place, booleans of shape (n,)."""
    found = [gold_statistics(logits.chunk(part), targets[part]).right for part in chunks(logits)]
    return torch.cat([targets[:0].bool(), *found])


def chunks(logits: Projected | Whole) -> list[slice]:
    """Parts of at most `CHUNK_LOGITS` logits, at least one position each."""
    count = len(logits)
    if not count:
        return []
    size = max(1, CHUNK_LOGITS // logits.chunk(slice(0, 1)).shape[-1])
    return [slice(start, start + size) for start in range(0, count, size)]


class _GoldLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, source: torch.Tensor, logits: Projected | Whole, targets: torch.Tensor) -> torch.Tensor:
        ctx.logits, ctx.targets = logits, targets
        found = [gold_statistics(logits.chunk(part), targets[part]).logprob for part in chunks(logits)]
        return torch.cat([source.new_zeros(0, dtype=torch.float32), *found])

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        logits, targets = ctx.logits, ctx.targets
        made = torch.zeros_like(logits.source)
        for part in chunks(logits):
            # Cross-entropy is minus the log-probability.
            gradient = cross_entropy(logits.chunk(part), targets[part]).gradient * -grads[0][part, None]
            made[part] = logits.pull_back(gradient).to(made.dtype)
        return made, None, None
