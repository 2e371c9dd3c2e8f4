"""The loss that trains the gate of a pair: cross-entropy of the fused logits, with its gradient in closed form.

    z = g z_new + (1 - g) z_old / T          d CE / d g = sum_v (softmax(z)_v - 1[v = gold]) (z_new - z_old / T)_v

The logits need no gradient, only their scalar product with one, so they are held a chunk at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from uphold.models.divergence import cross_entropy
from uphold.models.pair_file import Gating
from uphold.models.pair_model import CHUNK, fused, heard
from uphold.models.projection import Logits, Reader
from uphold.models.rules import Trained
from uphold.models.train import StepLoss, Tokens, selected_tokens, trained_tokens

if TYPE_CHECKING:
    from uphold.models.encode import Batch
    from uphold.models.pair_model import ModelPair


class GateLoss:
    """An `uphold.models.train.Objective` for a `ModelPair` with a gate; nothing but the gate gets a gradient."""

    def __init__(self, tokens: Tokens, drop: float) -> None:
        """Prepare.

        Args:
            tokens: which tokens are trained.
            drop: share of tokens that the new model predicts alone while training.
        """
        self.tokens, self.drop = tokens, drop

    def __call__(self, model: ModelPair, batch: Batch) -> StepLoss:
        """The loss summed over the trained tokens of one micro-batch."""
        assert model.gate is not None
        assert isinstance(model.how, Gating)
        trained = trained_tokens(batch, self.tokens)
        old, new, hidden = _read(model, batch, trained)
        gate: torch.Tensor = model.gate(hidden)
        used = gate
        if model.training and self.drop:
            dropped = torch.rand(gate.shape, device=gate.device) < self.drop
            used = gate.masked_fill(dropped, 1.0)
        value, slope = _values(old, new, used.detach(), trained.targets, model.how.old_temperature)
        total = value.sum() + (slope * (used - used.detach())).sum()
        count = float(len(gate))
        return StepLoss(total, {"loss": (float(value.sum()), count), "gate": (float(gate.detach().sum()), count)})

    def count(self, batch: Batch) -> int:
        """The trained tokens."""
        return int(selected_tokens(batch, self.tokens).sum())


def _read(model: ModelPair, batch: Batch, trained: Trained) -> tuple[Logits, Logits, torch.Tensor]:
    """Logits of the old and the new model, and the hidden states before the new one's head."""
    old, new = (one.model for one in model.members)
    with torch.no_grad(), heard(new) as found:
        logits = [Reader(one).logits(batch, trained.sequence, trained.position) for one in (old, new)]
    # What comes after the first pass through the head is the reader's own check of it.
    return logits[0], logits[1], found[0][trained.sequence, trained.position].detach()


def _values(
    old: Logits, new: Logits, gate: torch.Tensor, targets: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The cross-entropy of each token and its derivative with respect to the gate, both of shape (n,)."""
    values, slopes = torch.zeros_like(gate), torch.zeros_like(gate)
    with torch.no_grad():
        size = min(int(logits.chunk(slice(0, 1)).shape[-1]) for logits in (old, new)) if len(gate) else 1
        step = max(1, CHUNK // size)
        for start in range(0, len(gate), step):
            part = slice(start, start + step)
            ours, theirs = old.chunk(part)[:, :size], new.chunk(part)[:, :size]
            crossed = cross_entropy(fused(ours, theirs, gate[part], temperature), targets[part])
            values[part] = crossed.value
            slopes[part] = (crossed.gradient * (theirs - ours / temperature)).sum(dim=-1)
    return values, slopes
