"""What the next linear map can transmit of a site, and the split of a subspace along it.

    W = A S B^T,  Q = the first r columns of A,  U_row = Q Q^T U,  U_null = U - U_row,  U_null^T W = 0

in the row convention: a site's activation h of n numbers goes on as h W, with W of shape (n, d). Makelov et al.,
arXiv:2311.17030, sections 3 and 4; by singular values, so that directions that are only numerically alive count as
dead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from uphold.core.errors import ModelError, UsageError
from uphold.models.sites.layout import Layout, Place
from uphold.models.sites.run import ready
from uphold.models.sites.site import Site, parse_site
from uphold.models.sites.weights import matrix_of

_SAME = 1e-6
"""Cosines and sines below it are rounding."""


@dataclass(frozen=True, eq=False)
class RowSpace:
    """The directions of a site that a map transmits."""

    basis: torch.Tensor
    """Q: orthonormal columns, float64 of shape (n, r)."""
    tolerance: float
    """Singular values up to this share of the largest counted as zero."""
    name: str
    """Of the map."""
    proxy: bool = False
    """Whether more may go on from the site than through this map."""

    @property
    def width(self) -> int:
        """n: numbers at the site."""
        return self.basis.shape[0]

    @property
    def rank(self) -> int:
        """r: of the map."""
        return self.basis.shape[1]


@dataclass(frozen=True, eq=False)
class Split:
    """A subspace, and what of it a map transmits; all float64."""

    basis: torch.Tensor
    """U: orthonormal columns, shape (n, k)."""
    row: torch.Tensor
    """Q Q^T U, shape (n, k)."""
    null: torch.Tensor
    """U - Q Q^T U, shape (n, k)."""
    row_basis: torch.Tensor
    """Orthonormal columns with the span of `row`, shape (n, at most k)."""
    null_basis: torch.Tensor
    """Orthonormal columns with the span of `null`, shape (n, at most k)."""
    cosines: tuple[float, ...]
    """Of the principal angles between the subspace and the row space, the largest first, in [0, 1]; for one direction
    |v_row|."""

    @property
    def row_share(self) -> float:
        """Mean squared cosine: |v_row|^2 for one direction; r / n for a random one."""
        return sum(cosine**2 for cosine in self.cosines) / len(self.cosines)


def row_space(weight: torch.Tensor, tolerance: float | None = None, name: str = "the given map") -> RowSpace:
    """The row space of a map.

    Args:
        weight: W of shape (n, d), which takes h to h W.
        tolerance: see `RowSpace`; None: max(n, d) times the spacing of the weights' floats at 1, at least
            float32's, and at most 0.01.
        name: of the map, for messages.

    Raises:
        ModelError: it is no matrix of finite numbers, or zero.
    """
    if weight.dim() != 2 or not bool(torch.isfinite(weight).all()):
        raise ModelError(f"{name} has shape {tuple(weight.shape)}: expected a matrix (n, d) of finite numbers")
    if tolerance is None:
        spacing = torch.finfo(weight.dtype if weight.is_floating_point() else torch.float32).eps
        tolerance = max(weight.shape) * max(spacing, torch.finfo(torch.float32).eps)
        # Of coarse floats the product can exceed any singular value.
        tolerance = min(tolerance, 1e-2)
    left, values, _ = torch.linalg.svd(weight.detach().cpu().double(), full_matrices=False)
    if not float(values.max()):
        raise ModelError(f"{name} is zero: nothing at the site can have an effect through it")
    return RowSpace(left[:, values > tolerance * values[0]], float(tolerance), name)


def split(basis: torch.Tensor, space: RowSpace) -> Split:
    """Split a subspace along a map's row space.

    Args:
        basis: orthonormal columns, shape (n, k).
        space: of the map.

    Raises:
        UsageError: they are of different widths.
    """
    if basis.shape[0] != space.width:
        raise UsageError(f"the subspace has {basis.shape[0]} numbers, but {space.name} takes {space.width}")
    basis = basis.detach().cpu().double()
    inside = space.basis.T @ basis
    row = space.basis @ inside
    null = basis - row
    cosines = torch.zeros(basis.shape[1], dtype=torch.float64)
    left, values, _ = torch.linalg.svd(inside, full_matrices=False)
    cosines[: len(values)] = values.clamp(max=1)
    alive = space.basis @ left[:, values > _SAME]
    dead_left, sines, _ = torch.linalg.svd(null, full_matrices=False)
    return Split(basis, row, null, alive, dead_left[:, sines > _SAME], tuple(cosines.tolist()))


def next_map(layout: Layout, site: Site) -> tuple[torch.Tensor, str]:
    """The linear map that a site's numbers go through next: W of shape (n, d), and its name.

    Known where the site is the input of a linear module: `hidden` (the down-projection, gated or not), `head` (that
    head's slice of the output projection) and `module<PATH`.

    Raises:
        UsageError: there is none; give the matrix, or the modules that read the site.
        ModelError: the module is not linear.
    """
    place = layout.place(site)
    if place.side == "out":
        raise UsageError(
            f"site {site} has no single next map: name what reads it (readers=[('query.9.6', 'PATH OF THE NORM')]), or "
            "give the matrix (next_map=...)"
        )
    weight = _matrix(layout, place)
    return (weight[place.start : place.stop] if place.stop else weight), place.path


def reader_map(layout: Layout, readers: Sequence[tuple[str, str]]) -> tuple[torch.Tensor, str]:
    """What known readers of the residual stream see of it: their matrices side by side, shape (n, sum of widths).

    A proxy: what nobody in the list reads may still be read elsewhere, and a long list sees everything and tells
    nothing. A norm before the reader is folded in: its gain, and the centring of a LayerNorm, which hides one
    direction.

    Args:
        layout: of the model.
        readers: sites that are the output of a linear module (`query.9.6`, `module:PATH`), each with the path of the
            norm before it, or "".

    Raises:
        UsageError: there is no reader, or one is not the output of a module.
        ModelError: a module is not linear.
    """
    if not readers:
        raise UsageError("no reader is named: give e.g. readers=[('query.9.6', 'transformer.h.9.ln_1')]")
    parts = []
    for text, norm in readers:
        place = layout.place(parse_site(text))
        if place.side == "in":
            raise UsageError(
                f"reader {text} is the input of a module: expected an output, e.g. query.9.6 or module:PATH"
            )
        weight = _matrix(layout, place)
        weight = weight[:, place.start : place.stop] if place.stop else weight
        parts.append(_folded(layout, norm, weight) if norm else weight)
    return torch.cat(parts, dim=1), " + ".join(text for text, _ in readers)


def _matrix(layout: Layout, place: Place) -> torch.Tensor:
    try:
        return matrix_of(layout, place.path, place.module)
    except ModelError as error:
        raise ModelError(f"{error}; give the matrix (next_map=...)") from error


def _folded(layout: Layout, norm: str, weight: torch.Tensor) -> torch.Tensor:
    place = layout.place(Site("module", path=norm))
    unit = torch.eye(len(weight), device=weight.device, dtype=weight.dtype)
    with ready(layout.model):
        # Unit vectors share one scale, so the odd part is centring and gain up to a factor.
        odd = place.module(unit) - place.module(-unit)
    folded: torch.Tensor = odd @ weight
    return folded
