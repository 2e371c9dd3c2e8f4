"""Turning a fine-tuning down: theta_PT + alpha (theta_FT - theta_PT), and where on the way the old skill returns.

Task vectors of Ilharco et al., arXiv:2212.04089, read as a measurement. Of a low-rank adapter B A the factor B is
scaled: the same weights, without the old model in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from uphold.core.errors import ModelError
from uphold.core.progress import Progress, silent
from uphold.explain.wrappers.config import WrapperConfig
from uphold.explain.wrappers.skill import Behaviour, Skill, behaviour, duplicate
from uphold.explain.wrappers.units import is_adapter_factor


@dataclass(frozen=True)
class Scaled:
    """A model between the two versions, or beyond."""

    alpha: float
    old: Behaviour
    """On the old skill."""
    new: tuple[Behaviour, ...]
    """On the other skills."""


@dataclass(frozen=True)
class Scaling:
    """Both skills along alpha."""

    adapter: bool
    """Whether a low-rank adapter was scaled, and not the difference of two models."""
    target: float
    """Accuracy that counts as having the old skill."""
    curve: tuple[Scaled, ...]

    @property
    def returns(self) -> float | None:
        """The largest measured alpha up to 1 with the old skill at its target; None where there is none."""
        found = [one.alpha for one in self.curve if one.alpha <= 1 and one.old.accuracy >= self.target]
        return max(found, default=None)


def scale(
    old_model: nn.Module | None,
    new_model: nn.Module,
    old: Skill,
    *,
    others: Sequence[Skill] = (),
    target: float,
    config: WrapperConfig | None = None,
    progress: Progress = silent,
) -> Scaling:
    """Measure skills at shares of a weight change; alpha 0 and 1 have the weights of the two models bit for bit.

    Args:
        old_model: where the change starts from; None where `new_model` is a base with a low-rank adapter.
        new_model: left as it is, like the other.
        old: the old skill.
        others: skills that are measured beside it.
        target: accuracy that counts as having the old skill.
        config: the shares of the change.
        progress: called for every alpha.

    Raises:
        ModelError: the two have not the same tensors; or there is no old model and no adapter.
    """
    config = config or WrapperConfig()
    twin = duplicate(new_model)
    new = {name: one.clone() for name, one in twin.state_dict().items()}
    start = _start(old_model, new)
    curve = []
    for done, alpha in enumerate(config.alphas, 1):
        twin.load_state_dict({name: _between(start[name], one, alpha) for name, one in new.items()})
        found = [
            behaviour(twin, skill, name=f"alpha = {alpha:g}", rows=config.rows, level=config.level)
            for skill in (old, *others)
        ]
        curve.append(Scaled(alpha, found[0], tuple(found[1:])))
        progress("scaling", done, len(config.alphas))
    return Scaling(old_model is None, target, tuple(curve))


def adapter_off(model: nn.Module) -> nn.Module:
    """A copy of a model with its low-rank adapter set to zero: the base.

    Raises:
        ModelError: it has none.
    """
    twin = duplicate(model)
    twin.load_state_dict(_start(None, twin.state_dict()))
    return twin


def _start(old_model: nn.Module | None, new: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    if old_model is None:
        factors = {name for name in new if is_adapter_factor(name)}
        if not factors:
            raise ModelError("there is no old model and no low-rank adapter (lora_B) to scale: give the old model")
        return {name: torch.zeros_like(one) if name in factors else one for name, one in new.items()}
    old = {name: one.detach() for name, one in old_model.state_dict().items()}
    odd = sorted(old.keys() ^ new.keys()) or [name for name, one in new.items() if one.shape != old[name].shape]
    if odd:
        raise ModelError(
            f"the two models do not have the same tensors ({odd[0]} and {len(odd) - 1} others differ): expected two "
            "versions of one model; where one is an adapter, leave out the old model"
        )
    return old


def _between(start: torch.Tensor, end: torch.Tensor, alpha: float) -> torch.Tensor:
    if alpha == 1 or not end.is_floating_point():
        return end
    start = start.to(end)
    return start if alpha == 0 else start + alpha * (end - start)
