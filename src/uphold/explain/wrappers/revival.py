"""Revival: prune what the old skill's loss is better off without, and see whether the skill comes back.

Section 3.2 of arXiv:2311.12786. Units go by the signed score, the largest first; the size of the score alone would
take the skill itself away. Beside it stand random units, as many and of about the same norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from uphold.core.errors import UsageError
from uphold.core.progress import Progress, silent
from uphold.explain.wrappers.config import UnitKind, WrapperConfig
from uphold.explain.wrappers.skill import Behaviour, Skill, accuracy, behaviour, duplicate
from uphold.explain.wrappers.units import Unit, Units

NEAR = 10
"""A random unit is one of so many whose norm is nearest."""


@dataclass(frozen=True)
class Pruned:
    """A model with K units set to zero."""

    k: int
    old: Behaviour
    """On the old skill."""
    new: tuple[Behaviour, ...]
    """On the other skills."""
    random: tuple[float, ...]
    """Accuracy on the old skill with random units pruned instead, one for each draw."""
    chosen: float
    """Balanced accuracy on the instances that scores were taken on."""
    norm: float
    """Root of the summed squared norms of the pruned units."""
    random_norm: float
    """The same of the random ones, mean over draws."""


@dataclass(frozen=True)
class Revival:
    """The old skill along the number of pruned units."""

    kind: UnitKind
    rescored: bool
    bias: bool
    units: tuple[Unit, ...]
    """The pruned ones, in order."""
    candidates: int
    """Units that could have been pruned."""
    curve: tuple[Pruned, ...]

    @property
    def best(self) -> Pruned:
        """The K with the highest balanced accuracy where scores were taken; of equals the fewest units.

        What is reported of it is measured on others.
        """
        return max(self.curve, key=lambda one: (one.chosen, -one.k))


def revive(
    model: nn.Module,
    choose: Skill,
    old: Skill,
    *,
    others: Sequence[Skill] = (),
    config: WrapperConfig | None = None,
    progress: Progress = silent,
) -> Revival:
    """Prune a copy of a fine-tuned model, K units at a time.

    Args:
        model: left as it is.
        choose: instances of the old skill that scores are taken on, in one pass.
        old: other instances of it, to measure on.
        others: skills that are measured beside it.
        config: what to prune, how much of it, and how often at random.
        progress: called for every K.

    Raises:
        UsageError: there are no such units, or fewer than twice as many as are to be pruned.
    """
    config = config or WrapperConfig()
    units = Units(duplicate(model), config.units, choose, ends=config.include_ends)
    most = max(config.prune)
    if 2 * most > units.total:
        raise UsageError(
            f"{most} of {units.total} {config.units} leave too few for a random comparison: prune at most "
            f"{units.total // 2}"
        )
    norms = units.norms()
    order, scores = _order(units, choose, config)
    instead = [_alike(norms, order, config.seed + draw) for draw in range(config.draws)]
    curve = []
    for done, k in enumerate(config.prune, 1):
        with units.without(order[:k], bias=config.bias):
            found = [
                behaviour(units.model, one, name=f"K = {k}", rows=config.rows, level=config.level)
                for one in (old, *others)
            ]
            chosen = behaviour(units.model, choose, rows=config.rows).balanced
        random = tuple(_accuracy_without(units, numbers[:k], old, config) for numbers in instead)
        norm, *sizes = (float(norms[numbers[:k]].norm()) for numbers in (order, *instead))
        curve.append(Pruned(k, found[0], tuple(found[1:]), random, chosen, norm, sum(sizes) / config.draws))
        progress("revival", done, len(config.prune))
    pruned = tuple(_unit(units, number, score, norms) for number, score in zip(order, scores, strict=True))
    return Revival(config.units, config.rescore, config.bias, pruned, units.total, tuple(curve))


def _accuracy_without(units: Units, numbers: Sequence[int], skill: Skill, config: WrapperConfig) -> float:
    with units.without(numbers, bias=config.bias):
        return accuracy(units.model, skill, config.rows)


def _unit(units: Units, number: int, score: float, norms: torch.Tensor) -> Unit:
    part, index = units.place(number)
    return Unit(part.name, index, score, float(norms[number]))


def _order(units: Units, skill: Skill, config: WrapperConfig) -> tuple[list[int], list[float]]:
    """The units to prune, the largest signed score first, with their scores."""
    most = max(config.prune)
    if not most:
        return [], []
    if not config.rescore:
        scores = units.scores(skill)
        order = scores.sort(descending=True, stable=True).indices[:most]
        return order.tolist(), scores[order].tolist()
    chosen: list[int] = []
    found: list[float] = []
    for _ in range(most):
        with units.without(chosen, bias=config.bias):
            scores = units.scores(skill)
        scores[chosen] = -torch.inf
        chosen.append(int(scores.argmax()))
        found.append(float(scores[chosen[-1]]))
    return chosen, found


def _alike(norms: torch.Tensor, chosen: Sequence[int], seed: int) -> list[int]:
    """For each chosen unit a random one of about its norm, each unit at most once."""
    generator = torch.Generator().manual_seed(seed)
    free = torch.ones(len(norms), dtype=torch.bool)
    free[list(chosen)] = False
    found = []
    for number in chosen:
        distance = (norms - norms[number]).abs().masked_fill(~free, torch.inf)
        near = distance.topk(min(NEAR, int(free.sum())), largest=False).indices
        pick = int(near[torch.randint(len(near), (), generator=generator)])
        free[pick] = False
        found.append(pick)
    return found
