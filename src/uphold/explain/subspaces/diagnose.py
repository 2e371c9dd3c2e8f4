"""Find a subspace, put every diagnostic to it, and say what it is worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from uphold.core.errors import DataError, UsageError
from uphold.core.progress import Progress, silent
from uphold.explain.subspaces import conditions as named
from uphold.explain.subspaces import spaces
from uphold.explain.subspaces.conditions import Measured, along, conditions, measure
from uphold.explain.subspaces.config import SubspaceConfig
from uphold.explain.subspaces.directions import Held, das, mean_difference, orthonormal, probe, random_subspace
from uphold.explain.subspaces.gap import illusion_gap
from uphold.explain.subspaces.judge import reply, summarise, verdict
from uphold.explain.subspaces.pairs import Pairs, activations, shared_pairs
from uphold.explain.subspaces.result import Fit, Map, SubspaceResult
from uphold.explain.subspaces.spaces import RowSpace, Split, row_space, split
from uphold.models.sites.layout import Layout
from uphold.models.sites.site import Site

_ARBITRARY_SEED, _PLACEBO_SEED = 7919, 104729
"""Added to the seed, so that no two random things are alike."""


@dataclass(frozen=True, eq=False)
class Setting:
    """What a subspace is found and tested in."""

    layout: Layout
    """Of the model that is patched."""
    site: Site
    train: Pairs | None
    """To find the subspace with."""
    test: Pairs
    """To measure it on."""
    config: SubspaceConfig
    other: Layout | None = None
    """The model that source activations come from; the same where None."""

    def held(self, pairs: Pairs, layout: Layout | None = None) -> Held:
        """What the site holds in base and source."""
        base = activations(layout or self.layout, pairs, self.site, rows=self.config.rows)
        source_of = layout or self.other or self.layout
        source = activations(source_of, pairs, self.site, source=True, rows=self.config.rows)
        if source.shape != base.shape:
            raise DataError(
                f"site {self.site} holds {tuple(base.shape)} in the base and {tuple(source.shape)} in the source: "
                "expected two models of one shape"
            )
        return Held(base, source.to(base))


def find_map(
    layout: Layout,
    site: Site,
    *,
    next_map: torch.Tensor | None = None,
    readers: Sequence[tuple[str, str]] = (),
    tolerance: float | None = None,
) -> RowSpace:
    """What goes on from a site: the matrix given, what named readers see, or the next map that is known.

    Raises:
        UsageError: both are given, or none where none is known.
    """
    if next_map is not None and readers:
        raise UsageError("next_map and readers are both given: expected one of them")
    if next_map is not None:
        return row_space(next_map, tolerance)
    weight, name = spaces.reader_map(layout, readers) if readers else spaces.next_map(layout, site)
    return replace(row_space(weight, tolerance, name), proxy=bool(readers))


def find_subspace(setting: Setting, held: Held | None, progress: Progress = silent) -> torch.Tensor:
    """The subspace by `config.direction`, orthonormal columns of shape (n, k).

    Args:
        setting: where, and how.
        held: what the site holds in the pairs to train on; None for a random one.
        progress: called during DAS.

    Raises:
        UsageError: there are no pairs to find it with.
    """
    config = setting.config
    if config.direction == "random":
        width = (held or setting.held(setting.test)).base.shape[1]
        return random_subspace(width, config.k, config.seed)
    if setting.train is None or held is None:
        raise UsageError(f"direction '{config.direction}' needs pairs to find it with: give train=")
    if config.direction == "das":
        return das(setting.layout, setting.train, setting.site, config, held=held, progress=progress)
    find = mean_difference if config.direction == "mean-difference" else probe
    return find(held, setting.train.values, config.k)


def diagnose(
    setting: Setting,
    space: RowSpace,
    *,
    basis: torch.Tensor | None = None,
    fresh: Layout | None = None,
    progress: Progress = silent,
) -> SubspaceResult:
    """Find a subspace on one set of pairs and put all diagnostics to it on another.

    Args:
        setting: model, site, pairs and options.
        space: what the next map transmits.
        basis: a subspace that is known, shape (n, k) or (n,); found by `config.direction` where None.
        fresh: a model of the same shape with random weights, for one more control of DAS.
        progress: called meanwhile.

    Raises:
        UsageError: pairs to train on and to measure are not apart, or shapes do not fit.
        DataError: the model does not do the task on the pairs.
    """
    config, train, test = setting.config, setting.train, setting.test
    if train is not None and (both := shared_pairs(train, test)):
        raise UsageError(f"{both} of {len(test)} pairs to measure are trained on as well: expected other inputs")
    known = basis is not None
    trained = None if train is None or known else setting.held(train)
    unit = orthonormal(basis) if basis is not None else find_subspace(setting, trained, progress)
    parts = split(unit, space)
    held = setting.held(test)
    if held.base.shape[1] != space.width:
        raise UsageError(
            f"site {setting.site} holds {held.base.shape[1]} numbers, but {space.name} takes {space.width}"
        )
    wanted = conditions(parts, config.placebos, config.seed + _PLACEBO_SEED)
    fits: list[Fit] = []
    searched = trained if config.direction == "das" else None
    if searched is not None and config.arbitrary_labels:
        found, fit = _arbitrary(setting, searched, held, progress)
        wanted[named.ARBITRARY] = along(found, found)
        fits.append(fit)
    measured = measure(setting.layout, test, setting.site, held, wanted, rows=config.rows, progress=progress)
    if train is not None and searched is not None:
        reached = _share(setting, train, searched, unit)
        fits.insert(0, Fit("the expected answers", reached, _mean(measured[named.PATCH])))
        if fresh is not None:
            fits.append(_fresh(setting, fresh, progress))
    return _result(setting, space, parts, measured, fits, "given" if known else config.direction)


def _result(
    setting: Setting, space: RowSpace, parts: Split, measured: dict[str, Measured], fits: list[Fit], method: str
) -> SubspaceResult:
    config = setting.config
    effects, contrasts, notes = summarise(measured, setting.test.clusters, config)
    if space.proxy:
        notes.append(
            "dead means dead for the readers named: others may read it, and the null patch need not do nothing"
        )
    mapped = Map(space.name, space.width, space.rank, space.tolerance, parts.cosines, parts.row_share)
    found, reason = verdict(effects, contrasts, mapped, config)
    of = {one.name: one.fldd for one in effects}
    both = of[named.ROW_READ] + of[named.NULL_READ]
    return SubspaceResult(
        site=str(setting.site),
        method=method,
        k=parts.basis.shape[1],
        pairs=len(setting.test),
        verdict=found,
        reason=reason,
        reply=reply(found, effects, config),
        effects=tuple(effects),
        contrasts=tuple(contrasts),
        map=mapped,
        gap=illusion_gap(setting.layout, setting.test, [setting.site], other=setting.other, rows=config.rows)[0],
        additivity=both / of[named.PATCH] if abs(of[named.PATCH]) > 1e-6 else None,
        fits=tuple(fits),
        notes=tuple(notes),
        level=config.level,
        seed=config.seed,
        basis=parts.basis,
    )


def _arbitrary(setting: Setting, trained: Held, held: Held, progress: Progress) -> tuple[torch.Tensor, Fit]:
    """DAS towards expected answers that are dealt out at random."""
    assert setting.train is not None
    config = replace(setting.config, seed=setting.config.seed + _ARBITRARY_SEED)
    generator = torch.Generator().manual_seed(config.seed)
    towards, later = (_dealt(pairs, generator) for pairs in (setting.train, setting.test))
    found = das(setting.layout, setting.train, setting.site, config, held=trained, labels=towards, progress=progress)
    reached = _share(setting, setting.train, trained, found, towards)
    kept = _share(setting, setting.test, held, found, later)
    return found, Fit("arbitrary labels", reached, kept)


def _dealt(pairs: Pairs, generator: torch.Generator) -> torch.Tensor:
    order = torch.randperm(len(pairs), generator=generator)
    return pairs.expected[order.to(pairs.expected.device)]


def _fresh(setting: Setting, fresh: Layout, progress: Progress) -> Fit:
    """DAS on a model with random weights."""
    assert setting.train is not None
    there = replace(setting, layout=fresh, other=None)
    trained, held = there.held(setting.train), there.held(setting.test)
    found = das(fresh, setting.train, setting.site, setting.config, held=trained, progress=progress)
    return Fit(
        "the expected answers, random weights",
        _share(there, setting.train, trained, found),
        _share(there, setting.test, held, found),
    )


def _share(
    setting: Setting, pairs: Pairs, held: Held, basis: torch.Tensor, labels: torch.Tensor | None = None
) -> float:
    """How many answers a patch along `basis` makes the labels."""
    wanted = {named.PATCH: along(basis, basis)}
    found = measure(setting.layout, pairs, setting.site, held, wanted, labels=labels, rows=setting.config.rows)
    return _mean(found[named.PATCH])


def _mean(measured: Measured) -> float:
    return float(measured.hits.double().mean())
