"""Edges between parts: estimated for all, patched for the strongest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch

from uphold.core.errors import UsageError
from uphold.core.progress import Progress, silent
from uphold.explain.circuits.loaded import layout_for
from uphold.explain.circuits.measures import measured, of_all
from uphold.explain.circuits.patching import check_paired
from uphold.explain.circuits.prompts import Prompts
from uphold.explain.edges import EdgesConfig
from uphold.models.sites.edges import ENTRY, Edge, Stream, edge_attributions, patched_edges, read_stream
from uphold.models.sites.layout import Layout, check_one_architecture
from uphold.models.sites.resume import keep
from uphold.models.sites.run import read
from uphold.models.sites.site import Kind, Site


@dataclass(frozen=True)
class EdgeEffects:
    """What edges do to the measure; means over prompts."""

    measure: str
    prompts: int
    clean: float
    """The measure without a patch."""
    patched: float
    """The measure where everything is patched: of the other prompts, or of the other version."""
    estimates: dict[Edge, float]
    """Change of the measure to first order, of every edge."""
    exact: dict[Edge, float]
    """Change of the measure when the edge is patched, of those whose estimate is largest in size."""

    def ranked(self) -> list[tuple[Edge, float]]:
        """The patched edges, the largest change first."""
        return sorted(self.exact.items(), key=lambda pair: (-abs(pair[1]), str(pair[0])))

    @property
    def agreement(self) -> float | None:
        """Rank correlation (Spearman) of estimates and exact changes over patched edges; None where not defined."""
        from scipy.stats import spearmanr

        pairs = [(self.estimates[edge], value) for edge, value in self.exact.items()]
        one, other = zip(*pairs, strict=True)
        if len(set(one)) < 2 or len(set(other)) < 2:
            return None
        return float(spearmanr(one, other).statistic)

    def __str__(self) -> str:
        said = "not defined" if self.agreement is None else f"{self.agreement:+.2f}"
        lines = [
            f"{self.prompts} prompts: {self.measure} {self.clean:.3f}, all patched {self.patched:.3f}; "
            f"{len(self.exact)} of {len(self.estimates)} edges patched, rank correlation with their estimates {said}"
        ]
        width = max(len(str(edge)) for edge in self.exact)
        lines += [f"{edge!s:{width}}  {value:+.4f} (estimate {self.estimates[edge]:+.4f})" for edge, value in
                  self.ranked()]  # fmt: skip
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "measure": self.measure,
            "prompts": self.prompts,
            "clean": self.clean,
            "patched": self.patched,
            "agreement": self.agreement,
            "estimates": {str(edge): value for edge, value in self.estimates.items()},
            "exact": {str(edge): value for edge, value in self.ranked()},
        }


def edge_effects(
    model: Any,
    clean: Prompts,
    corrupt: Prompts | None,
    other: Any,
    config: EdgesConfig,
    progress: Progress = silent,
) -> EdgeEffects:
    """See `uphold.explain.edges.edges`."""
    layout, donor = _versions(model, clean, corrupt, other)
    device = next(layout.model.parameters()).device
    clean, corrupt = clean.to(device), (clean if corrupt is None else corrupt).to(device)
    stream = read_stream(layout, clean.inputs)
    senders = [ENTRY, *layout.sites(*cast(tuple[Kind, ...], config.senders))]
    edges = stream.edges(senders)
    parts = list(zip(clean.batches(config.batch), corrupt.batches(config.batch), strict=True))
    sums = torch.zeros(len(edges))
    before = after = 0.0
    for number, (ours, theirs) in enumerate(parts, 1):
        source, logits = _source(stream, donor, senders, theirs)
        metric = of_all(config.measure, ours)
        found = edge_attributions(
            stream, ours.inputs, source, metric, at=ours.at, where=_real(ours), steps=config.steps
        )
        sums += torch.stack([found[edge].float().sum() for edge in edges]).cpu()
        after += float(metric(logits).sum())
        progress("edge attribution", number, len(parts))
    order = sums.abs().argsort(descending=True, stable=True)[: config.confirm].tolist()
    chosen = [edges[index] for index in order]
    changed = torch.zeros(len(chosen))
    for number, (ours, theirs) in enumerate(parts, 1):
        source, _ = _source(stream, donor, list({edge.sender: None for edge in chosen}), theirs)
        kept = keep(layout, ours.inputs, ours.at)
        values = patched_edges(stream, kept, source, chosen, measured(config.measure, ours), where=_real(ours))
        start = of_all(config.measure, ours)(kept.logits).float()
        before += float(start.sum())
        changed += (values.to(start) - start).sum(1).cpu()
        progress("patching edges", number, len(parts))
    rows = len(clean)
    return EdgeEffects(
        config.measure,
        rows,
        before / rows,
        after / rows,
        dict(zip(edges, (sums / rows).tolist(), strict=True)),
        dict(zip(chosen, (changed / rows).tolist(), strict=True)),
    )


def _versions(model: Any, clean: Prompts, corrupt: Prompts | None, other: Any) -> tuple[Layout, Layout]:
    if corrupt is None and other is None:
        raise UsageError("edges need something to put in: give other prompts (corrupt=) or another version (other=)")
    if corrupt is not None:
        check_paired(clean, corrupt)
        if corrupt.length != clean.length:
            raise UsageError(f"prompts of {clean.length} and {corrupt.length} positions: expected the same length")
    layout = layout_for(model)
    if other is None:
        return layout, layout
    donor = layout_for(other)
    check_one_architecture(layout, donor)
    return layout, donor


def _source(
    stream: Stream, donor: Layout, senders: list[Site], prompts: Prompts
) -> tuple[dict[Site, torch.Tensor], torch.Tensor]:
    """What senders hold in the other run, and its logits."""
    sites = {sender: stream.writing(sender) for sender in senders}
    found, logits = read(donor, prompts.inputs, list(dict.fromkeys(sites.values())), at=prompts.at)
    return {sender: found[site] for sender, site in sites.items()}, logits


def _real(prompts: Prompts) -> torch.Tensor | None:
    mask = prompts.inputs.get("attention_mask")
    return None if mask is None else mask.bool()
