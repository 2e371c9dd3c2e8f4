"""Site patch: the old model's weights, in part, at a few sites of the new one.

What `uphold explain flips` points at, mended there and nowhere else: BCWI (arXiv:2301.10546) restricted to the weights
of chosen sites.

    theta = theta_new + alpha (theta_old - theta_new)   at the sites,      theta = theta_new elsewhere

Nothing is trained: alpha is chosen on validation. Adapters are added to the weights first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from uphold.core.errors import UsageError
from uphold.core.progress import Progress, silent
from uphold.core.registry import repair
from uphold.repair.interpolation import InterpolationConfig, Mixture, interpolate
from uphold.repair.result import Repair

if TYPE_CHECKING:
    import torch

    from uphold.core.runs import RunStore
    from uphold.models.load import ModelLike
    from uphold.repair.protocol import Setting
    from uphold.repair.result import Form
    from uphold.tasks.base import Task


@dataclass(frozen=True)
class SitePatchConfig(InterpolationConfig):
    """Options of a site patch."""

    SEARCH: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    sites: tuple[str, ...] = ()
    """Where the weights change: `head.3.5`, `mlp.2`, `attention.1`, `residual.4` (a whole block), `module:PATH`."""


@repair("site-patch")
def site_patch(
    old: ModelLike,
    new: ModelLike,
    task: str | Path | Task,
    *,
    out: str | Path,
    config: SitePatchConfig | None = None,
    store: RunStore | None = None,
    progress: Progress = silent,
) -> Repair:
    """Interpolate the weights of a few sites towards the old model; nothing is trained.

    Args:
        old: the version that users have; a model reference or a loaded model.
        new: the version that is to replace it, of the same architecture and with the same token-id map.
        task: what to keep; alpha is chosen on its validation split, the result measured once on its test split.
        out: the folder to write to; `weights/` is the repaired model.
        config: the options; `sites` must be given.
        store: where runs are kept.
        progress: called while models are evaluated.

    Raises:
        TokenizerMismatchError: the models do not share a token-id map.
        UsageError: no sites are named, or one is not in the model; the models are of two architectures, or the new one
            is clearly worse and `config.force` is not set.
        UpholdError: see `uphold.core.errors` for what else can go wrong.
    """
    return interpolate(
        "site-patch",
        "",
        "site patch",
        old,
        new,
        task,
        out=out,
        config=config,
        default=SitePatchConfig(),
        mixture=_mixture,
        contents=lambda setting, options: sorted(set(options.sites)),
        store=store,
        progress=progress,
    )


def _mixture(setting: Setting, options: SitePatchConfig) -> Mixture:
    import copy

    from uphold.models.sites.layout import read_layout
    from uphold.models.sites.site import parse_site
    from uphold.models.sites.weights import regions
    from uphold.models.weights import merged

    if not options.sites:
        raise UsageError("a site patch needs sites (--sites head.3.5,mlp.2): 'uphold explain flips' finds some")
    new = merged(setting.new.model)
    model = copy.deepcopy(new) if new is setting.new.model else new
    layout = read_layout(model)
    theirs = dict(merged(setting.old.model).named_parameters())
    parts: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    own = dict(model.named_parameters())
    # A weight that two sites share is changed once.
    for region in dict.fromkeys(one for site in options.sites for one in regions(layout, parse_site(site))):
        place, other = region.of(own[region.parameter].data), region.of(theirs[region.parameter].data)
        parts.append((place, place.clone(), other.clone()))  # type: ignore[arg-type, attr-defined]
    return _SiteMixture(model, parts)


class _SiteMixture:
    """The new model with a share of the old one's weights at some places."""

    form: Form = "weights"
    notes: Sequence[str] = ()

    def __init__(self, model: Any, parts: Sequence[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]) -> None:
        self.model, self._parts = model, parts

    def set(self, alpha: float) -> None:
        """Write the weights of a share `alpha` of the old model."""
        import torch

        with torch.no_grad():
            for place, new, old in self._parts:
                place.copy_(torch.lerp(new.float(), old.float(), alpha))
