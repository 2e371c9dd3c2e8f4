"""Patches along a subspace and the controls that belong to them, and what they do to the answers.

    patch           h' = h_b + U U^T delta                  delta = h_s - h_b
    row, null       the same along the unit-length parts that the next map does and does not transmit
    row-read        h' = h_b + U U_row^T delta              writes as the patch, reads what the map transmits
    null-read       h' = h_b + U U_null^T delta             ... reads what it does not; both add up to the patch
    row, unscaled   h' = h_b + U_row U_row^T delta

Makelov et al., arXiv:2311.17030, sections 3 and 4; the unscaled row patch is that of Wu et al., arXiv:2401.12631;
through an exact next map it does what row-read does, through a proxy it does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch

from uphold.core.errors import ModelError
from uphold.core.progress import Progress, silent
from uphold.explain.subspaces.directions import Held, kept_run, patched_logits, random_subspace, resumed_logits
from uphold.explain.subspaces.pairs import Pairs
from uphold.explain.subspaces.spaces import Split
from uphold.models.sites.layout import Layout
from uphold.models.sites.site import Site

Condition = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Base and source activations, float64 of shape (rows, width), to what the site is to hold."""
CLEAN, FULL, PATCH, ROW, NULL = "clean", "full", "patch", "row", "null"
ROW_READ, NULL_READ, UNSCALED, PLACEBO, ARBITRARY = (
    "row-read",
    "null-read",
    "row, unscaled",
    "placebo",
    "arbitrary labels",
)


@dataclass(frozen=True, eq=False)
class Measured:
    """What one condition did to each pair, on the CPU."""

    differences: torch.Tensor
    """Logit of the base's answer minus that of the expected one, float64 of shape (n,)."""
    hits: torch.Tensor
    """Whether the expected answer is the largest of all logits, bool of shape (n,)."""


def along(read: torch.Tensor, write: torch.Tensor) -> Condition:
    """h_b + (delta read) write^T; both of shape (n, k)."""

    def patched(base: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        return base + (source - base) @ read.to(base) @ write.to(base).T

    return patched


def placebo(basis: torch.Tensor, seed: int) -> Condition:
    """A patch along random dimensions, scaled in each pair to the length of the patch along `basis`."""
    other = random_subspace(basis.shape[0], basis.shape[1], seed)

    def patched(base: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        delta = source - base
        moved = delta @ other.to(base) @ other.to(base).T
        wanted = (delta @ basis.to(base)).norm(dim=1, keepdim=True)
        length = moved.norm(dim=1, keepdim=True)
        return base + torch.where(length > 0, moved * wanted / length.clamp(min=1e-300), 0)

    return patched


def conditions(split: Split, placebos: int, seed: int) -> dict[str, Condition]:
    """All diagnostics of a subspace, by name; placebos are numbered."""
    u = split.basis
    found: dict[str, Condition] = {
        CLEAN: lambda base, source: base,
        FULL: lambda base, source: source,
        PATCH: along(u, u),
        ROW: along(split.row_basis, split.row_basis),
        NULL: along(split.null_basis, split.null_basis),
        ROW_READ: along(split.row, u),
        NULL_READ: along(split.null, u),
        UNSCALED: along(split.row, split.row),
    }
    for number in range(placebos):
        found[f"{PLACEBO} {number}"] = placebo(u, seed + number)
    return found


def measure(
    layout: Layout,
    pairs: Pairs,
    site: Site,
    held: Held,
    wanted: Mapping[str, Condition],
    *,
    labels: torch.Tensor | None = None,
    rows: int = 64,
    progress: Progress = silent,
) -> dict[str, Measured]:
    """Run every condition on every pair.

    Decoders are run from the patched block and position on only.

    Args:
        layout: of the model.
        pairs: what is patched.
        site: where.
        held: what it holds in base and source, shape (n, width).
        wanted: by name.
        labels: the answers that count as a hit, shape (n,); the expected ones where None.
        rows: pairs in one forward pass.
        progress: called after every pass.

    Raises:
        ModelError: logits are not of shape (rows, V), or not finite.
    """
    labels = pairs.expected if labels is None else labels
    parts: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {name: [] for name in wanted}
    total, done = len(wanted) * -(-len(pairs) // rows), 0
    for start in range(0, len(pairs), rows):
        some, span = pairs.chosen(slice(start, start + rows)), slice(start, start + rows)
        base, source = held.base[span], held.source[span]
        runner = _runner(layout, some, site)
        for name, condition in wanted.items():
            logits = runner(condition(base.double(), source.double()).to(base.dtype))
            parts[name].append(_scores(logits, some.answers, some.expected, labels[span]))
            done += 1
            progress(f"patching {site}", done, total)
    return {name: Measured(*(torch.cat(one) for one in zip(*part, strict=True))) for name, part in parts.items()}


def _runner(layout: Layout, pairs: Pairs, site: Site) -> Callable[[torch.Tensor], torch.Tensor]:
    """From what the site holds to the logits that count."""
    kept = kept_run(layout, pairs, site)
    if kept is None:
        return lambda values: patched_logits(layout, pairs, site, values)
    return lambda values: resumed_logits(layout, kept, pairs, site, values)


def _scores(
    logits: torch.Tensor, answers: torch.Tensor, expected: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    if logits.dim() != 2:
        raise ModelError(
            f"the model gives {tuple(logits.shape)}: expected (rows, V); say which position counts (at=...)"
        )
    logits = logits.detach().cpu().double()
    if not bool(torch.isfinite(logits).all()):
        raise ModelError("the patched model gives logits that are not finite: run it in float32")
    rows = torch.arange(len(logits))
    difference = logits[rows, answers.cpu()] - logits[rows, expected.cpu()]
    return difference, logits.argmax(1) == labels.cpu()


def names_of_placebos(found: Mapping[str, object]) -> Iterator[str]:
    """The numbered placebos among the conditions."""
    return (name for name in found if name.startswith(f"{PLACEBO} "))
