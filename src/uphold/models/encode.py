"""From text to token batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from uphold.core.errors import ModelError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


class Encoded(NamedTuple):
    """Token ids of a prompt and of the answer that follows it."""

    prompt: list[int]
    answer: list[int]


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[list[int]]:
    """Token ids of prompts to be continued, special tokens included.

    Raises:
        ModelError: a prompt has no tokens at all.
    """
    encoded: list[list[int]] = tokenizer(list(prompts), add_special_tokens=True)["input_ids"] if prompts else []
    for prompt, ids in zip(prompts, encoded, strict=True):
        if not ids:
            raise ModelError(f"the prompt {prompt[:40]!r} has no tokens: a model needs at least one to start from")
    return encoded


def encode_answers(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], answers: Sequence[str], end: bool = False
) -> list[Encoded]:
    """Token ids of prompts and of the answers that follow them.

    Prompt and answer are tokenised as one text and cut where the prompt's own tokens end (the convention of
    lm-evaluation-harness), white space at the end of a prompt counting as the answer's.

    Args:
        tokenizer: the model's.
        prompts: one per answer.
        answers: texts, delimiter included.
        end: append the end-of-text token to each answer.

    Raises:
        ModelError: an answer has no tokens of its own.
    """
    stripped = [prompt.rstrip() or prompt for prompt in prompts]
    moved = [prompt[len(kept) :] for prompt, kept in zip(prompts, stripped, strict=True)]
    heads = dict(zip(stripped, encode_prompts(tokenizer, stripped), strict=True))
    wholes = encode_prompts(
        tokenizer,
        [head + space + answer for head, space, answer in zip(stripped, moved, answers, strict=True)],
    )
    encoded = []
    for prompt, answer, whole in zip(stripped, answers, wholes, strict=True):
        cut = len(heads[prompt])
        if len(whole) <= cut:
            raise ModelError(f"the answer {answer!r} has no tokens of its own after {prompt[-40:]!r}: use a delimiter")
        tail = [int(tokenizer.eos_token_id)] if end and tokenizer.eos_token_id is not None else []
        encoded.append(Encoded(whole[:cut], whole[cut:] + tail))
    return encoded


@dataclass(frozen=True)
class Batch:
    """Right-padded sequences for training, all of shape (rows, length)."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    """1 where there is a token, 0 where there is padding."""
    is_answer: torch.Tensor
    """Whether the token belongs to the answer."""

    def to(self, device: Any) -> Batch:
        """The same batch on another device."""
        return Batch(self.input_ids.to(device), self.attention_mask.to(device), self.is_answer.to(device))


def collate(rows: Sequence[Encoded], extra_padding: int = 0) -> Batch:
    """Pad rows on the right into a `Batch`; the pad id is 0 and is never attended to."""
    import torch

    length = max(len(row.prompt) + len(row.answer) for row in rows) + extra_padding
    input_ids = torch.zeros(len(rows), length, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    is_answer = torch.zeros_like(input_ids, dtype=torch.bool)
    for index, row in enumerate(rows):
        ids = row.prompt + row.answer
        input_ids[index, : len(ids)] = torch.tensor(ids)
        attention_mask[index, : len(ids)] = 1
        is_answer[index, len(row.prompt) : len(ids)] = True
    return Batch(input_ids, attention_mask, is_answer)
