"""Weights between those of an old and a new model (BCWI, Schumann et al., EACL 2024, arXiv:2301.10546).

    theta = alpha theta_old + (1 - alpha) theta_new                                                       (plain)
    theta = (alpha F theta_old + (1 - alpha) theta_new) / (alpha F + 1 - alpha)                           (Fisher)

with F the diagonal Fisher information of the old model, of mean 1, element by element. alpha = 0 gives the new
weights and alpha = 1 the old ones, bit for bit.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from uphold.core.errors import UsageError
from uphold.models.load import Loaded
from uphold.models.weights import (
    Factors,
    LoraSum,
    bare_copy,
    lora_factors,
    merged,
    relative_distance,
    same_base,
)

FAR = 0.1
"""Relative distance of two models beyond which one is hardly a fine-tuned version of the other."""


def old_share(alpha: float, fisher: torch.Tensor) -> torch.Tensor:
    """The share of the old model in every weight: alpha F / (alpha F + 1 - alpha), in [0, 1].

    Where alpha is 1 it is 1, also where F is 0 and the quotient is not defined.
    """
    return (1 / (1 + (1 - alpha) / (alpha * fisher))).nan_to_num(nan=1.0)


def between(old: torch.Tensor, new: torch.Tensor, share: float | torch.Tensor) -> torch.Tensor:
    """The sum share·old + (1 - share)·new, calculated in float32 at least; exact at both ends."""
    kind = torch.promote_types(new.dtype, torch.float32)
    return torch.lerp(new.to(kind), old.to(kind), share).to(new.dtype)


class AdapterMixture:
    """Adapters on one base, mixed as an adapter on that base: the old one, and the mean of the new ones."""

    form: Literal["adapter"] = "adapter"
    notes: Sequence[str] = ()

    def __init__(self, base: Any, old: Mapping[str, Factors], new: Sequence[Mapping[str, Factors]]) -> None:
        """Put the adapter on `base`, which is changed.

        Args:
            base: a model without an adapter.
            old: what the old adapter adds; empty where the old model is the base itself.
            new: what the new ones add.
        """
        self._count = len(new)
        self._sum = LoraSum(base, [old, *new])
        self.model: Any = self._sum.model

    def set(self, alpha: float) -> None:
        """Write the weights of a share `alpha` of the old model."""
        self._sum.set([alpha] + [(1 - alpha) / self._count] * self._count)


class WeightMixture:
    """Two whole models, mixed tensor by tensor in a copy of the new one; its buffers stay the new one's."""

    form: Literal["weights"] = "weights"

    def __init__(
        self, old: Any, new: Any, fisher: Mapping[str, torch.Tensor] | None = None, notes: Sequence[str] = ()
    ) -> None:
        """Prepare.

        Args:
            old: the old model without an adapter.
            new: the new one; both have the same parameters.
            fisher: of the old model, of mean 1, for every parameter that differs; None for the plain mixture.
            notes: what a user should know.
        """
        ours, theirs = dict(old.named_parameters()), dict(new.named_parameters())
        self._pairs = {name: (ours[name], theirs[name]) for name in changed(old, new)}
        self._fisher, self.notes = fisher, notes
        self.model: Any = copy.deepcopy(new)
        self._targets = dict(self.model.named_parameters())

    def set(self, alpha: float) -> None:
        """Write the weights of a share `alpha` of the old model."""
        with torch.no_grad():
            for name, (old, new) in self._pairs.items():
                share = alpha if self._fisher is None else old_share(alpha, self._fisher[name])
                self._targets[name].copy_(between(old, new, share))


def changed(old: Any, new: Any) -> list[str]:
    """Names of the parameters in which two models without adapters differ, sorted."""
    theirs = dict(new.named_parameters())
    return sorted(name for name, value in old.named_parameters() if not torch.equal(value, theirs[name]))


def plain_mixture(
    old: Loaded, new: Loaded, more: Sequence[Mapping[str, Factors]] = ()
) -> AdapterMixture | WeightMixture:
    """The plain mixture of two models: an adapter where both are plain LoRAs on one base, else whole weights.

    Args:
        old: the version that users have.
        new: the version that is to replace it.
        more: what other adapters on the new base add; their mean with the new model takes its place.

    Raises:
        UsageError: there are others, and the new model's adapter is no plain LoRA that could be averaged with them.
    """
    ours, theirs = lora_factors(old.model), lora_factors(new.model)
    if theirs is None and more:
        raise UsageError(
            f"the adapter of '{new.name}' is no plain LoRA (linear layers only, no DoRA, biases or whole layers): "
            "it cannot be averaged with others; use bcwi, or adapt the new base again"
        )
    parts = [theirs or {}, *more]
    if ours is not None and theirs is not None and any((ours, *parts)) and same_base(old, new):
        return AdapterMixture(bare_copy(new), ours, parts)
    if more:
        soup = LoraSum(bare_copy(new), parts)
        soup.set([1 / len(parts)] * len(parts))
        mean = merged(soup.model)
    else:
        mean = merged(new.model)
    before = merged(old.model)
    return WeightMixture(before, mean, notes=distance_notes(before, mean))


def distance_notes(old: Any, new: Any) -> list[str]:
    """A remark on two models of which one is no fine-tuned version of the other."""
    distance = relative_distance(dict(old.named_parameters()), dict(new.named_parameters()))
    if distance <= FAR:
        return []
    return [
        f"old and new weights differ by {distance:.0%} of the new ones' norm (unrelated models by about 140%): "
        "interpolation assumes that the new model was fine-tuned from the old one"
    ]
