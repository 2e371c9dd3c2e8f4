"""Neuron edits as a patch file's content."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from uphold.models.load import Loaded, library_versions
from uphold.models.neurons.config import Failure, NeuronConfig
from uphold.models.neurons.edits import Edit
from uphold.models.neurons.neurons import Down
from uphold.models.neurons.report import NeuronReport
from uphold.models.patches.delta import Delta
from uphold.models.patches.patch import Manifest, Patch, value_hash

PAPER = "arXiv:2312.05356"


def neuron_patch(
    edits: Sequence[Edit],
    failures: Sequence[Failure],
    report: NeuronReport,
    config: NeuronConfig,
    source: Loaded | None,
) -> Patch | None:
    """The patch that makes these edits; applied to the weights before them it gives the same weights, bit for bit.

    Its facts hold every edit (layer, neuron, hash of the neuron before, strength, failure) and the token ids of the
    failures that were repaired.

    Args:
        edits: in the order in which they were made; still in the model.
        failures: what they are for.
        report: what was measured.
        config: the options.
        source: the model, where it has a name.

    Returns:
        None where there are no edits.
    """
    if not edits:
        return None
    by_down: dict[Down, dict[int, list[Edit]]] = {}
    for edit in edits:
        by_down.setdefault(edit.down, {}).setdefault(edit.index, []).append(edit)
    deltas, pristine = {}, {}
    for down, neurons in by_down.items():
        weight = down.module.weight.detach()
        values = torch.stack([history[-1].delta for history in neurons.values()])
        deltas[down.parameter] = Delta.slices(tuple(weight.shape), 0 if down.transposed else 1, list(neurons), values)
        pristine[down.parameter] = value_hash(_before(down, neurons))
    on_disk = source is not None and source.files is not None and source.files.adapter is None
    manifest = Manifest(
        method="mint",
        pristine=pristine,
        paper=PAPER,
        source="" if source is None else source.name,
        weights=source.fingerprint["weights"] if source is not None and on_disk else "",
        figures=_figures(report),
        facts={
            "edits": [_facts(edit) for edit in edits],
            "failures": [_failure(failures[number]) for number in sorted({edit.number for edit in edits})],
            "config": asdict(config),
        },
        versions=library_versions(),
    )
    return Patch(deltas, manifest)


def _before(down: Down, neurons: dict[int, list[Edit]]) -> torch.Tensor:
    """The weight without its edits."""
    weight: torch.Tensor = down.module.weight.detach().clone()
    for index, history in neurons.items():
        (weight[index] if down.transposed else weight[:, index]).copy_(history[0].before)
    return weight


def _facts(edit: Edit) -> dict[str, Any]:
    return {
        "tensor": edit.down.parameter,
        "layer": edit.down.layer,
        "neuron": edit.index,
        "before": value_hash(edit.before),
        "strength": edit.strength,
        "failure": edit.number,
        "position": edit.position,
        "wrong": edit.wrong,
        "target": edit.target,
    }


def _failure(failure: Failure) -> dict[str, Any]:
    return {"name": failure.name, "prompt": list(failure.prompt), "target": list(failure.target)}


def _figures(report: NeuronReport) -> dict[str, Any]:
    wrong = [
        sum(not one.all_right for one in side)
        for side in zip(*((f.before, f.after) for f in report.failures), strict=True)
    ]
    figures: dict[str, dict[str, Any]] = {
        name: {"failures": count} for name, count in zip(("before", "after"), wrong, strict=True)
    }
    if report.drift is not None:
        figures["before"]["guard_nll"] = report.drift.nll_before
        figures["after"]["guard_nll"] = report.drift.nll_after
        figures["after"]["guard_agreement"] = report.drift.agreement
    return figures
