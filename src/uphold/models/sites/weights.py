"""Which weights a site is computed with, what a repair of that site may change, and the matrix of a linear module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from uphold.core.errors import ModelError, UsageError
from uphold.models.sites.layout import Layout, Place, read_layout
from uphold.models.sites.run import ready
from uphold.models.sites.site import Site

_ROWS = 1024


class Region(NamedTuple):
    """A part of a parameter: all of it, or a slice along one dimension."""

    parameter: str
    """As `named_parameters` of the model calls it."""
    dim: int
    start: int
    stop: int
    """From `start` to `stop` along `dim`; all of it where `stop` is 0."""

    def of(self, tensor: object) -> object:
        """The part of a tensor of the parameter's shape, as a view."""
        return tensor.narrow(self.dim, self.start, self.stop - self.start) if self.stop else tensor  # type: ignore[attr-defined]


def regions(layout: Layout, site: Site) -> list[Region]:
    """The weights that a site is computed with.

    Of a head its columns of the output projection and its rows of the query projection, and of key and value where no
    other head shares them; of an attention or a feed-forward part all of its parameters; of the residual stream those
    of the whole block.

    Args:
        layout: of a model without an adapter.
        site: of a block, or the output of a module.

    Raises:
        UsageError: the site has no weights of its own.
    """
    if site.kind == "head":
        kinds = ["query"] + (["key", "value"] if layout.key_heads == layout.heads else [])
        parts = [Site(kind, site.layer, site.head) for kind in kinds]  # type: ignore[arg-type]
        return [region for one in (site, *parts) for region in _sliced(layout.place(one))]
    if site.kind in ("query", "key", "value"):
        return _sliced(layout.place(site))
    path = part_of(layout, site)
    found = [name for name, _ in layout.model.named_parameters() if name.startswith(f"{path}.")]
    if not found:
        raise UsageError(f"site {site} has no weights of its own")
    return [Region(name, 0, 0, 0) for name in found]


def part_of(layout: Layout, site: Site) -> str:
    """Path of the module that computes a site: of a head, the attention of its block.

    Raises:
        UsageError: no module does; or the site is not in the model.
    """
    if site.kind == "residual" and site.layer < 0:
        raise UsageError("residual.-1 is what the embeddings give: name one of the blocks' sites")
    path = layout.place(site).path
    if site.kind in ("head", "attention", "query", "key", "value"):
        return path.rpartition(".")[0]
    return layout.place(Site("mlp", site.layer)).path if site.kind == "hidden" else path


def train_only(model: Any, sites: Sequence[Site]) -> None:
    """Let nothing but what computes these sites be trained, of what could be trained before.

    Raises:
        UsageError: there is nothing to train at one of them.
    """
    layout = read_layout(model)
    parts = {part_of(layout, site): site for site in sites}
    trained = dict.fromkeys(parts, 0)
    for name, parameter in model.named_parameters():
        inside = [path for path in parts if name.startswith(f"{path}.")]
        if not inside:
            parameter.requires_grad_(False)
        for path in inside:
            trained[path] += parameter.requires_grad
    idle = next((path for path, count in trained.items() if not count), None)
    if idle is not None:
        raise UsageError(f"site {parts[idle]}: the adapter has nothing to train in {idle}; name other sites")


def matrix_of(layout: Layout, path: str, module: Any) -> torch.Tensor:
    """The matrix of a linear module in the row convention, shape (inputs, outputs): also of one with an adapter.

    Args:
        layout: of the model.
        path: of the module, for messages.
        module: found there.

    Raises:
        ModelError: the module is not linear.
    """
    if type(module) is nn.Linear or isinstance(module, Conv1D):
        weight: torch.Tensor = module.weight.detach()
        return weight if isinstance(module, Conv1D) else weight.T
    inner = getattr(module, "base_layer", module)
    plain = getattr(inner, "weight", None)
    if plain is None or plain.dim() != 2:
        raise ModelError(f"{path} is a {type(module).__name__}: expected a linear module")
    width = int(getattr(inner, "in_features", plain.shape[0]))
    kind = {"device": plain.device, "dtype": plain.dtype if plain.is_floating_point() else torch.float32}
    with ready(layout.model):
        zero = module(torch.zeros(1, width, **kind))
        rows = [module(part) - zero for part in torch.split(torch.eye(width, **kind), _ROWS)]
        weight = torch.cat(rows)
        probe = torch.linspace(-1, 2, width, **kind)[None]
        wanted, given = module(probe) - zero, probe @ weight
    if not torch.allclose(wanted, given, rtol=1e-2, atol=1e-3 * float(wanted.abs().max() + 1e-30)):
        raise ModelError(f"{path} is a {type(module).__name__}, which is not linear")
    return weight


def _sliced(place: Place) -> list[Region]:
    transposed = isinstance(place.module, Conv1D)
    outputs = 1 if transposed else 0
    dim = outputs if place.side == "out" else 1 - outputs
    found = [Region(f"{place.path}.weight", dim, place.start, place.stop)]
    if place.side == "out" and getattr(place.module, "bias", None) is not None:
        found.append(Region(f"{place.path}.bias", 0, place.start, place.stop))
    return found
