"""What heads write on average: what a mean ablation puts in their place."""

from __future__ import annotations

import torch

from uphold.core.errors import EmptyError
from uphold.core.progress import Progress, silent
from uphold.explain.circuits.prompts import BATCH, Prompts
from uphold.models.sites.layout import Layout
from uphold.models.sites.run import read
from uphold.models.sites.site import Site


def mean_activations(
    layout: Layout, reference: Prompts, *, batch: int = BATCH, progress: Progress = silent
) -> dict[Site, torch.Tensor]:
    """The mean over prompts of what every head writes, at each position.

    A mean keeps what all prompts of the reference share. In the paper their queries are drawn at random, so that it
    says nothing of the query (arXiv:2402.14811).

    Args:
        layout: of the model.
        reference: the prompts; padding does not count.
        batch: prompts in one forward pass.
        progress: called after every batch.

    Returns:
        By head, shape (positions, width).

    Raises:
        EmptyError: no prompt has a token at some position.
    """
    sites = layout.sites("head")
    sums: dict[Site, torch.Tensor] = {}
    counts = torch.zeros(reference.length, dtype=torch.float64)
    parts = list(reference.batches(batch))
    for number, part in enumerate(parts):
        held, _ = read(layout, part.inputs, sites, at=part.at)
        there = part.inputs.get("attention_mask", torch.ones_like(part.inputs["input_ids"])).double()
        counts += there.sum(0).cpu()
        for site, values in held.items():
            weighed = (values.double() * there.to(values.device)[..., None]).sum(0)
            sums[site] = sums[site] + weighed if site in sums else weighed
        progress("mean activations", number + 1, len(parts))
    if bool((counts == 0).any()):
        raise EmptyError(f"no reference prompt is longer than {int((counts > 0).sum())} tokens of {len(counts)}: cut")
    return {site: (values / counts.to(values.device)[:, None]).float() for site, values in sums.items()}
