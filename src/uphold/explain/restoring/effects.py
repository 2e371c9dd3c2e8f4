"""What the metric becomes when sites of the new model hold what they hold in the old one, on the same input.

The metric of an instance is how much the old answer's token is preferred at the fork,

    d = logit(old answer's token) - logit(new answer's token)

which is above 0 where the old answer is back. Output CMAP of Prakash et al., arXiv:2402.14811, section 3.4 of the
method, at all positions: the component is the old model's, the rest stays the new one's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from uphold.core.progress import Progress, silent
from uphold.explain.restoring.forks import Fork, Forks, padded
from uphold.models.sites.hooks import Edit
from uphold.models.sites.layout import Layout, check_one_architecture
from uphold.models.sites.resume import keep
from uphold.models.sites.run import read, run
from uphold.models.sites.screen import attributions
from uphold.models.sites.site import Site
from uphold.models.sites.sweep import sweep

Group = tuple[Site, ...]
"""Sites that are patched together."""


@dataclass(frozen=True)
class Hybrid:
    """Two versions of one model."""

    old: Layout
    new: Layout
    tokens: int = 2048
    """Padded tokens in one forward pass."""

    def __post_init__(self) -> None:
        check_one_architecture(self.old, self.new)

    def margins(self, forks: Forks) -> tuple[torch.Tensor, torch.Tensor]:
        """The metric of the old model and of the new one, each of shape (forks,), in the order of `forks.rows`."""
        found: dict[str, torch.Tensor] = {}
        for batch in forks.batches(self.tokens):
            inputs, at = padded(batch, _device(self.new))
            tokens = _answers(batch, at.device)
            values = [_difference(run(layout, inputs, at=at), tokens) for layout in (self.old, self.new)]
            found |= zip((row.id for row in batch), torch.stack(values, 1).cpu(), strict=True)
        both = torch.stack([found[row.id] for row in forks.rows]) if forks.rows else torch.zeros(0, 2)
        return both[:, 0], both[:, 1]

    def decided(self, forks: Forks) -> Forks:
        """Those at which the old model prefers its own answer's token and the new model its own.

        What is left out is decided behind the fork, as an answer of several tokens can be: there the metric says
        nothing of the answer.
        """
        old, new = self.margins(forks)
        rows = tuple(row for row, both in zip(forks.rows, ((old > 0) & (new < 0)).tolist(), strict=True) if both)
        return Forks(rows, forks.left_out + len(forks.rows) - len(rows))

    def screened(self, forks: Forks, sites: Sequence[Site], progress: Progress = silent) -> torch.Tensor:
        """First-order estimates of the change of the metric by each site, shape (sites, forks)."""
        found: dict[str, torch.Tensor] = {}
        for number, batch in enumerate(batches := forks.batches(self.tokens), 1):
            inputs, at = padded(batch, _device(self.new))
            source, _ = read(self.old, inputs, sites, at=at)
            tokens = _answers(batch, at.device)
            by_site = attributions(self.new, inputs, source, lambda logits, t=tokens: _difference(logits, t), at=at)  # type: ignore[misc]
            real = inputs["attention_mask"].bool()
            values = torch.stack([by_site[site].masked_fill(~real, 0).sum(1) for site in sites], 1)
            found |= zip((row.id for row in batch), values.cpu(), strict=True)
            progress("screening", number, len(batches))
        return _in_order(found, forks, len(sites))

    def patched(
        self, forks: Forks, groups: Sequence[Group], held: Sequence[Group] = (), progress: Progress = silent
    ) -> torch.Tensor:
        """The metric with each group of sites as in the old model, shape (groups, forks).

        Args:
            forks: where it is measured.
            groups: what is patched together.
            held: for each group, sites that stay what they are in the unpatched new model; none where left out.
            progress: called after every batch.
        """
        found: dict[str, torch.Tensor] = {}
        sites = list(dict.fromkeys(site for group in groups for site in group))
        kept_sites = list(dict.fromkeys(site for group in held for site in group))
        for number, batch in enumerate(batches := forks.batches(self.tokens), 1):
            inputs, at = padded(batch, _device(self.new))
            source, _ = read(self.old, inputs, sites, at=at)
            own, _ = read(self.new, inputs, kept_sites, at=at)
            candidates = [[Edit(site, source[site]) for site in group] for group in groups]
            for candidate, group in zip(candidates, held, strict=False):
                candidate += [Edit(site, own[site]) for site in group]
            tokens = _answers(batch, at.device)

            def metric(logits: torch.Tensor, rows: torch.Tensor, tokens: torch.Tensor = tokens) -> torch.Tensor:
                return _difference(logits, tokens[rows])

            values = sweep(self.new, keep(self.new, inputs, at), candidates, metric, tokens=self.tokens)
            found |= zip((row.id for row in batch), values.T.cpu(), strict=True)
            progress("patching", number, len(batches))
        return _in_order(found, forks, len(groups))


def _answers(rows: Sequence[Fork], device: torch.device) -> torch.Tensor:
    """The old answer's token and the new one's, shape (rows, 2)."""
    return torch.tensor([[row.old, row.new] for row in rows], device=device)


def _difference(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    both = logits.gather(1, tokens).float()
    return both[:, 0] - both[:, 1]


def _in_order(found: dict[str, torch.Tensor], forks: Forks, count: int) -> torch.Tensor:
    if not forks.rows:
        return torch.zeros(count, 0)
    return torch.stack([found[row.id] for row in forks.rows], 1)


def _device(layout: Layout) -> torch.device:
    device: torch.device = next(layout.model.parameters()).device
    return device
