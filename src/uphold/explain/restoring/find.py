"""Choosing sites on one half of the flips, and measuring them on the other."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

import torch

from uphold.core.progress import Progress, silent
from uphold.core.stats import proportion_interval
from uphold.explain.flips import FlipsConfig
from uphold.explain.restoring.effects import Group, Hybrid
from uphold.explain.restoring.explanation import Edge, Share, SiteEffect
from uphold.explain.restoring.forks import Forks
from uphold.models.sites.site import Site, parse_kinds

_STAGE = (("query", "key", "value"), ("head",), ("attention",), ("hidden",), ("mlp",), ("residual",))
"""Kinds in the order in which a block computes them."""
RANDOM_GROUPS = 10
"""Groups of random sites that the chosen ones are compared with, at most: each counts once."""
LEAST_EFFECT = 0.1
"""Share of the distance that a site must recover or lose for lines to be drawn from it."""


@dataclass(frozen=True)
class Found:
    """What was chosen, and what it does on the half that nothing was chosen on."""

    estimates: dict[Site, float]
    sites: tuple[SiteEffect, ...]
    together: tuple[SiteEffect, ...]
    random: tuple[SiteEffect, ...]
    every: SiteEffect
    edges: tuple[Edge, ...]
    held_out: int


def halves(forks: Forks, seed: int) -> tuple[Forks, Forks]:
    """Two parts by a hash of the instance and the seed: to choose on, and to measure on."""
    ordered = sorted(forks.rows, key=lambda row: sha256(f"{seed} {row.id}".encode()).digest())
    middle = len(ordered) // 2
    return Forks(tuple(ordered[:middle]), 0), Forks(tuple(ordered[middle:]), 0)


def find(hybrid: Hybrid, flips: Forks, gains: Forks, config: FlipsConfig, progress: Progress = silent) -> Found:
    """Find the sites that bring flips back.

    Every site is estimated to first order; the `exact` likeliest ones are patched; the `top` best of these are measured
    on flips and gains that had no part in this.

    Args:
        hybrid: both models.
        flips: negative flips.
        gains: positive flips.
        config: which sites, how many, and by what they are chosen.
        progress: called while it runs.
    """
    seed = config.seed
    choose, measure = halves(flips, seed)
    choose_gains, measure_gains = halves(gains, seed)
    sites = hybrid.new.sites(*parse_kinds(config.kinds))
    old, new = hybrid.margins(choose)
    distance = float((old - new).mean()) or 1.0
    estimated = hybrid.screened(choose, sites, progress).mean(1) / distance
    likely = [sites[place] for place in estimated.argsort(descending=True)[: config.exact].tolist()]
    patched = hybrid.patched(choose, [(site,) for site in likely], progress=progress)
    if config.rank == "distance":
        worth = patched.mean(1)
    else:
        at_cost = hybrid.patched(choose_gains, [(site,) for site in likely], progress=progress)
        worth = (patched > 0).float().mean(1) - _mean(at_cost > 0)
    order = worth.argsort(descending=True, stable=True)[: config.top]
    chosen = [likely[place] for place in order.tolist()]
    rest = [site for site in sites if site not in chosen]
    nested: list[Group] = [tuple(chosen[: count + 1]) for count in range(len(chosen))]
    drawn_groups = (_like(chosen, rest, random.Random(f"{seed} {number}")) for number in range(RANDOM_GROUPS))
    others = list({frozenset(group): group for group in drawn_groups if group}.values())
    measured: list[Group] = [*((site,) for site in chosen), *nested, *others, tuple(sites)]
    effects = _effects(hybrid, measure, measure_gains, measured, progress)
    count = len(chosen)
    return Found(
        {site: float(value) for site, value in zip(sites, estimated, strict=True)},
        tuple(effects[:count]),
        tuple(effects[count : 2 * count]),
        tuple(effects[2 * count : -1]),
        effects[-1],
        tuple(_edges(hybrid, measure, sorted(chosen[: config.drawn], key=_depth), distance)),
        len(measure.rows),
    )


def _effects(
    hybrid: Hybrid, flips: Forks, gains: Forks, groups: Sequence[Group], progress: Progress
) -> list[SiteEffect]:
    old, new = hybrid.margins(flips)
    distance = float((old - new).mean()) or 1.0
    margins = hybrid.patched(flips, groups, progress=progress)
    lost = hybrid.patched(gains, groups, progress=progress)
    return [
        SiteEffect(tuple(map(str, group)), _share(ours > 0), _share(theirs > 0), float((ours - new).mean()) / distance)
        for group, ours, theirs in zip(groups, margins, lost, strict=True)
    ]


def _edges(hybrid: Hybrid, flips: Forks, sites: Sequence[Site], distance: float) -> list[Edge]:
    """What of each site's effect passes through each later one: it is gone where that one is held.

    Shares of an effect below a tenth of the distance are left out: they would be shares of noise.
    """
    pairs = [(one, other) for one in sites for other in sites if _depth(one)[:2] < _depth(other)[:2]]
    _, new = hybrid.margins(flips)
    alone = hybrid.patched(flips, [(site,) for site in sites])
    held = hybrid.patched(flips, [(one,) for one, _ in pairs], [(other,) for _, other in pairs])
    found = []
    for (one, other), values in zip(pairs, held, strict=True):
        effect = float((alone[sites.index(one)] - new).mean())
        left = float((values - new).mean())
        if abs(effect) >= LEAST_EFFECT * abs(distance):
            found.append(Edge(str(one), str(other), 1 - left / effect))
    return found


def _like(chosen: Sequence[Site], rest: Sequence[Site], draw: random.Random) -> Group:
    """As many other sites of each kind; nothing where there are not enough."""
    found: list[Site] = []
    for kind in dict.fromkeys(site.kind for site in chosen):
        wanted = sum(site.kind == kind for site in chosen)
        there = [site for site in rest if site.kind == kind]
        if len(there) < wanted:
            return ()
        found += draw.sample(there, wanted)
    return tuple(found)


def _depth(site: Site) -> tuple[int, int, int]:
    """Queries, keys and values come before what heads write, attention before the feed-forward part of its block."""
    return site.layer, _STAGE.index(next(stage for stage in _STAGE if site.kind in stage)), site.head


def _share(hits: torch.Tensor) -> Share:
    count, of = int(hits.sum()), len(hits)
    if not of:
        return Share(0, 0, 0.0, 1.0)
    low, high = proportion_interval(count, of)
    return Share(count, of, float(low), float(high))


def _mean(hits: torch.Tensor) -> torch.Tensor:
    return hits.float().mean(1) if hits.shape[1] else torch.zeros(len(hits))
