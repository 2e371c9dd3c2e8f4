"""Linear probes of what a skill's answer can be read from, block by block, less what shuffled labels give.

Section 3.2 of arXiv:2311.12786. A probe here is multinomial logistic regression on standardised activations, solved by
L-BFGS to its one optimum, where the paper takes 4,000 steps of AdamW.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from uphold.core.errors import UsageError
from uphold.core.stats import Interval, proportion_interval
from uphold.explain.wrappers.config import WrapperConfig
from uphold.explain.wrappers.skill import Skill, at_position
from uphold.models.sites.hooks import reading
from uphold.models.sites.layout import Layout, read_layout
from uphold.models.sites.run import ready
from uphold.models.sites.site import Site

PENALTY = 1e-3
"""Half the weight of the squared weights in the loss; it keeps the optimum unique."""
STEPS = 100
"""Of L-BFGS."""


@dataclass(frozen=True)
class Probe:
    """What can be read at one site."""

    site: str
    accuracy: float
    """On held-out instances."""
    interval: Interval
    """Wilson."""
    shuffled: float
    """Mean accuracy of probes that were fitted to shuffled labels: chance."""

    @property
    def selectivity(self) -> float:
        """Accuracy above that with shuffled labels."""
        return self.accuracy - self.shuffled


@dataclass(frozen=True)
class Profile:
    """The probes of one model, in order."""

    model: str
    probes: tuple[Probe, ...]


def default_sites(model: nn.Module) -> list[Site]:
    """The residual stream before the first block and after every block.

    Raises:
        UsageError: the model has no list of blocks.
    """
    layout = read_layout(model)
    if not layout.layers:
        raise UsageError(f"{type(model).__name__} has no list of blocks: name the sites to probe (module:PATH)")
    return [Site("residual", layer) for layer in range(-1, layout.layers)]


def profile(
    model: nn.Module,
    train: Skill,
    test: Skill,
    sites: Sequence[Site],
    *,
    name: str = "",
    config: WrapperConfig | None = None,
) -> Profile:
    """Probe a model at the position of the answer.

    Args:
        model: left as it is.
        train: instances that probes are fitted to.
        test: instances that they are measured on.
        sites: where, e.g. `default_sites(model)`.
        name: of the model.
        config: how often labels are shuffled, and by which seed.

    Raises:
        ModelError: a site is not in the model or is not met once in a pass.
        UsageError: what a site holds has positions, and the skills do not say which one counts.
    """
    config = config or WrapperConfig()
    layout = read_layout(model)
    seen, held = (activations(layout, skill, sites, config.rows) for skill in (train, test))
    classes = int(max(train.labels.max(), test.labels.max())) + 1
    generator = torch.Generator().manual_seed(config.seed)
    orders = [torch.randperm(len(train), generator=generator) for _ in range(config.shuffles)]
    probes = []
    for site in sites:
        rights = []
        for labels in (train.labels, *(train.labels[order] for order in orders)):
            guesses = fit(seen[site], labels, held[site], classes)
            rights.append(int((guesses == test.labels).sum()))
        interval = proportion_interval(rights[0], len(test), config.level, method="wilson")
        shuffled = sum(rights[1:]) / (config.shuffles * len(test))
        probes.append(Probe(str(site), rights[0] / len(test), interval, shuffled))
    return Profile(name, tuple(probes))


def activations(layout: Layout, skill: Skill, sites: Sequence[Site], rows: int = 512) -> dict[Site, torch.Tensor]:
    """What sites hold at the answer, each of shape (n, width).

    Raises:
        UsageError: there are positions, and the skill does not say which one counts.
    """
    found: dict[Site, list[torch.Tensor]] = {site: [] for site in sites}
    for start in range(0, len(skill), rows):
        part = skill.rows(slice(start, start + rows))
        with ready(layout.model), reading(layout, sites) as values:
            part.answers(layout.model)
        for site in found:
            value = at_position(values[site], part.at)
            if value.dim() != 2:
                raise UsageError(
                    f"site {site} holds {tuple(value.shape)}: give the skill the answer's positions (`at`)"
                )
            found[site].append(value.float())
    return {site: torch.cat(parts) for site, parts in found.items()}


def fit(seen: torch.Tensor, labels: torch.Tensor, held: torch.Tensor, classes: int) -> torch.Tensor:
    """Fit a probe to activations (n, d) with labels (n,), and tell the classes of others, shape (m,)."""
    middle, spread = seen.mean(0), seen.std(0).clamp_min(1e-6)
    x, other = (seen - middle) / spread, (held - middle) / spread
    weight = torch.zeros(classes, x.shape[1], device=x.device, requires_grad=True)
    bias = torch.zeros(classes, device=x.device, requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=STEPS, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        solver.zero_grad()
        loss = functional.cross_entropy(functional.linear(x, weight, bias), labels) + PENALTY * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        solver.step(closure)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        return functional.linear(other, weight, bias).argmax(1)
