"""Two models that predict each next token together, in the form of one causal language model.

A `ModelPair` is called as any model of transformers is, so the engines that read options (`likelihood`) and write text
(`slots`, `generate`) take it as it is: masks, positions and caches of theirs reach both models. Its logits are mixed
from both models', and so are logits that no single model has.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from transformers.cache_utils import Cache, DynamicCache

from uphold.core.errors import ModelError, UsageError
from uphold.models.attention import accepted_arguments, attention_window, max_length, predictions
from uphold.models.pair_file import Averaging, Gating, Parameters

if TYPE_CHECKING:
    from uphold.models.load import Loaded

CHUNK = 1 << 22
"""The most logits of one model that are mixed at once."""


class Gate(torch.nn.Module):
    """g = sigmoid(w2 tanh(W1 h + b1) + b2): how much of the new model's logits counts; 1/2 everywhere at first."""

    def __init__(self, inputs: int, width: int, seed: int = 0) -> None:
        """A gate for hidden states of `inputs` numbers; `seed` draws its first layer."""
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.inner = torch.nn.Linear(inputs, width)
            self.outer = torch.nn.Linear(width, 1)
        torch.nn.init.zeros_(self.outer.weight)
        torch.nn.init.zeros_(self.outer.bias)
        self._is_open = False

    @contextmanager
    def open(self) -> Iterator[None]:
        """While it is open, all shares are 1: the new model alone is heard."""
        self._is_open = True
        try:
            yield
        finally:
            self._is_open = False

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Shares in (0, 1), shape (n,), of hidden states, shape (n, inputs)."""
        if self._is_open:
            return hidden.new_ones(len(hidden), dtype=torch.float32)
        value: torch.Tensor = self.outer(self.inner(hidden.float()).tanh())
        return value[:, 0].sigmoid()


class PairConfig:
    """What the engines ask of a model's configuration: the narrower of two."""

    def __init__(self, old: Any, new: Any) -> None:
        def least(values: list[int | None]) -> int | None:
            return min((value for value in values if value is not None), default=None)

        # Behind the tokenizer's last token a checkpoint may have rows that no text leads to, one model more than the
        # other.
        self.vocab_size = min(int(model.config.get_text_config().vocab_size) for model in (old, new))
        self.max_position_embeddings = least([max_length(old), max_length(new)])
        self.sliding_window = least([attention_window(old), attention_window(new)])
        kernels = {str(model.config._attn_implementation) for model in (old, new)}
        # Masks for the eager kernel are understood by both.
        self._attn_implementation = "sdpa" if kernels == {"sdpa"} else "eager" if kernels <= {"sdpa", "eager"} else "?"

    def get_text_config(self) -> PairConfig:
        """The configuration itself."""
        return self


class _Read(NamedTuple):
    """What one model makes of a forward pass."""

    logits: torch.Tensor
    """Shape (pairs, vocabulary)."""
    hidden: torch.Tensor | None
    """What its head was given, shape (pairs, width)."""
    cache: Any


class ModelPair(torch.nn.Module):
    """Two models as one; only the gate, where there is one, has parameters of the pair's own."""

    def __init__(self, old: Loaded, new: Loaded, how: Parameters, gate: Gate | None = None) -> None:
        """Put together.

        Args:
            old: the version that users have.
            new: the version that is to replace it; both share one token-id map.
            how: both are asked.
            gate: for `Gating`.
        """
        super().__init__()
        self.members, self.how, self.gate = (old, new), how, gate
        self.config: Any = PairConfig(old.model, new.model)
        ends = [getattr(getattr(one.model, "generation_config", None), "eos_token_id", None) for one in self.members]
        flat = [end for own in ends for end in (own if isinstance(own, list) else [own]) if end is not None]
        self.generation_config = SimpleNamespace(eos_token_id=flat)
        self._head = torch.nn.Identity()
        self._accepted = [accepted_arguments(one.model) for one in self.members]
        self._layers = 0
        """Cache layers of the old model."""

    @property
    def device(self) -> torch.device:
        """The new model's."""
        return self.members[1].model.device  # type: ignore[no-any-return]

    @property
    def dtype(self) -> torch.dtype:
        """The new model's."""
        return self.members[1].model.dtype  # type: ignore[no-any-return]

    def get_output_embeddings(self) -> torch.nn.Module:
        """What is called with the (row, position) pairs that logits are made for; a hook may leave some out."""
        return self._head

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool = False,
        logits_to_keep: int = 0,
    ) -> Any:
        """Mixed logits of shape (rows, positions, vocabulary), and a cache that holds both models' where they have one.

        A `Cache` that is handed over gets the layers of both, the old model's first.
        """
        rows, positions = (torch.arange(size, device=input_ids.device) for size in input_ids.shape)
        grid = torch.stack(torch.meshgrid(rows, positions, indexing="ij"), dim=-1)[:, -logits_to_keep:]
        wanted: torch.Tensor = self._head(grid)
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
        arguments = {name: value for name, value in given.items() if value is not None} | {"use_cache": use_cache}
        caches = self._own_caches(past_key_values)
        old, new = (self._read(which, arguments, caches[which], wanted.reshape(-1, 2)) for which in (0, 1))
        logits = self._mixed(old, new)
        cache = self._joined(past_key_values, old.cache, new.cache)
        return SimpleNamespace(logits=logits.view(*wanted.shape[:2], -1), past_key_values=cache)

    def _own_caches(self, given: Any) -> tuple[Any, Any]:
        """Each model's part of a cache."""
        if not isinstance(given, Cache):
            return given or (None, None)
        if not given.layers:
            return DynamicCache(), DynamicCache()
        return Cache(layers=given.layers[: self._layers]), Cache(layers=given.layers[self._layers :])

    def _joined(self, given: Any, old: Any, new: Any) -> Any:
        if not isinstance(given, Cache):
            return None if old is None or new is None else (old, new)
        if not given.layers and old is not None and new is not None:
            self._layers = len(old.layers)
            given.layers = [*old.layers, *new.layers]
        return given

    def _read(self, which: int, arguments: dict[str, Any], cache: Any, wanted: torch.Tensor) -> _Read:
        model = self.members[which].model
        given = arguments if cache is None else arguments | {"past_key_values": cache}
        given = {name: value for name, value in given.items() if name in self._accepted[which]}
        caches: list[Any] = []
        listener = model.register_forward_hook(
            lambda _module, _inputs, output: caches.append(getattr(output, "past_key_values", None))
        )
        try:
            with heard(model, self.gate is not None and which == 1) as found:
                logits = predictions(model, given, wanted[:, 0], wanted[:, 1])
        finally:
            listener.remove()
        hidden = found[-1][wanted[:, 0], wanted[:, 1]] if found else None
        return _Read(logits, hidden, caches[-1])

    @torch.no_grad()
    def _mixed(self, old: _Read, new: _Read) -> torch.Tensor:
        """Both models' logits in one, in float32."""
        size = min(old.logits.shape[-1], new.logits.shape[-1])
        result = torch.empty(len(new.logits), size, device=new.logits.device)
        step = max(1, CHUNK // size)
        for start in range(0, len(result), step):
            part = slice(start, start + step)
            ours = old.logits[part, :size].to(result.device).float()
            theirs = new.logits[part, :size].float()
            result[part] = self._mix(ours, theirs, None if new.hidden is None else new.hidden[part])
        return result

    def _mix(self, old: torch.Tensor, new: torch.Tensor, hidden: torch.Tensor | None) -> torch.Tensor:
        match self.how:
            case Averaging(share):
                return averaged(old, new, share)
            case Gating(old_temperature=temperature):
                assert self.gate is not None
                assert hidden is not None
                return fused(old, new, self.gate(hidden), temperature)
            case _:
                raise UsageError("this pair does not predict token by token: ask it through `uphold.evaluate`")


def averaged(old: torch.Tensor, new: torch.Tensor, share: float) -> torch.Tensor:
    """`log(share softmax(old) + (1 - share) softmax(new))` of logits, shape (n, vocabulary)."""
    if share in (0, 1):
        return old if share else new
    return (old.log_softmax(-1) + math.log(share)).logaddexp(new.log_softmax(-1) + math.log1p(-share))


def fused(old: torch.Tensor, new: torch.Tensor, gate: torch.Tensor, temperature: float) -> torch.Tensor:
    """`g new + (1 - g) old / T` of logits, shape (n, vocabulary), and gates, shape (n,)."""
    return gate[:, None] * new + (1 - gate[:, None]) * (old / temperature)


@contextmanager
def heard(model: Any, wanted: bool = True) -> Iterator[list[torch.Tensor]]:
    """The hidden states that reach the output head of `model`, before whatever narrows them later.

    There is one tensor of shape (rows, length, width) for each forward pass; none are kept if not `wanted`.

    Raises:
        ModelError: the model has no output head to listen to.
    """
    found: list[torch.Tensor] = []
    if not wanted:
        yield found
        return
    head = model.get_output_embeddings()
    if head is None:
        raise ModelError("a gate needs the hidden states before the output head, and the new model does not show them")
    hook = head.register_forward_pre_hook(lambda _module, inputs: found.append(inputs[0]))
    try:
        yield found
    finally:
        hook.remove()
