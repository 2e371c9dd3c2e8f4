"""From text to token batches."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from uphold.core.errors import ModelError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

MOST_TOKENS = 10_000_000
"""What an `Encoder` keeps before it forgets, four bytes each."""


class Encoded(NamedTuple):
    """Token ids of a prompt and of the answer that follows it."""

    prompt: list[int]
    answer: list[int]
    instance: int = -1
    """Which instance of its split it is of; -1 where that does not matter."""


class Encoder:
    """Turns text into token ids with one tokenizer; what was encoded lately is not encoded again."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._known: dict[str, array[int]] = {}
        self._size = 0

    def prompts(self, prompts: Sequence[str]) -> list[list[int]]:
        """Token ids of prompts to be continued, special tokens included.

        Raises:
            ModelError: a prompt has no tokens at all.
        """
        encoded = self._encode(prompts)
        for prompt, ids in zip(prompts, encoded, strict=True):
            if not ids:
                raise ModelError(f"the prompt {prompt[:40]!r} has no tokens: a model needs at least one to start from")
        return encoded

    def pairs(self, pairs: Sequence[tuple[str, str]]) -> list[Encoded]:
        """Token ids of prompts and of the answers that follow them.

        Prompt and answer are tokenised as one text, which is cut where the prompt's own tokens end; white space at the
        end of a prompt counts as the answer's, and an empty prompt is the tokenizer's first special token (the
        conventions of lm-evaluation-harness).

        Raises:
            ModelError: an answer has no tokens of its own.
        """
        heads = [prompt.rstrip() for prompt, _ in pairs]
        prompts = dict(zip(heads, self._encode(heads), strict=True))
        wholes = self._encode([prompt + answer for prompt, answer in pairs])
        encoded = []
        for head, (prompt, answer), whole in zip(heads, pairs, wholes, strict=True):
            tokens = (
                self._unconditional(prompt + answer)
                if not head
                else Encoded(prompts[head], whole[len(prompts[head]) :])
            )
            if not tokens.answer or not tokens.prompt:
                raise ModelError(
                    f"the answer {answer!r} has no tokens of its own after {prompt[-40:]!r}: use a delimiter"
                )
            encoded.append(tokens)
        return encoded

    def _unconditional(self, answer: str) -> Encoded:
        ids = list(self.tokenizer(answer, add_special_tokens=False)["input_ids"])
        start = self.tokenizer.bos_token_id
        start = self.tokenizer.eos_token_id if start is None else start
        if start is None or ids[:1] == [start]:
            return Encoded(ids[:1], ids[1:])
        return Encoded([int(start)], ids)

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        missing = list(dict.fromkeys(text for text in texts if text not in self._known))
        new = dict(zip(missing, self._tokenise(missing), strict=True))
        found = [list(self._known[text]) if text in self._known else new[text] for text in texts]
        if self._size > MOST_TOKENS:
            self._known, self._size = {}, 0
        for text, ids in new.items():
            self._known[text] = array("i", ids)
            self._size += len(ids)
        return found

    def _tokenise(self, texts: Sequence[str]) -> list[list[int]]:
        """Special tokens are added, except where a text brings its own first one."""
        bos = self.tokenizer.bos_token
        groups: dict[bool, list[str]] = {}
        for text in texts:
            groups.setdefault(not (bos and text.startswith(bos)), []).append(text)
        ids = {
            text: list(own)
            for special, group in groups.items()
            for text, own in zip(group, self.tokenizer(group, add_special_tokens=special)["input_ids"], strict=True)
        }
        return [ids[text] for text in texts]


@dataclass(frozen=True)
class Batch:
    """Right-padded sequences for training, of shape (rows, length) unless noted."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    """1 where there is a token, 0 where there is padding."""
    is_answer: torch.Tensor
    """Whether the token belongs to the answer."""
    instance: torch.Tensor
    """Which instance of its split each row is of, shape (rows,); -1 where that does not matter."""

    def to(self, device: Any) -> Batch:
        """The same batch on another device."""
        parts = (self.input_ids, self.attention_mask, self.is_answer, self.instance)
        return Batch(*(part.to(device) for part in parts))


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
    return Batch(input_ids, attention_mask, is_answer, torch.tensor([row.instance for row in rows]))
