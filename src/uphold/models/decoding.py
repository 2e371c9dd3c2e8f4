"""Which token comes next, and when an answer has ended: what every decoder shares."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from uphold.core.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Generated(NamedTuple):
    """What a model wrote after a prompt."""

    text: str
    """Up to, and without, the first stop string or end-of-text token."""
    tokens: int
    """Tokens read and written."""
    truncated: bool = False
    """Whether the prompt was cut from the left to fit the model."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen and answers end."""

    max_new_tokens: int
    stop: tuple[str, ...] = ()
    """Texts that end an answer."""
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    """Nucleus of the sampled distribution, in (0, 1]."""
    seed: int = 0
    """Of the sampled draws."""

    def generator(self, key: str) -> torch.Generator | None:
        """A row's own source of chance, by its key and the seed alone; None where decoding is greedy."""
        if self.temperature == 0:
            return None
        digest = hashlib.sha256(f"{self.seed} {key}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)

    def choose(self, logits: torch.Tensor, generators: Sequence[torch.Generator | None]) -> list[int]:
        """The next token of each row of `logits` (rows, vocabulary)."""
        best = logits.max(dim=-1)
        if bool(best.values.isnan().any()):
            raise ModelError("the model gives NaN instead of a prediction: its weights or its dtype are broken")
        if self.temperature == 0:
            return best.indices.tolist()
        shares = (logits.float() / self.temperature).softmax(dim=-1)
        shares, tokens = shares.sort(dim=-1, descending=True)
        # A token stays when the mass before it has not reached top_p; the first one always stays.
        shares = shares.masked_fill(shares.cumsum(dim=-1) - shares >= self.top_p, 0.0).cpu()
        picks = [torch.multinomial(row, 1, generator=own) for row, own in zip(shares, generators, strict=True)]
        return tokens.cpu().gather(1, torch.stack(picks)).squeeze(1).tolist()


class Answer:
    """One answer in the making."""

    def __init__(self, ending: Ending, most: int | None = None) -> None:
        """Begin; `most` tokens end the answer where the model has no room for as many as were asked for."""
        self.tokens: list[int] = []
        self.text: str | None = None
        """The finished text; None while it goes on."""
        self._ending, self._most = ending, most

    def add(self, token: int) -> bool:
        """Append a token; whether the answer has ended with it."""
        self.tokens.append(token)
        self.text = self._ending.text(self.tokens, self._most)
        return self.text is not None


class Ending:
    """Tells when the tokens of an answer are all there."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sampling: Sampling) -> None:
        self._tokenizer, self._sampling = tokenizer, sampling
        self._stop = tuple(stop for stop in sampling.stop if stop)
        ends = {tokenizer.eos_token_id}
        configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
        ends |= set(configured) if isinstance(configured, list) else {configured}
        self._ends = {int(end) for end in ends if end is not None}
        # A stop string that the last token completes lies within as many tokens as it has bytes; the rest is slack for
        # tokens without text of their own.
        self._tail = max((len(stop.encode()) for stop in self._stop), default=0) + 8

    def text(self, tokens: Sequence[int], most: int | None = None) -> str | None:
        """The finished text, or None while the answer goes on; it ends at `most` tokens, too, where that is given."""
        if tokens[-1] in self._ends:
            return self._cut(tokens[:-1])[0]
        if self._stop and self._cut(tokens[-self._tail :])[1]:
            text, stopped = self._cut(tokens)
            if stopped:
                return text
        limit = min(self._sampling.max_new_tokens, most or self._sampling.max_new_tokens)
        return self._cut(tokens)[0] if len(tokens) >= limit else None

    def _cut(self, tokens: Sequence[int]) -> tuple[str, bool]:
        text = str(self._tokenizer.decode(tokens, skip_special_tokens=True))
        cuts = [at for stop in self._stop if (at := text.find(stop)) >= 0]
        return (text[: min(cuts)], True) if cuts else (text, False)
