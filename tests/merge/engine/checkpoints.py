"""Small checkpoints on disk, made of whatever tensors a test needs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from uphold.models.checkpoint_writer import CheckpointWriter

HIDDEN, ROWS = 4, 6


def save_model(
    folder: Path, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any] | None = None, shard_size: int = 10**9
) -> Path:
    """A model folder with these tensors, in shards where the size asks for it."""
    kinds = {name: (value.dtype, tuple(value.shape)) for name, value in tensors.items()}
    with CheckpointWriter(folder, kinds, shard_size=shard_size) as writer:
        for name, value in tensors.items():
            writer.write(name, value)
        (writer.folder / "config.json").write_text(json.dumps({"model_type": "llama", **(config or {})}))
    return folder


def decoder(
    seed: int, layers: int = 3, dtype: torch.dtype = torch.float32, rows: int = ROWS
) -> dict[str, torch.Tensor]:
    """Tensors named as those of a decoder, each with numbers of its own."""
    generator = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (rows, HIDDEN)}
    for number in range(layers):
        shapes[f"model.layers.{number}.self_attn.q_proj.weight"] = (HIDDEN, HIDDEN)
        shapes[f"model.layers.{number}.mlp.up_proj.weight"] = (2 * HIDDEN, HIDDEN)
        shapes[f"model.layers.{number}.input_layernorm.weight"] = (HIDDEN,)
    shapes |= {"model.norm.weight": (HIDDEN,), "lm_head.weight": (rows, HIDDEN)}
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def near(base: Mapping[str, torch.Tensor], seed: int, scale: float = 0.1) -> dict[str, torch.Tensor]:
    """A "fine-tune": the base plus some noise."""
    generator = torch.Generator().manual_seed(1000 + seed)
    return {
        name: (value.float() + scale * torch.randn(value.shape, generator=generator)).to(value.dtype)
        if value.is_floating_point()
        else value
        for name, value in base.items()
    }


def linear(models: Sequence[Path | str], weights: Sequence[float] | None = None, **more: Any) -> dict[str, Any]:
    """A recipe of a weighted mean."""
    weights = weights or [1.0] * len(models)
    entries = [
        {"model": str(model), "parameters": {"weight": weight}} for model, weight in zip(models, weights, strict=True)
    ]
    return {"merge_method": "linear", "models": entries, **more}
