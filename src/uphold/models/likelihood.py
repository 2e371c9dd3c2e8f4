"""Log-likelihood of answer options, batched.

Rows are padded on the right: under a causal mask no real token sees the padding, so nothing else has to be
masked and the batch's shape cannot change a number beyond rounding. Options that differ in their last token
only share one row, so single-token options cost one row per question.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from uphold.models.encode import encode_answers

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class _Request(NamedTuple):
    row: tuple[int, ...]
    """What the model reads: all tokens but the last."""
    targets: tuple[int, ...]
    """The option's tokens, predicted at the last positions of the row."""


def option_logprobs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    options: Sequence[Sequence[str]],
    batch_size: int = 32,
) -> tuple[list[list[float]], list[int]]:
    """Summed log-likelihood (nats) of each option after its prompt.

    Args:
        model: a causal language model in eval mode.
        tokenizer: the model's.
        prompts: n texts.
        options: for each prompt its options, delimiter included.
        batch_size: rows per forward pass.

    Returns:
        Per prompt the log-likelihoods in the order of its options, and the number of tokens read for it.
    """
    flat_prompts = [prompt for prompt, own in zip(prompts, options, strict=True) for _ in own]
    flat_options = [option for own in options for option in own]
    requests = [
        _Request(tuple((pair.prompt + pair.answer)[:-1]), tuple(pair.answer))
        for pair in encode_answers(tokenizer, flat_prompts, flat_options)
    ]
    by_row: dict[tuple[int, ...], list[int]] = {}
    for index, request in enumerate(requests):
        by_row.setdefault(request.row, []).append(index)
    rows = sorted(by_row, key=lambda row: (len(row), row))
    values = [0.0] * len(requests)
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        members = [by_row[row] for row in batch]
        for index, value in zip(
            [index for own in members for index in own], _score(model, batch, requests, members), strict=True
        ):
            values[index] = value
    grouped, tokens, cursor = [], [], 0
    for own in options:
        grouped.append(values[cursor : cursor + len(own)])
        tokens.append(sum(len(row) for row in {requests[i].row for i in range(cursor, cursor + len(own))}))
        cursor += len(own)
    return grouped, tokens


def _score(
    model: PreTrainedModel,
    rows: Sequence[tuple[int, ...]],
    requests: Sequence[_Request],
    members: Sequence[Sequence[int]],
) -> list[float]:
    """Log-likelihoods of the requests in `members`, in their order."""
    import torch

    length = max(len(row) for row in rows)
    input_ids = torch.zeros(len(rows), length, dtype=torch.long)
    for index, row in enumerate(rows):
        input_ids[index, : len(row)] = torch.tensor(row)
    picks = [
        (row, len(rows[row]) - len(requests[index].targets) + offset, target, slot)
        for slot, (row, index) in enumerate((row, index) for row, own in enumerate(members) for index in own)
        for offset, target in enumerate(requests[index].targets)
    ]
    at_row, at_position, target, slot = (torch.tensor(column) for column in zip(*picks, strict=True))
    needed, column = torch.unique(at_position, return_inverse=True)
    logits = logits_at(model, input_ids.to(model.device), needed.to(model.device))
    # Options of one row look at the same positions: normalise each position once.
    cells, cell = torch.unique(at_row * len(needed) + column, return_inverse=True)
    picked = logits.reshape(-1, logits.shape[-1])[cells.to(logits.device)].float()
    normaliser = picked.logsumexp(dim=-1).cpu()
    chosen = picked[cell.to(picked.device), target.to(picked.device)].cpu() - normaliser[cell]
    sums = torch.zeros(int(slot[-1]) + 1, dtype=torch.float64).index_add_(0, slot, chosen.double())
    return [float(value) for value in sums]


def logits_at(model: PreTrainedModel, input_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Next-token logits of `input_ids` (rows, length) at `positions` only, shape (rows, positions, vocabulary)."""
    import torch

    arguments: dict[str, Any] = {"input_ids": input_ids, "use_cache": False}
    with torch.inference_mode():
        if _keeps_logits(model):
            arguments["logits_to_keep"] = positions
            return model(**arguments).logits  # type: ignore[no-any-return]
        return model(**arguments).logits[:, positions]  # type: ignore[no-any-return]


def _keeps_logits(model: PreTrainedModel) -> bool:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "logits_to_keep" in inspect.signature(base.forward).parameters
