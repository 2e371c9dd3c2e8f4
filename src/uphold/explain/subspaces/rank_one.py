"""A patch as a rank-1 edit of the next map, and a rank-1 edit as an intervention on one direction.

On the input it was made for, a patch h' = h_b + p equals the edit

    W <- W + b a^T,   a = p W,   b = Sigma^+ h_b / (h_b^T Sigma^+ h_b),

which disturbs other inputs least: it changes their h W by (h.b) a, and b^T Sigma b is the mean of (h.b)^2 under the
uncentred second moment Sigma. The other way round, the edit is nearest to the intervention h' = h - (v.h) v where

    v = argmin E[(alpha v.h + b.h)^2]   subject to   v W = alpha a.

Makelov et al., arXiv:2311.17030, section 6; the constrained least squares is solved as it stands (its KKT system).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from uphold.core.errors import DataError, ModelError, UsageError
from uphold.models.sites.layout import Layout
from uphold.models.sites.site import Site

_SMALL = 1e-9


@dataclass(frozen=True, eq=False)
class RankOneEdit:
    """W <- W + b a^T in the row convention; float64."""

    write: torch.Tensor
    """a: what is added to the output per unit of h.b, shape (d,)."""
    read: torch.Tensor
    """b: what decides how much, shape (n,)."""
    disturbance: float
    """b^T Sigma b: the mean square of h.b over inputs."""


@dataclass(frozen=True, eq=False)
class Intervention:
    """h' = h - (v.h) v, in place of a rank-1 edit."""

    direction: torch.Tensor
    """v, float64 of shape (n,); of unit length only where `alpha` was left to be chosen."""
    alpha: float
    """v W = alpha a."""
    error: float
    """E[(alpha v.h + b.h)^2]: what the intervention writes otherwise than the edit, per unit of a."""
    relative_error: float
    """`error` as a share of E[(b.h)^2]; 0 where both are one, 1 where the intervention is no better than none."""


def second_moment(activations: torch.Tensor) -> torch.Tensor:
    """Sigma: the uncentred second moment of rows of shape (m, n), float64 of shape (n, n)."""
    rows = activations.detach().cpu().double()
    return rows.T @ rows / len(rows)


def edit_of_patch(
    patch: torch.Tensor, base: torch.Tensor, weight: torch.Tensor, moment: torch.Tensor, tolerance: float = _SMALL
) -> RankOneEdit:
    """The rank-1 edit of the next map that does on one base input what a patch does.

    Args:
        patch: p = h' - h_b, shape (n,): (v.delta) v for one direction.
        base: h_b, shape (n,).
        weight: W of shape (n, d), in the row convention.
        moment: Sigma of shape (n, n), of inputs that are to be disturbed least.
        tolerance: eigenvalues of Sigma up to this share of the largest count as zero.

    Raises:
        UsageError: shapes do not fit.
        DataError: h_b is no activation that Sigma knows.
    """
    patch, base, weight, moment = (one.detach().cpu().double() for one in (patch, base, weight, moment))
    _check(weight, moment, patch, base)
    solved = torch.linalg.pinv(moment, rtol=tolerance, hermitian=True) @ base
    scale = float(base @ solved)
    if scale <= 0:
        raise DataError(
            "the base activation lies outside the second moment: estimate it on inputs that include the base"
        )
    read = solved / scale
    return RankOneEdit(patch @ weight, read, float(read @ moment @ read))


def intervention_of_edit(
    write: torch.Tensor, read: torch.Tensor, weight: torch.Tensor, moment: torch.Tensor, alpha: float | None = 1.0
) -> Intervention:
    """The intervention on one direction that is nearest to a rank-1 edit.

    Args:
        write: a of shape (d,).
        read: b of shape (n,).
        weight: W of shape (n, d).
        moment: Sigma of shape (n, n).
        alpha: scale of what v writes; None: that for which v has unit length (of two, the one with the smaller error).

    Raises:
        UsageError: shapes do not fit, or alpha is 0.
        DataError: W cannot write a; or no alpha gives unit length.
    """
    write, read, weight, moment = (one.detach().cpu().double() for one in (write, read, weight, moment))
    _check(weight, moment, read)
    if write.shape != (weight.shape[1],):
        raise UsageError(f"the edit writes {tuple(write.shape)}, but W has shape {tuple(weight.shape)}: expected (d,)")
    if alpha == 0:
        raise UsageError("alpha is 0: expected another number, or None for a direction of unit length")
    # In u = alpha v the target is alpha^2 a, and the solution is linear in alpha^2: u = fixed + alpha^2 slope.
    fixed, slope = _constrained(write, read, weight, moment)
    squares = [alpha**2] if alpha is not None else _unit(fixed, slope)
    found = []
    for square in squares:
        size = square**0.5 if alpha is None else alpha
        scaled = fixed + square * slope
        error = float((scaled + read) @ moment @ (scaled + read))
        found.append(Intervention(scaled / size, float(size), error, error / max(float(read @ moment @ read), 1e-300)))
    return min(found, key=lambda one: one.error)


def weight_change(layout: Layout, site: Site, edit: RankOneEdit) -> tuple[str, torch.Tensor]:
    """What to add to the weight that reads a site: the parameter's name, and the change in its orientation and dtype.

    Raises:
        UsageError: the site is not the input of a module.
        ModelError: the module's weight has another shape.
    """
    from transformers.pytorch_utils import Conv1D

    place = layout.place(site)
    adapted = hasattr(place.module, "base_layer")
    path, module = (f"{place.path}.base_layer", place.module.base_layer) if adapted else (place.path, place.module)
    weight = getattr(module, "weight", None)
    if place.side == "out":
        raise UsageError(f"site {site} is the output of {place.path}: expected an input, such as hidden.3 or head.3.5")
    stop = place.stop or len(edit.read)
    rows = torch.zeros(place.start, len(edit.write), dtype=torch.float64)
    change = torch.cat([rows, torch.outer(edit.read, edit.write)])
    transposed = isinstance(module, Conv1D)
    whole = 0 if weight is None else int(weight.shape[0 if transposed else 1])
    if weight is None or stop - place.start != len(edit.read) or whole < stop:
        shape = None if weight is None else tuple(weight.shape)
        raise ModelError(f"{path} has a weight of shape {shape}: an edit that reads {len(edit.read)} does not fit")
    change = torch.cat([change, torch.zeros(whole - len(change), len(edit.write), dtype=torch.float64)])
    return f"{path}.weight", (change if transposed else change.T).to(weight)


def _constrained(
    write: torch.Tensor, read: torch.Tensor, weight: torch.Tensor, moment: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Solve [[Sigma, W], [W^T, 0]] [u; lambda] = [-Sigma b; s a] for s = 0, and the change of u per unit of s."""
    n, d = weight.shape
    # Both scales to 1, so that one tolerance of the solver serves both blocks.
    scale, size = float(moment.abs().max()), float(weight.abs().max())
    matrix = torch.zeros(n + d, n + d, dtype=torch.float64)
    matrix[:n, :n], matrix[:n, n:], matrix[n:, :n] = moment / scale, weight / size, weight.T / size
    right = torch.zeros(n + d, 2, dtype=torch.float64)
    right[:n, 0], right[n:, 1] = -moment @ read / scale, write / size
    solved = torch.linalg.lstsq(matrix, right, rcond=1e-12, driver="gelsd").solution[:n]
    missing = float((weight.T @ solved[:, 1] - write).norm())
    if missing > 1e-6 * float(write.norm()):
        raise DataError(
            f"W cannot write what the edit writes ({missing / float(write.norm()):.1%} of it is left): expected a in "
            "the span of its rows"
        )
    return solved[:, 0], solved[:, 1]


def _unit(fixed: torch.Tensor, slope: torch.Tensor) -> list[float]:
    """The s > 0 with |fixed + s slope|^2 = s."""
    square, linear, constant = float(slope @ slope), float(2 * fixed @ slope) - 1, float(fixed @ fixed)
    inside = linear**2 - 4 * square * constant
    roots = [(-linear + sign * max(inside, 0.0) ** 0.5) / (2 * square) for sign in (1, -1)] if inside >= -1e-12 else []
    positive = [root for root in roots if root > _SMALL]
    if not positive:
        raise DataError("no direction of unit length writes what the edit writes: give alpha, e.g. alpha=1")
    return positive


def _check(weight: torch.Tensor, moment: torch.Tensor, *vectors: torch.Tensor) -> None:
    n = weight.shape[0] if weight.dim() == 2 else -1
    shapes = [tuple(one.shape) for one in vectors]
    if n < 0 or tuple(moment.shape) != (n, n) or any(shape != (n,) for shape in shapes):
        raise UsageError(
            f"W {tuple(weight.shape)}, second moment {tuple(moment.shape)}, vectors {shapes}: expected (n, d), (n, n) "
            "and (n,)"
        )
