"""Text from a model: the generation engine.

Models that take masks of ours decode in slots that are refilled (`slots`). Others decode in fixed batches, padded on
the left, with explicit positions where the model takes them; a model that overlooks padding gets one row at a time.
Either way a row's tokens do not depend on its neighbours, and a sampled row draws from a generator of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from uphold.models.attention import accepted_arguments, attention_window, max_length, reads_masks, reads_padding
from uphold.models.decoding import Answer, Ending, Generated, Sampling
from uphold.models.encode import Encoder
from uphold.models.slots import Prompt, SlotDecoder
from uphold.models.token_tree import HEADER_COST, common_prefix

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from uphold.models.engine import Meter


class GenerationEngine:
    """Continues prompts with one model; what it finds out about the model is kept."""

    def __init__(self, model: PreTrainedModel, encoder: Encoder, batch_tokens: int, meter: Meter) -> None:
        """Prepare to write.

        Args:
            model: a causal language model in eval mode.
            encoder: of the model's tokenizer.
            batch_tokens: tokens of prompts per forward pass; a 64th of it are decoded side by side, and at most 16
                times it is kept of all rows together.
            meter: counts tokens.
        """
        self.model, self.encoder, self.batch_tokens, self.meter = model, encoder, batch_tokens, meter
        self._reads_masks: bool | None = None
        self._reads_padding: bool | None = None

    def write(self, prompts: Sequence[str], sampling: Sampling, keys: Sequence[str] = ()) -> list[Generated]:
        """Continue each prompt, in order.

        Args:
            prompts: n texts.
            sampling: how tokens are chosen and answers end.
            keys: n texts that name the instances, for sampled draws; the prompts themselves where empty.

        Raises:
            ModelError: a prompt has no tokens.
        """
        if not prompts:
            return []
        encoded = self.encoder.prompts(prompts)
        waiting = [
            self._prompt(index, ids, sampling, key)
            for index, (ids, key) in enumerate(zip(encoded, keys or prompts, strict=True))
        ]
        # Long prompts first: the last slots to fall empty then hold the shortest rows.
        waiting.sort(key=lambda prompt: (-len(prompt.tokens), prompt.index))
        found: dict[int, Generated] = {}
        for prompt, answer in self._run(waiting, sampling):
            cut = len(prompt.tokens) < len(encoded[prompt.index])
            found[prompt.index] = Generated(answer.text or "", len(prompt.tokens) + len(answer.tokens), cut)
        return [found[index] for index in range(len(prompts))]

    def _prompt(self, index: int, ids: Sequence[int], sampling: Sampling, key: str) -> Prompt:
        """A prompt cut from the left to fit the model: half of its room at least is the prompt's."""
        room = max_length(self.model)
        if room is None:
            return Prompt(index, ids, sampling.generator(key))
        kept = ids[-max(1, room - sampling.max_new_tokens, room // 2) :]
        # The last token written is not read, so it needs no room.
        return Prompt(index, kept, sampling.generator(key), room + 1 - len(kept))

    def _run(self, waiting: Sequence[Prompt], sampling: Sampling) -> Iterator[tuple[Prompt, Answer]]:
        if self._reads_masks is None:
            self._reads_masks = reads_masks(self.model)
        ending = Ending(self.model, self.encoder.tokenizer, sampling)
        capacity = max(len(prompt.tokens) for prompt in waiting) + sampling.max_new_tokens
        capacity = min(capacity, max_length(self.model) or capacity)
        window = attention_window(self.model)
        rows = max(1, min(self.batch_tokens // 64, 16 * self.batch_tokens // capacity, len(waiting)))
        if self._reads_masks and (window is None or capacity <= window):
            decoder = SlotDecoder(self.model, ending, sampling, rows, capacity, self.meter)
            yield from decoder.run(waiting, _header(waiting))
            return
        if self._reads_padding is None:
            self._reads_padding = reads_padding(self.model)
        rows = rows if self._reads_padding else 1
        for start in range(0, len(waiting), rows):
            yield from self._padded(waiting[start : start + rows], ending, sampling)

    def _padded(self, prompts: Sequence[Prompt], ending: Ending, sampling: Sampling) -> Iterator[tuple[Prompt, Answer]]:
        """Decode one fixed batch to its end."""
        length = max(len(prompt.tokens) for prompt in prompts)
        input_ids = torch.zeros(len(prompts), length, dtype=torch.long)
        mask = torch.zeros_like(input_ids)
        for row, prompt in enumerate(prompts):
            input_ids[row, length - len(prompt.tokens) :] = torch.tensor(prompt.tokens)
            mask[row, length - len(prompt.tokens) :] = 1
        input_ids, mask = input_ids.to(self.model.device), mask.to(self.model.device)
        answers = [Answer(ending, prompt.most) for prompt in prompts]
        accepted = accepted_arguments(self.model)
        cache = None
        while any(answer.text is None for answer in answers):
            logits, cache = self._step(input_ids, mask, cache, accepted)
            tokens = sampling.choose(logits, [prompt.generator for prompt in prompts])
            for answer, token in zip(answers, tokens, strict=True):
                if answer.text is None:
                    answer.add(token)
            new = torch.tensor(tokens, device=mask.device)[:, None]
            # A model that keeps no cache we know of reads its rows anew for every token.
            input_ids = torch.cat([input_ids, new], dim=1) if cache is None else new
            mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=1)
        yield from zip(prompts, answers, strict=True)

    def _step(
        self, input_ids: torch.Tensor, mask: torch.Tensor, cache: Any, accepted: frozenset[str]
    ) -> tuple[torch.Tensor, Any]:
        self.meter.add(input_ids.numel())
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
        arguments: dict[str, Any] = {"position_ids": positions, "logits_to_keep": 1, "past_key_values": cache}
        with torch.inference_mode():
            output = self.model(
                input_ids=input_ids,
                attention_mask=mask,
                use_cache=True,
                **{name: value for name, value in arguments.items() if name in accepted and value is not None},
            )
        return output.logits[:, -1].float(), getattr(output, "past_key_values", None)


def _header(prompts: Sequence[Prompt]) -> Sequence[int]:
    """What all prompts begin with, if it is worth a forward pass of its own; each keeps a token of its own."""
    rows = sorted(list(prompt.tokens) for prompt in prompts)
    first, last = rows[0], rows[-1]
    most = min(len(prompt.tokens) for prompt in prompts) - 1
    common = min(most, common_prefix(first, last))
    return first[:common] if (len(prompts) - 1) * common > HEADER_COST else ()
