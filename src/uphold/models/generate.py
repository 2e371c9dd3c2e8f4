"""Batched greedy and sampled decoding.

Rows are padded on the left and given explicit positions, so a row's tokens do not depend on its neighbours. A
sampled row draws from a generator of its own, seeded by the run's seed and the instance, for the same reason.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from uphold.models.encode import encode_prompts

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Generated(NamedTuple):
    """What a model wrote after a prompt."""

    text: str
    """Up to, and without, the first stop string or end-of-text token."""
    tokens: int
    """Tokens read and written."""


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    stop: Sequence[str] = (),
    temperature: float = 0.0,
    top_p: float = 1.0,
    keys: Sequence[str] = (),
    seed: int = 0,
    batch_size: int = 32,
) -> list[Generated]:
    """Continue each prompt.

    Args:
        model: a causal language model in eval mode.
        tokenizer: the model's.
        prompts: n texts.
        max_new_tokens: the most tokens written per prompt.
        stop: texts that end an answer.
        temperature: 0 for greedy decoding.
        top_p: nucleus of the sampled distribution, in (0, 1].
        keys: n texts that name the instances; a sampled row's draws depend on its key and the seed alone.
        seed: of the sampled draws.
        batch_size: rows per forward pass.

    Returns:
        One `Generated` per prompt, in order.
    """
    import torch

    encoded = encode_prompts(tokenizer, prompts)
    order = sorted(range(len(prompts)), key=lambda index: len(encoded[index]))
    results: dict[int, Generated] = {}
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        generators = None
        if temperature > 0:
            names = keys or prompts
            generators = [torch.Generator().manual_seed(_row_seed(seed, names[index])) for index in chosen]
        decoder = _Decoder(model, tokenizer, max_new_tokens, tuple(stop), temperature, top_p, generators)
        for index, answer in zip(chosen, decoder.run([encoded[index] for index in chosen]), strict=True):
            results[index] = answer
    return [results[index] for index in range(len(prompts))]


def _row_seed(seed: int, key: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {key}".encode()).digest()[:8], "little") >> 1


class _Decoder:
    """Decodes one batch to its end."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_new_tokens: int,
        stop: tuple[str, ...],
        temperature: float,
        top_p: float,
        generators: list[torch.Generator] | None,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.max_new_tokens, self.stop = max_new_tokens, stop
        self.temperature, self.top_p, self.generators = temperature, top_p, generators
        self.ends = _end_tokens(model, tokenizer)
        base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.accepted = set(inspect.signature(base.forward).parameters)

    def run(self, rows: Sequence[Sequence[int]]) -> list[Generated]:
        """Continue token rows until each has ended or the limit is reached."""
        import torch

        length = max(len(row) for row in rows)
        input_ids = torch.zeros(len(rows), length, dtype=torch.long)
        mask = torch.zeros_like(input_ids)
        for index, row in enumerate(rows):
            input_ids[index, length - len(row) :] = torch.tensor(row)
            mask[index, length - len(row) :] = 1
        device = self.model.device
        input_ids, mask, cache = input_ids.to(device), mask.to(device), None
        written: list[list[int]] = [[] for _ in rows]
        texts: list[str | None] = [None] * len(rows)
        with torch.inference_mode():
            for _ in range(self.max_new_tokens):
                logits, cache = self._step(input_ids, mask, cache)
                chosen = self._choose(logits)
                for index, token in enumerate(chosen.tolist()):
                    if texts[index] is None:
                        written[index].append(token)
                        texts[index] = self._ended(written[index])
                if all(text is not None for text in texts):
                    break
                input_ids = chosen[:, None].to(device)
                mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        return [
            Generated(text if text is not None else self._decode(tokens), len(row) + len(tokens))
            for text, tokens, row in zip(texts, written, rows, strict=True)
        ]

    def _step(self, input_ids: torch.Tensor, mask: torch.Tensor, cache: Any) -> tuple[torch.Tensor, Any]:
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
        arguments: dict[str, Any] = {"position_ids": positions, "logits_to_keep": 1}
        output = self.model(
            input_ids=input_ids,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
            **{name: value for name, value in arguments.items() if name in self.accepted},
        )
        return output.logits[:, -1].float(), output.past_key_values

    def _choose(self, logits: torch.Tensor) -> torch.Tensor:
        import torch

        if self.generators is None:
            return logits.argmax(dim=-1)
        shares = (logits / self.temperature).softmax(dim=-1)
        shares, tokens = shares.sort(dim=-1, descending=True)
        # A token stays when the mass before it has not reached top_p; the first one always stays.
        shares = shares.masked_fill(shares.cumsum(dim=-1) - shares >= self.top_p, 0.0).cpu()
        picks = [torch.multinomial(row, 1, generator=own) for row, own in zip(shares, self.generators, strict=True)]
        return tokens.gather(1, torch.stack(picks).to(tokens.device)).squeeze(1)

    def _ended(self, tokens: list[int]) -> str | None:
        """The finished text, or None while the row goes on."""
        if tokens[-1] in self.ends:
            return self._decode(tokens[:-1])
        text = self._decode(tokens)
        cuts = [position for stop in self.stop if (position := text.find(stop)) >= 0]
        return text[: min(cuts)] if cuts else None

    def _decode(self, tokens: list[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))


def _end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    ends = {tokenizer.eos_token_id}
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends |= set(configured) if isinstance(configured, list) else {configured}
    return {int(end) for end in ends if end is not None}
