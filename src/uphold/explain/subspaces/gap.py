"""The illusion gap: how large an effect one direction can feign at a site, from one forward and one backward pass.

If the answer is linear in the site's activation h with slope g, a patch along the unit vector v has the effect

    (v.delta)(v.g)  <=  (delta.g + |delta||g|) / 2,   reached at v ~ delta/|delta| + g/|g|,

where patching all of h has delta.g. A site with delta.g = 0 thus still admits a direction that "explains"
|delta||g| / 2. The bound is for each pair by itself; one direction for all pairs has at most the largest eigenvalue of
mean((delta g^T + g delta^T) / 2). Our derivation, to first order of a network that is not linear; the phenomenon is
Makelov et al., arXiv:2311.17030.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from uphold.explain.subspaces.pairs import Pairs, activations, at_positions
from uphold.models.sites.layout import Layout
from uphold.models.sites.screen import gradients
from uphold.models.sites.site import Site


@dataclass(frozen=True)
class Gap:
    """Effects to first order, as the fall of the logit difference of base answer and expected answer, in logits."""

    site: str
    pairs: int
    full: float
    """Of patching the whole site: mean delta.g."""
    largest: float
    """The largest that one direction has, chosen anew for each pair: mean of the bound."""
    shared: float
    """The largest that one direction has for all pairs at once."""

    @property
    def ratio(self) -> float | None:
        """`largest` / `full`; None where the full patch has no effect in the wanted direction."""
        return self.largest / self.full if self.full > 0 else None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "site": self.site,
            "pairs": self.pairs,
            "full": self.full,
            "largest": self.largest,
            "shared": self.shared,
            "ratio": self.ratio,
        }


def largest_effect(delta: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    """Max over unit v of (v.delta)(v.g): (delta.g + |delta||g|) / 2, over the last dimension."""
    found: torch.Tensor = ((delta * slope).sum(-1) + delta.norm(dim=-1) * slope.norm(dim=-1)) / 2
    return found


def shared_effect(delta: torch.Tensor, slope: torch.Tensor) -> float:
    """Max over unit v of the mean of (v.delta)(v.g) over pairs; both of shape (n, width)."""
    delta, slope = delta.double(), slope.double()
    reduced = 2 * len(delta) < delta.shape[1]
    if reduced:
        # The form lives in the span of the vectors: a basis of it makes the matrix small.
        span = torch.linalg.qr(torch.cat([delta, slope]).T).Q
        delta, slope = delta @ span, slope @ span
    form = delta.T @ slope / len(delta)
    top = float(torch.linalg.eigvalsh((form + form.T) / 2)[-1])
    return max(top, 0.0) if reduced else top


def illusion_gap(
    layout: Layout, pairs: Pairs, sites: Sequence[Site], *, other: Layout | None = None, rows: int = 64
) -> list[Gap]:
    """The gap at each site, at the position that is patched.

    Args:
        layout: of the model that is patched.
        pairs: base and source inputs.
        sites: where.
        other: the model that the source's activations come from; the same where None.
        rows: pairs in one forward and backward pass.

    Returns:
        In the order of `sites`.
    """
    deltas: dict[Site, list[torch.Tensor]] = {site: [] for site in sites}
    slopes: dict[Site, list[torch.Tensor]] = {site: [] for site in sites}
    for some in pairs.batches(rows):
        index = torch.arange(len(some), device=some.answers.device)

        def fall(logits: torch.Tensor, some: Pairs = some, index: torch.Tensor = index) -> torch.Tensor:
            return logits[index, some.expected] - logits[index, some.answers]

        held, found = gradients(layout, some.base, sites, fall, at=some.counting)
        for site in sites:
            base = at_positions(held[site], some.patched, site)
            source = activations(other or layout, some, site, source=True, rows=rows)
            deltas[site].append((source.to(base) - base).double().cpu())
            slopes[site].append(at_positions(found[site], some.patched, site).double().cpu())
    gaps = []
    for site in sites:
        delta, slope = torch.cat(deltas[site]), torch.cat(slopes[site])
        full, largest = (delta * slope).sum(-1).mean(), largest_effect(delta, slope).mean()
        gaps.append(Gap(str(site), len(pairs), float(full), float(largest), shared_effect(delta, slope)))
    return gaps
