"""Subspace patches that are tested before they are believed.

Makelov, Lange, Nanda, "Is This the Subspace You Are Looking for?", 2023, arXiv:2311.17030; read beside Wu et al., "A
Reply to Makelov et al. (2023)'s Interpretability Illusion Arguments", 2024, arXiv:2401.12631.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from uphold.core.progress import Progress, silent
from uphold.core.registry import explain
from uphold.explain.subspaces.config import SubspaceConfig

if TYPE_CHECKING:
    import torch

    from uphold.explain.subspaces.pairs import Pairs
    from uphold.explain.subspaces.result import SubspaceResult
    from uphold.models.sites.layout import Layout
    from uphold.models.sites.site import Site

PAPER = "arXiv:2311.17030"


@explain("subspace", paper=PAPER)
def subspace(
    model: Any,
    site: str | Site,
    test: Pairs,
    *,
    train: Pairs | None = None,
    other: Any = None,
    fresh: Any = None,
    basis: torch.Tensor | None = None,
    next_map: torch.Tensor | None = None,
    readers: Sequence[tuple[str, str]] = (),
    config: SubspaceConfig | None = None,
    progress: Progress = silent,
) -> SubspaceResult:
    """Find a direction that flips answers at a site, and say whether it is read from live directions.

    Args:
        model: what is patched: a model, its `Layout`, or a reference that `uphold.models.load.load` takes.
        site: where, e.g. `hidden.3`.
        test: pairs to measure on.
        train: pairs to find the subspace with, of other inputs; not needed with `basis`.
        other: the model that source activations come from, such as the old version; the same where None.
        fresh: a model of the same shape with random weights, for one more control of DAS.
        basis: a subspace to test, shape (n, k) or (n,).
        next_map: the matrix (n, d) that the site goes through next (h W), where it is not known by itself.
        readers: of the residual stream: sites that read it, each with the path of the norm before it or "".
        config: the options.
        progress: called after every training step and every patch.

    Raises:
        UsageError: options, shapes or pairs do not fit together.
        DataError: the model does not do the task on the pairs.
        ModelError: the site is not found, or its next map is not linear.
    """
    from uphold.explain.subspaces.diagnose import Setting, diagnose, find_map
    from uphold.models.sites.site import parse_site

    config = config or SubspaceConfig()
    place = parse_site(site) if isinstance(site, str) else site
    layout = _layout(model)
    space = find_map(layout, place, next_map=next_map, readers=readers, tolerance=config.tolerance)
    setting = Setting(layout, place, train, test, config, None if other is None else _layout(other))
    control = None if fresh is None else _layout(fresh)
    return diagnose(setting, space, basis=basis, fresh=control, progress=progress)


def _layout(model: Any) -> Layout:
    from uphold.models.load import load_module
    from uphold.models.sites.layout import Layout, read_layout

    return model if isinstance(model, Layout) else read_layout(load_module(model))
