"""Reading with masks and key-value caches of our own, and asking a model whether it lets us.

Two engines rest on it: `likelihood` reads a question and all its options in one row under a mask, after a header that
was read once; `generate` keeps rows of different lengths in slots that are refilled. Both hand the model a mask over
(rows, 1, queries, keys), explicit positions, and a cache object. Most causal transformers take these as they are;
`reads_masks` finds out by trying, so that a model that does not is read row by row instead.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_KERNELS = ("sdpa", "eager")


class PrefixLayer(CacheLayerMixin):  # type: ignore[misc]  # transformers is not typed
    """Keys and values of a header, shared by all rows of a batch; what is read after it is not kept."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """There is nothing to prepare."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Header and new states, joined for this one forward pass."""
        rows = key_states.shape[0]
        return (
            torch.cat([self.keys.expand(rows, -1, -1, -1), key_states], dim=2),
            torch.cat([self.values.expand(rows, -1, -1, -1), value_states], dim=2),
        )

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys that `query_length` new tokens see."""
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        """Tokens of the header."""
        return int(self.keys.shape[2])

    def get_max_length(self) -> int:
        """No maximum."""
        return -1


def read_header(model: PreTrainedModel, tokens: Sequence[int]) -> Cache:
    """Read `tokens` once and keep their keys and values, for any number of rows that go on from there."""
    cache = DynamicCache()
    ids = torch.tensor([list(tokens)], device=model.device)
    arguments = {"input_ids": ids, "past_key_values": cache, "use_cache": True}
    predictions(model, arguments, torch.tensor([0]), torch.tensor([len(tokens) - 1]))
    return Cache(layers=[PrefixLayer(layer.keys, layer.values) for layer in cache.layers])


def predictions(
    model: PreTrainedModel, arguments: dict[str, Any], rows: torch.Tensor, positions: torch.Tensor
) -> torch.Tensor:
    """Next-token logits of a forward pass at the given (row, position) pairs only, shape (pairs, vocabulary).

    The hidden states are narrowed before the model's own projection; what comes after it (soft-capping, scaling) stays
    the model's.
    """
    head = model.get_output_embeddings()
    narrowed = False

    def narrow(module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        nonlocal narrowed
        hidden, narrowed = inputs[0], True
        return hidden[rows.to(hidden.device), positions.to(hidden.device)].unsqueeze(0), *inputs[1:]

    hook = head.register_forward_pre_hook(narrow) if head is not None else None
    try:
        with torch.inference_mode():
            logits = model(**arguments).logits
    finally:
        if hook is not None:
            hook.remove()
    if narrowed:
        return logits[0]  # type: ignore[no-any-return]
    return logits[rows.to(logits.device), positions.to(logits.device)]  # type: ignore[no-any-return]


def mask_for(model: PreTrainedModel, seen: torch.Tensor) -> torch.Tensor:
    """A boolean mask (rows, queries, keys) in the form that the model's attention kernel takes."""
    mask = seen[:, None].to(model.device)
    if model.config._attn_implementation == "sdpa":
        return mask
    lowest = torch.finfo(model.dtype).min
    return torch.zeros(mask.shape, dtype=model.dtype, device=mask.device).masked_fill(~mask, lowest)


def accepted_arguments(model: PreTrainedModel) -> frozenset[str]:
    """Names of the arguments that the model's forward takes, those of a wrapped base where there is an adapter."""
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    return frozenset(inspect.signature(base.forward).parameters)


def attention_window(model: PreTrainedModel) -> int | None:
    """Tokens that the narrowest attention layer looks back; None where all look back to the start."""
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and not any("sliding" in kind or "chunked" in kind for kind in kinds):
        return None
    if getattr(config, "use_sliding_window", True) is False:
        return None
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return min((int(window) for window in windows if window), default=None)


def max_length(model: PreTrainedModel) -> int | None:
    """The most tokens the model can read at once, where its configuration says so."""
    config = model.config.get_text_config()
    found = [getattr(config, name, None) for name in ("n_positions", "max_position_embeddings", "n_ctx")]
    return next((int(length) for length in found if length), None)


def reads_masks(model: PreTrainedModel) -> bool:
    """Whether the model gives the same predictions under a mask and a cache of ours as it gives plain rows.

    A header of three tokens with two branches is read both ways; recurrent models, models whose positions come from
    the mask, and kernels that take no mask answer differently or not at all.
    """
    arguments = accepted_arguments(model)
    if not {"position_ids", "past_key_values"} <= arguments or model.config._attn_implementation not in _KERNELS:
        return False
    vocabulary = int(model.config.get_text_config().vocab_size)
    ids = [(7919 * index + 13) % vocabulary for index in range(8)]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            plain, ours = _probe_rows(model, ids), _probe_tree(model, ids)
    except (RuntimeError, TypeError, ValueError, AttributeError, KeyError, IndexError, NotImplementedError):
        return False
    return plain.shape == ours.shape and bool((plain - ours).abs().max() < _tolerance(model))


def reads_padding(model: PreTrainedModel) -> bool:
    """Whether the model gives the same prediction for a row that is padded on the left, and masked there."""
    vocabulary = int(model.config.get_text_config().vocab_size)
    ids = torch.tensor([[(7919 * index + 13) % vocabulary for index in range(4)]], device=model.device)
    padded = torch.cat([torch.zeros_like(ids[:, :2]), ids], dim=1)
    mask = torch.ones_like(padded)
    mask[:, :2] = 0
    arguments: dict[str, Any] = {"input_ids": padded, "attention_mask": mask, "use_cache": False}
    if "position_ids" in accepted_arguments(model):
        arguments["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0)
    row = torch.tensor([0])
    plain = predictions(model, {"input_ids": ids, "use_cache": False}, row, torch.tensor([3])).float().log_softmax(-1)
    ours = predictions(model, arguments, row, torch.tensor([5])).float().log_softmax(-1)
    return bool((plain - ours).abs().max() < _tolerance(model))


def _tolerance(model: PreTrainedModel) -> float:
    """bfloat16 and float16 round at every layer; a wrong mask moves predictions by far more than this."""
    return 1e-3 if model.dtype in (torch.float32, torch.float64) else 0.15


def _probe_rows(model: PreTrainedModel, ids: Sequence[int]) -> torch.Tensor:
    """Log-probabilities after the last token of header + branch, each row read plainly."""
    rows = torch.tensor([[*ids[:3], *ids[3:5]], [*ids[:3], *ids[5:7]]], device=model.device)
    logits = predictions(model, {"input_ids": rows, "use_cache": False}, torch.tensor([0, 1]), torch.tensor([4, 4]))
    return logits.float().log_softmax(-1)


def _probe_tree(model: PreTrainedModel, ids: Sequence[int]) -> torch.Tensor:
    """The same from one row that holds both branches behind a cached header."""
    seen = torch.tensor([[1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 1]])
    arguments = {
        "input_ids": torch.tensor([ids[3:7]], device=model.device),
        "position_ids": torch.tensor([[3, 4, 3, 4]], device=model.device),
        "attention_mask": mask_for(model, seen[None].bool()),
        "past_key_values": read_header(model, ids[:3]),
        "use_cache": True,
    }
    return predictions(model, arguments, torch.tensor([0, 0]), torch.tensor([1, 3])).float().log_softmax(-1)
