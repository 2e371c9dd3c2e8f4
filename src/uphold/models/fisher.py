"""The diagonal of the empirical Fisher information: how much each weight matters to what a model says."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional

from uphold.core.errors import EmptyError, ModelError
from uphold.core.progress import Progress, silent
from uphold.models.encode import Encoded, collate


def diagonal_fisher(
    model: Any, rows: Sequence[Encoded], names: Collection[str], *, progress: Progress = silent
) -> dict[str, torch.Tensor]:
    """The mean over sequences of the squared gradient of -log p(answer | prompt), one sequence at a time.

    A batch's gradient would be squared after summing, which is another quantity. With the model's own answers as
    labels this is the empirical Fisher of Schumann et al., arXiv:2301.10546.

    Args:
        model: without an adapter, in eval mode; left as it is.
        rows: prompts and answers.
        names: of the parameters that are asked for.
        progress: called after every sequence.

    Returns:
        For each name a float32 tensor of the parameter's shape, in nats squared per squared weight; at least 0.

    Raises:
        EmptyError: no rows.
        ModelError: a gradient is not finite.
    """
    if not rows:
        raise EmptyError("there are no answers to take the Fisher information of: the train split gave none")
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    wanted = {name: parameters[name].requires_grad_() for name in sorted(names)}
    sums = {name: torch.zeros(value.shape, device=value.device) for name, value in wanted.items()}
    for done, row in enumerate(rows, start=1):
        with torch.enable_grad():
            loss = _answer_loss(model, parameters, row)
            gradients = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
        for name, gradient in zip(wanted, gradients, strict=True):
            if gradient is not None:
                sums[name].add_(gradient.float().square())
        progress("Fisher information", done, len(rows))
    if not all(bool(value.isfinite().all()) for value in sums.values()):
        raise ModelError("the Fisher information is not finite: the old model's weights or its dtype are broken")
    return {name: value / len(rows) for name, value in sums.items()}


def with_mean_one(fisher: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`fisher` rescaled so that its mean over all entries of all tensors is 1.

    Raises:
        ModelError: it is 0 everywhere.
    """
    total = sum(float(value.sum(dtype=torch.float64)) for value in fisher.values())
    count = sum(value.numel() for value in fisher.values())
    if not total:
        raise ModelError("the Fisher information is 0 everywhere: no weight matters to the old model's answers")
    return {name: value * (count / total) for name, value in fisher.items()}


def _answer_loss(model: Any, parameters: Mapping[str, torch.Tensor], row: Encoded) -> torch.Tensor:
    """-log p(answer | prompt), a scalar."""
    batch = collate([row]).to(next(iter(parameters.values())).device)
    given = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "use_cache": False}
    output = torch.func.functional_call(model, dict(parameters), kwargs=given)
    logits = output.logits[0, len(row.prompt) - 1 : -1].float()
    return functional.cross_entropy(logits, batch.input_ids[0, len(row.prompt) :], reduction="sum")
