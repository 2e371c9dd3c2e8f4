"""Subspaces of a site's activations: by search (DAS), by class means, by a linear probe, at random.

DAS: distributed alignment search, Geiger et al., 2023, arXiv:2303.02536, with the settings of Makelov et al.,
arXiv:2311.17030. All return orthonormal columns of shape (n, k), float64 on the CPU.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn import functional

from uphold.core.errors import DataError, ModelError, UsageError
from uphold.core.progress import Progress, silent
from uphold.explain.subspaces.config import SubspaceConfig
from uphold.explain.subspaces.pairs import Pairs, activations
from uphold.models.sites.hooks import Edit
from uphold.models.sites.layout import Layout
from uphold.models.sites.resume import Kept, keep, kept_bytes, resume
from uphold.models.sites.run import frozen, run
from uphold.models.sites.site import Site
from uphold.models.sites.sweep import mask_at

_PENALTY = 1e-3
_PROBE_STEPS = 200
MOST_KEPT = 2**30
"""Bytes that DAS may keep of runs to go on from."""


class Held(NamedTuple):
    """What a site holds in pairs, each of shape (n pairs, width)."""

    base: torch.Tensor
    source: torch.Tensor


def orthonormal(columns: torch.Tensor) -> torch.Tensor:
    """Orthonormal columns with the same span, float64.

    Args:
        columns: shape (n, k), or (n,) for one direction, which is divided by its norm.

    Raises:
        UsageError: they are not finite, or not linearly independent.
    """
    columns = columns.detach().cpu().double()
    columns = columns[:, None] if columns.dim() == 1 else columns
    if columns.dim() != 2 or not bool(torch.isfinite(columns).all()):
        raise UsageError(f"a subspace of shape {tuple(columns.shape)}: expected (n, k) finite numbers")
    n, k = columns.shape
    values = torch.linalg.svdvals(columns)
    if not 1 <= k <= n or float(values[-1]) <= 1e-9 * float(values[0]):
        raise UsageError(f"{k} columns of {n} numbers do not span {k} dimensions: expected independent columns")
    unit: torch.Tensor = columns / columns.norm() if k == 1 else torch.linalg.qr(columns).Q
    return unit


def random_subspace(width: int, k: int, seed: int) -> torch.Tensor:
    """K random dimensions, uniform over all subspaces."""
    _check_k(k, width)
    drawn = torch.randn(width, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return orthonormal(drawn)


def mean_difference(held: Held, classes: tuple[torch.Tensor, torch.Tensor], k: int = 1) -> torch.Tensor:
    """The directions along which the means of the classes differ most; of two classes, the difference.

    Raises:
        UsageError: k is not below the number of classes.
        DataError: the means do not differ in k directions.
    """
    means = torch.stack([part.mean(0) for part in _by_class(held, classes, k)])
    return _leading(means - means.mean(0), k, "the class means")


def probe(held: Held, classes: tuple[torch.Tensor, torch.Tensor], k: int = 1) -> torch.Tensor:
    """The leading directions of the weights of a multinomial logistic regression with a ridge penalty.

    Activations are centred and divided by one number, so that the result turns with the basis of the space.

    Raises:
        UsageError: k is not below the number of classes.
        DataError: the weights have no k directions.
    """
    parts = _by_class(held, classes, k)
    inputs = torch.cat(parts)
    inputs = inputs - inputs.mean(0)
    inputs = inputs / inputs.norm(dim=1).mean().clamp(min=1e-30)
    labels = torch.cat([torch.full((len(part),), number) for number, part in enumerate(parts)])
    weight = torch.zeros(inputs.shape[1], len(parts), dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(len(parts), dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=_PROBE_STEPS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        solver.zero_grad()
        value = functional.cross_entropy(inputs @ weight + bias, labels) + _PENALTY * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    with torch.enable_grad():
        solver.step(loss)  # type: ignore[no-untyped-call]
    found = weight.detach().T
    return _leading(found - found.mean(0), k, "the probe's weights")


def das(
    layout: Layout,
    pairs: Pairs,
    site: Site,
    config: SubspaceConfig,
    *,
    held: Held | None = None,
    labels: torch.Tensor | None = None,
    progress: Progress = silent,
) -> torch.Tensor:
    """The subspace whose patch brings about the expected answers, by gradient search with all weights frozen.

    An (n, k) matrix is trained with Adam, and its Q of QR is the basis. Written for few dimensions: a square matrix, as
    in the authors' code, would cost n x n numbers for the k columns that are used.

    Args:
        layout: of the model.
        pairs: to train on; no others than those may be measured afterwards.
        site: where.
        config: `k`, `loss`, `lr`, `final_lr`, `epochs`, `batch` and `seed`.
        held: what the site holds, where that is known or comes from another version.
        labels: the answers to bring about, shape (n,); the expected ones where None.
        progress: called after every step.

    Raises:
        ModelError: the loss is not finite.
    """
    held = held or Held(activations(layout, pairs, site), activations(layout, pairs, site, source=True))
    labels = pairs.expected if labels is None else labels
    _check_k(config.k, held.base.shape[1])
    generator = torch.Generator().manual_seed(config.seed)
    start = torch.randn(held.base.shape[1], config.k, generator=generator)
    raw = torch.linalg.qr(start).Q.to(held.base.device).requires_grad_(True)
    steps_per_epoch = -(-len(pairs) // config.batch)
    steps = config.epochs * steps_per_epoch
    solver = torch.optim.Adam([raw], lr=config.lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(solver, lambda step: 1 - (1 - config.final_lr) * step / steps)
    done = 0
    kept = kept_run(layout, pairs, site)
    with frozen(layout.model), torch.enable_grad():
        for _ in range(config.epochs):
            for rows in torch.split(torch.randperm(len(pairs), generator=generator), config.batch):
                base, delta = held.base[rows].float(), (held.source[rows] - held.base[rows]).float()
                basis = torch.linalg.qr(raw).Q
                values = base + delta @ basis @ basis.T
                if kept is None:
                    logits = patched_logits(layout, pairs.chosen(rows), site, values, grad=True)
                else:
                    logits = resumed_logits(layout, kept, pairs, site, values, rows, grad=True)
                value = _loss(logits, pairs.answers[rows], labels[rows], config)
                if not bool(torch.isfinite(value)):
                    raise ModelError(f"DAS at {site}: the loss is {value.item()} at step {done}: lower lr={config.lr}")
                solver.zero_grad()
                value.backward()  # type: ignore[no-untyped-call]
                solver.step()
                schedule.step()
                done += 1
                progress(f"DAS at {site}", done, steps, f"loss {value.item():.3f}")
    return orthonormal(raw)


def patched_logits(
    layout: Layout, pairs: Pairs, site: Site, values: torch.Tensor, *, grad: bool = False
) -> torch.Tensor:
    """The logits that count when a site holds `values` (n, width) at the position that is patched, shape (n, V)."""
    positions = pairs.patched

    def put(old: torch.Tensor) -> torch.Tensor:
        if old.dim() == 2 or positions is None:
            return values
        where = mask_at((old.shape[0], old.shape[1]), positions.cpu()).to(old.device)
        return torch.where(where[..., None], values[:, None].to(old), old)

    return run(layout, pairs.base, [Edit(site, put)], at=pairs.counting, grad=grad)


def kept_run(layout: Layout, pairs: Pairs, site: Site) -> Kept | None:
    """The run of the bases to go on from; None where the site is not known to be in a block, or it takes too much."""
    in_block = layout.layers and site.kind not in ("module", "module-input")
    if isinstance(pairs.base, torch.Tensor) or not in_block or pairs.patched is None or pairs.counting is None:
        return None
    inputs = {name: value for name, value in pairs.base.items() if isinstance(value, torch.Tensor)}
    if kept_bytes(layout, inputs) > MOST_KEPT:
        return None
    return keep(layout, inputs, pairs.counting)


def resumed_logits(
    layout: Layout,
    kept: Kept,
    pairs: Pairs,
    site: Site,
    values: torch.Tensor,
    rows: torch.Tensor | None = None,
    *,
    grad: bool = False,
) -> torch.Tensor:
    """What `patched_logits` gives, without the blocks and positions before the patch; of all rows where None."""
    assert pairs.patched is not None
    length = kept.inputs["input_ids"].shape[1]
    positions, at = pairs.patched % length, kept.at
    if rows is not None:
        positions, at = positions[rows], at[rows]
    edit = Edit(site, values[:, None].expand(-1, length, -1), mask_at((len(values), length), positions.cpu()))
    layer = min(max(site.layer + (site.kind == "residual"), 0), layout.layers)
    start = min(int(positions.min()), int(at.min()))
    return resume(layout, kept, [edit], layer=layer, start=start, rows=rows, grad=grad)


def _loss(logits: torch.Tensor, answers: torch.Tensor, labels: torch.Tensor, config: SubspaceConfig) -> torch.Tensor:
    labels = labels.to(logits.device)
    if config.loss == "cross-entropy":
        return functional.cross_entropy(logits.float(), labels)
    rows = torch.arange(len(logits), device=logits.device)
    return (logits[rows, answers.to(logits.device)] - logits[rows, labels]).float().mean()


def _by_class(held: Held, classes: tuple[torch.Tensor, torch.Tensor], k: int) -> list[torch.Tensor]:
    values = torch.cat([held.base, held.source]).cpu().double()
    of = torch.cat([one.cpu() for one in classes])
    known = torch.unique(of)
    if not 1 <= k < len(known):
        raise UsageError(
            f"k={k} with {len(known)} classes: expected k below the number of classes; direction='das' has no limit"
        )
    return [values[of == one] for one in known]


def _leading(rows: torch.Tensor, k: int, what: str) -> torch.Tensor:
    _, values, right = torch.linalg.svd(rows, full_matrices=False)
    if float(values[k - 1]) <= 1e-9 * float(values[0]) or not float(values[0]):
        raise DataError(f"{what} do not differ in {k} directions: the site does not tell the classes apart there")
    found: torch.Tensor = right[:k].T
    return found


def _check_k(k: int, width: int) -> None:
    if not 1 <= k <= width:
        raise UsageError(f"k={k} at a site of {width} numbers: expected 1 to {width}")
