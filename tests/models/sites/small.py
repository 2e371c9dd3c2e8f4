"""Small random decoders of several families, and pairs of inputs for them."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    Phi3Config,
    Qwen2Config,
)

from uphold.models.sites.layout import Layout, read_layout
from uphold.models.sites.site import Kind

_SHAPE: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED = {**_SHAPE, "num_key_value_heads": 2}
CONFIGS = {
    "llama": lambda: LlamaConfig(**_GROUPED),
    "qwen2": lambda: Qwen2Config(**_GROUPED),
    "gemma3": lambda: Gemma3TextConfig(**_GROUPED, head_dim=8, sliding_window=4),
    "phi3": lambda: Phi3Config(**_GROUPED, pad_token_id=0),
    "gpt2": lambda: GPT2Config(
        vocab_size=50, n_embd=32, n_layer=4, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2
    ),
    "gpt_neox": lambda: GPTNeoXConfig(**_SHAPE),
}
KINDS: tuple[Kind, ...] = ("residual", "head", "query", "key", "value", "attention", "mlp", "hidden")
ROWS, LENGTH = 5, 10
AT = torch.tensor([9, 5, 9, 9, 9])


@cache
def decoder(family: str, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(CONFIGS[family](), attn_implementation="eager").float().eval()


def layout_of(family: str) -> Layout:
    return read_layout(decoder(family))


def inputs(seed: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 50, (ROWS, LENGTH), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def difference(logits: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """A logit difference that differs by row."""
    each = torch.arange(len(logits))
    return logits[each, rows + 3] - logits[each, rows + 20]
