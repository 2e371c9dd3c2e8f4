"""Random models of many architectures, two layers each, and tokenizers, all made from configurations."""

from __future__ import annotations

import random
from functools import lru_cache
from typing import Any

import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789 +-=?:."
SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
VOCABULARY = len(SPECIAL) + len(LETTERS)
CORPUS = (
    "the quick brown fox jumps over the lazy dog and the old one is not the new one",
    "question: what is the colour of the sky? answer: the colour of the sky is blue",
    "question: is seven more than three? answer: yes, seven is more than three",
    "naïve café, déjà vu; 12 + 30 = 42 and 7 * 6 = 42",
)

_GROUPED = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
_OLD = {"n_positions": 256, "n_embd": 32, "n_layer": 2, "n_head": 4}
_FALCON = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_GEMMA = {**_GROUPED, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", _GROUPED),
    "gpt2": ("GPT2Config", _OLD),
    "qwen2": ("Qwen2Config", _GROUPED),
    "mistral": ("MistralConfig", {**_GROUPED, "sliding_window": 6}),
    "mixtral": ("MixtralConfig", {**_GROUPED, "num_local_experts": 4}),
    "granite": ("GraniteConfig", {**_GROUPED, "logits_scaling": 3.0}),
    "gemma2": ("Gemma2Config", {**_GEMMA, "final_logit_softcapping": 2.0}),
    "gemma3": ("Gemma3TextConfig", _GEMMA),
    "llama4": ("Llama4TextConfig", {**_GROUPED, "head_dim": 8, "num_local_experts": 2, "attention_chunk_size": 8}),
    "falcon-alibi": ("FalconConfig", {**_FALCON, "alibi": True}),
    "bloom": ("BloomConfig", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "mamba": ("MambaConfig", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}),
    "rwkv": (
        "RwkvConfig",
        {"hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32, "intermediate_size": 64},
    ),
}


def tiny(kind: str, attention: str = "sdpa", **changes: Any) -> Any:
    """A random model in eval mode, the same at every call; its weights are large, so that every mistake shows."""
    return _made(kind, attention, tuple(sorted(changes.items())))


@lru_cache(maxsize=64)
def _made(kind: str, attention: str, changes: tuple[tuple[str, Any], ...]) -> Any:
    name, values = CONFIGS[kind]
    config = getattr(transformers, name)(
        **{"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, **values, **dict(changes)}
    )
    if hasattr(config, "initializer_range"):
        config.initializer_range = 0.25
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


@lru_cache(maxsize=4)
def characters(start: bool = False) -> PreTrainedTokenizerFast:
    """One token per character; `start` puts the first special token before every text."""
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *LETTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return _ready(tokenizer, start)


@lru_cache(maxsize=4)
def byte_pairs(start: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level pairs learnt from `CORPUS`: words are one token or more, and accented letters are two."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=360,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    return _ready(tokenizer, start)


def _ready(tokenizer: Tokenizer, start: bool) -> PreTrainedTokenizerFast:
    if start:
        tokenizer.post_processor = processors.TemplateProcessing("<bos> $A", special_tokens=[("<bos>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )


def texts(count: int, longest: int, seed: int = 0) -> list[str]:
    """Random texts of 1 to `longest` characters."""
    draw = random.Random(seed)
    return ["".join(draw.choices(LETTERS[:36], k=draw.randint(1, longest))) for _ in range(count)]
