"""From what each condition did to each pair to effects, intervals and a verdict."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from uphold.core.errors import DataError, EmptyError
from uphold.core.stats import Floats, Interval, bootstrap_clusters, percentile_interval
from uphold.explain.subspaces.conditions import (
    ARBITRARY,
    CLEAN,
    FULL,
    NULL,
    NULL_READ,
    PATCH,
    PLACEBO,
    ROW,
    ROW_READ,
    UNSCALED,
    Measured,
    names_of_placebos,
)
from uphold.explain.subspaces.config import SubspaceConfig
from uphold.explain.subspaces.result import Contrast, Effect, Map, Verdict

BY_READ, BY_PLACEBO, BY_FULL = f"{ROW_READ} - {NULL_READ}", f"{PATCH} - {PLACEBO}", f"{PATCH} - {FULL}"
_CONTRASTS = {BY_READ: (ROW_READ, NULL_READ), BY_PLACEBO: (PATCH, PLACEBO), BY_FULL: (PATCH, FULL)}
_ORDER = (CLEAN, FULL, PATCH, PLACEBO, ARBITRARY, ROW, NULL, ROW_READ, NULL_READ, UNSCALED)
_FEW = 20


def merged(found: Mapping[str, Measured]) -> dict[str, tuple[Floats, Floats]]:
    """Logit differences and hits of every condition, each of shape (n,), the placebos as their mean."""
    arrays = {name: (one.differences.numpy(), one.hits.numpy().astype(float)) for name, one in found.items()}
    placebos = [arrays.pop(name) for name in names_of_placebos(found)]
    if placebos:
        arrays[PLACEBO] = (np.mean([one[0] for one in placebos], 0), np.mean([one[1] for one in placebos], 0))
    return arrays


def summarise(
    found: Mapping[str, Measured], clusters: torch.Tensor | None, config: SubspaceConfig
) -> tuple[list[Effect], list[Contrast], list[str]]:
    """Effects, contrasts and notes, with paired-bootstrap intervals over clusters of pairs.

    Raises:
        EmptyError: there are fewer than two clusters.
        DataError: the model does not prefer the base's answers on the base inputs, so that there is nothing to undo.
    """
    arrays = merged(found)
    names = [name for name in _ORDER if name in arrays]
    columns = np.stack([array for name in names for array in arrays[name]] + [np.ones(len(arrays[CLEAN][0]))], axis=1)
    if clusters is not None:
        _, of = np.unique(clusters.cpu().numpy(), return_inverse=True)
        sums = np.zeros((of.max() + 1, columns.shape[1]))
        np.add.at(sums, of, columns)
        columns = sums
    if len(columns) < 2:
        raise EmptyError(f"{len(columns)} independent pairs to measure: expected at least 2, better 100")
    clean = names.index(CLEAN)

    def statistic(totals: Floats) -> Floats:
        means = totals[:, :-1] / totals[:, -1:]
        differences, hits = means[:, 0::2], means[:, 1::2]
        start = differences[:, [clean]]
        fldd = 1 - differences / np.where(start > 0, start, np.nan)
        return np.concatenate([fldd, hits, start], axis=1)

    value = statistic(columns.sum(0, keepdims=True))[0]
    draws = bootstrap_clusters(columns, statistic, config.draws, config.seed)
    start = percentile_interval(draws[:, -1], config.level)
    if start is None or start.low <= 0:
        low, high = start or (float("nan"), float("nan"))
        raise DataError(
            f"unpatched, the base's answer leads the expected one by {value[-1]:.3g} logits ({low:.3g} to {high:.3g}): "
            "expected a lead beyond noise; choose pairs that the model gets right"
        )
    count = len(names)

    def interval(column: int) -> Interval | None:
        return percentile_interval(draws[:, column], config.level)

    effects = [
        Effect(
            name,
            float(arrays[name][0].mean()),
            float(value[number]),
            interval(number),
            float(value[count + number]),
            interval(count + number),
        )
        for number, name in enumerate(names)
    ]
    contrasts = []
    for name, (one, other) in _CONTRASTS.items():
        first, second = names.index(one), names.index(other)
        spread = percentile_interval(draws[:, first] - draws[:, second], config.level)
        contrasts.append(Contrast(name, float(value[first] - value[second]), spread))
    few = f"{len(columns)} independent pairs: intervals of fewer than {_FEW} are too short"
    return effects, contrasts, [few] if len(columns) < _FEW else []


def verdict(
    effects: list[Effect], contrasts: list[Contrast], split: Map, config: SubspaceConfig
) -> tuple[Verdict, str]:
    """What the numbers say, and which they are.

    Nothing found: the patch lowers the logit difference by less than `config.least`, or not beyond the placebo.
    Faithful: it does more through what it reads from directions that the next map transmits than through the others.
    Illusory: it does more through the others, and more than patching the whole site. Undecided: neither beyond noise.
    Where the whole site does as much, a reading from dead directions shows only that the subspace leans away from what
    is transmitted: in the paper's toy network the good direction does so more than the illusory one.
    """
    of = {one.name: one for one in effects}
    by = {one.name: one for one in contrasts}
    patch, full = of[PATCH], of[FULL]
    beside = f"the whole site {full.fldd:.0%}"
    if patch.fldd < config.least or not by[BY_PLACEBO].above:
        return (
            "nothing found",
            f"the patch takes {patch.fldd:.0%} of the logit difference, a random subspace of its length "
            f"{of[PLACEBO].fldd:.0%}, {beside}; at least {config.least:.0%} and more than the placebo counts",
        )
    if split.rank == split.width:
        return (
            "undecided",
            f"the patch takes {patch.fldd:.0%} of the logit difference, {beside}; the next map transmits all "
            f"{split.width} directions, so that no direction is dead and the split tells nothing",
        )
    read = (
        f"of the {patch.fldd:.0%} of the logit difference that the patch takes, reading what the next map transmits "
        f"gives {of[ROW_READ].fldd:.0%}, reading what it does not {of[NULL_READ].fldd:.0%}; {beside}"
    )
    if by[BY_READ].above:
        return "faithful", read
    if by[BY_READ].below and by[BY_FULL].above:
        return "illusory", read
    if by[BY_READ].below:
        return "undecided", f"{read}: no less than the patch, so that the site carries the effect without this subspace"
    return "undecided", f"{read}; the two readings do not differ beyond noise"


def reply(found: Verdict, effects: list[Effect], config: SubspaceConfig) -> str:
    """The reading of Wu et al. (arXiv:2401.12631): by changed answers, and of distributed representations."""
    of = {one.name: one for one in effects}
    patch, clean = of[PATCH], of[CLEAN]
    if patch.iia - clean.iia < config.least:
        return (
            f"by interchange accuracy ({patch.iia:.1%}, unpatched {clean.iia:.1%}) nothing was found, whatever the "
            "logit difference says; there is then no explanation to be called an illusion"
        )
    if found == "illusory":
        return (
            f"the patch changes {patch.iia:.1%} of the answers; what it reads varies with the feature on real inputs, "
            "so it may be part of a representation spread over many directions, and 'illusion' says more than is shown"
        )
    return (
        f"the patch changes {patch.iia:.1%} of the answers, which is what counts; the unscaled row patch takes "
        f"{of[UNSCALED].fldd:.0%} of the logit difference, and little there would not speak against the direction"
    )
