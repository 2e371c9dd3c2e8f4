"""First-order estimates of what patches do, for all sites from one forward and one backward pass.

    effect of patching a site with a'  ~  (a' - a) . dm/da

Syed et al., "Attribution patching outperforms automated circuit discovery", 2023, arXiv:2310.10348; averaged over
steps between the two inputs (integrated gradients): Hanna et al., 2024, arXiv:2403.17806. A screen, not a result: what
it ranks highest is to be patched (`uphold.models.sites.sweep`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from uphold.core.errors import UsageError
from uphold.models.sites.hooks import Edit, Inputs, sliced
from uphold.models.sites.layout import Layout, Place
from uphold.models.sites.run import frozen, read
from uphold.models.sites.site import Site


def gradients(
    layout: Layout,
    inputs: Inputs,
    sites: Sequence[Site],
    metric: Callable[[torch.Tensor], torch.Tensor],
    edits: Sequence[Edit] = (),
    *,
    at: torch.Tensor | None = None,
) -> tuple[dict[Site, torch.Tensor], dict[Site, torch.Tensor]]:
    """What sites hold, and the gradient of a number there; the model's weights get none.

    Args:
        layout: of the model.
        inputs: what it is called with.
        sites: where.
        metric: logits to one number for each row, shape (rows,); rows do not depend on each other.
        edits: what is overwritten meanwhile.
        at: the position that counts in each row.

    Returns:
        Activations and gradients by site, each (rows, positions, width).
    """
    whole = {site: _module_of(layout.place(site)) for site in sites}
    probes: dict[Site, torch.Tensor] = {}

    def probed(module: Site) -> Callable[[torch.Tensor], torch.Tensor]:
        def value(old: torch.Tensor) -> torch.Tensor:
            probes[module] = torch.zeros_like(old, requires_grad=True)
            return old + probes[module]

        return value

    modules = list(dict.fromkeys(whole.values()))
    steps = [*edits, *(Edit(module, probed(module)) for module in modules)]
    with frozen(layout.model):
        found, logits = read(layout, inputs, modules, steps, at=at, grad=True)
        slopes = torch.autograd.grad(metric(logits).sum(), [probes[module] for module in modules])
    slope = dict(zip(modules, slopes, strict=True))
    places = {site: layout.place(site) for site in sites}
    return (
        {site: sliced(found[whole[site]], places[site]).detach() for site in sites},
        {site: sliced(slope[whole[site]], places[site]) for site in sites},
    )


def attributions(
    layout: Layout,
    inputs: Inputs,
    source: Mapping[Site, torch.Tensor],
    metric: Callable[[torch.Tensor], torch.Tensor],
    *,
    at: torch.Tensor | None = None,
    steps: int = 1,
) -> dict[Site, torch.Tensor]:
    """What patching each site with `source` would do to the metric, to first order.

    Args:
        layout: of the model.
        inputs: the run that is to be patched.
        source: by site, what is to be put in, shape (rows, positions, width).
        metric: logits to one number for each row.
        at: the position that counts in each row.
        steps: above 1, gradients are averaged over so many points on the way of the embeddings to those of the source,
            which then has to hold the site residual.-1 as well.

    Returns:
        By site, shape (rows, positions).
    """
    sites = list(source)
    base, slopes = mean_gradients(layout, inputs, sites, metric, source.get(Site("residual", -1)), at=at, steps=steps)
    return {site: ((source[site].to(base[site]) - base[site]) * slopes[site]).sum(-1) for site in sites}


def mean_gradients(
    layout: Layout,
    inputs: Inputs,
    sites: Sequence[Site],
    metric: Callable[[torch.Tensor], torch.Tensor],
    entry: torch.Tensor | None,
    *,
    at: torch.Tensor | None = None,
    steps: int = 1,
) -> tuple[dict[Site, torch.Tensor], dict[Site, torch.Tensor]]:
    """What sites hold, as `gradients` gives it, and its gradients, averaged over steps.

    Args:
        layout: of the model.
        inputs: what it is called with.
        sites: where.
        metric: logits to one number for each row.
        entry: the embeddings to go to, shape (rows, positions, hidden); needed for more than one step.
        at: the position that counts in each row.
        steps: points from the embeddings of the inputs (the first) on the way to `entry`.

    Raises:
        UsageError: there are several steps and no `entry`.
    """
    if steps > 1 and entry is None:
        raise UsageError("gradients are averaged between two inputs: the source must hold residual.-1 as well")
    base, slopes = gradients(layout, inputs, sites, metric, at=at)
    for step in range(1, steps):

        def between(old: torch.Tensor, part: float = step / steps) -> torch.Tensor:
            assert entry is not None
            return old + part * (entry.to(old) - old)

        more = gradients(layout, inputs, sites, metric, [Edit(Site("residual", -1), between)], at=at)[1]
        slopes = {site: slopes[site] + more[site] for site in sites}
    return base, {site: slope / steps for site, slope in slopes.items()}


def _module_of(place: Place) -> Site:
    return Site("module" if place.side == "out" else "module-input", path=place.path)
