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
from uphold.explain.wrappers.config import UnitKind
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
    ks: Sequence[int] = (0, 1, 2, 5, 10, 20),
    kind: UnitKind = "neurons",
    rescore: bool = False,
    bias: bool = False,
    ends: bool = False,
    draws: int = 5,
    seed: int = 0,
    rows: int = 512,
    level: float = 0.95,
    progress: Progress = silent,
) -> Revival:
    """Prune a copy of a fine-tuned model, K units at a time.

    Args:
        model: left as it is.
        choose: instances of the old skill that scores are taken on, in one pass.
        old: other instances of it, to measure on.
        others: skills that are measured beside it.
        ks: how many units to prune, rising from 0.
        kind: of unit.
        rescore: take scores anew after every unit.
        bias: prune the bias of a row with it.
        ends: prune in embeddings and output head too.
        draws: random sets of units.
        seed: of the random units.
        rows: in one forward pass of the measurement.
        level: of the intervals.
        progress: called for every K.

    Raises:
        UsageError: there are no such units, or fewer than twice as many as are to be pruned.
    """
    twin = duplicate(model)
    units = Units(twin, kind, choose, ends=ends)
    most = max(ks)
    if 2 * most > units.total:
        raise UsageError(
            f"{most} of {units.total} {kind} leave too few for a random comparison: prune at most {units.total // 2}"
        )
    kept, norms = {name: one.clone() for name, one in twin.state_dict().items()}, units.norms()
    chosen, scores = _order(units, choose, most, rescore, bias)
    twin.load_state_dict(kept)
    instead = [_alike(norms, chosen, seed + draw) for draw in range(draws)]
    curve = []
    for done, k in enumerate(ks, 1):
        twin.load_state_dict(kept)
        units.zero(chosen[:k], bias=bias)
        found = [behaviour(twin, one, name=f"K = {k}", rows=rows, level=level) for one in (old, *others)]
        picked = behaviour(twin, choose, rows=rows).balanced
        random = []
        for numbers in instead:
            twin.load_state_dict(kept)
            units.zero(numbers[:k], bias=bias)
            random.append(accuracy(twin, old, rows))
        sizes = [float(norms[numbers[:k]].norm()) for numbers in (chosen, *instead)]
        mean = sum(sizes[1:]) / draws
        curve.append(Pruned(k, found[0], tuple(found[1:]), tuple(random), picked, sizes[0], mean))
        progress("revival", done, len(ks))
    pruned = []
    for number, score in zip(chosen, scores, strict=True):
        part, index = units.place(number)
        pruned.append(Unit(part.name, index, score, float(norms[number])))
    return Revival(kind, rescore, bias, tuple(pruned), units.total, tuple(curve))


def _order(units: Units, skill: Skill, most: int, rescore: bool, bias: bool) -> tuple[list[int], list[float]]:
    """The units to prune, the largest signed score first, with their scores; prunes them where scores are retaken."""
    if not most:
        return [], []
    if not rescore:
        scores = units.scores(skill)
        order = scores.sort(descending=True, stable=True).indices[:most]
        return order.tolist(), scores[order].tolist()
    chosen: list[int] = []
    found: list[float] = []
    for _ in range(most):
        scores = units.scores(skill)
        scores[chosen] = -torch.inf
        chosen.append(int(scores.argmax()))
        found.append(float(scores[chosen[-1]]))
        units.zero(chosen[-1:], bias=bias)
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
