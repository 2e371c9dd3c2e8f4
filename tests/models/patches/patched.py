"""Model folders, files and patches that the tests of patches on disk share."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from uphold.models.checkpoint import open_checkpoint
from uphold.models.patches.delta import Delta
from uphold.models.patches.patch import Manifest, Patch, value_hash
from uphold.models.patches.quantise import scheme


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below `folder`, or of one file, by its name."""
    files = [folder] if folder.is_file() else sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder.parent)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def sharded(folder: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    """A Llama with tied embeddings in three shards or more, as transformers saves it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=True, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(3)
        LlamaForCausalLM(config).to(dtype).save_pretrained(folder, max_shard_size="3KB")
    (folder / "notes").mkdir()
    (folder / "notes" / "a.txt").write_text("mine")
    return folder


def network_file(path: Path) -> Path:
    """A convolutional network with batch norm, as a state dict in one safetensors file."""
    generator = torch.Generator().manual_seed(0)
    layers = {f"features.{k}.weight": torch.randn(4, 4, 3, 3, generator=generator) for k in (0, 2, 10)}
    norm = {"bn.running_var": torch.ones(4), "bn.num_batches_tracked": torch.tensor(5)}
    save_file({**layers, **norm, "half": torch.randn(9, generator=generator).half()}, path, metadata={"format": "pt"})
    return path


def change(
    model: Path, seed: int, names: Sequence[str] = (), how: str = "", put: dict[str, Any] | None = None
) -> Patch:
    """A random patch for some of the floating-point tensors of a model on disk; for all by default."""
    generator = torch.Generator().manual_seed(seed)
    with open_checkpoint(model) as checkpoint:
        floats = [name for name, info in checkpoint.infos.items() if info.dtype.is_floating_point]
        chosen = [name for name in names or floats if name not in (put or {})]
        deltas = {
            name: Delta.dense(0.1 * torch.randn(checkpoint.infos[name].shape, generator=generator)) for name in chosen
        }
        if how:
            deltas = {name: delta.quantised(scheme(how)) for name, delta in deltas.items()}
        touched = [*deltas, *(put or {})]
        manifest = Manifest("test", {name: value_hash(checkpoint.tensor(name)) for name in touched})
    return Patch(deltas, manifest, put or {})


def tensors(model: Path) -> dict[str, torch.Tensor]:
    """All tensors of a model on disk, copied."""
    with open_checkpoint(model) as checkpoint:
        return {name: checkpoint.tensor(name).clone() for name in checkpoint.infos}


def copy(model: Path, to: Path) -> Path:
    """A copy of a folder or file."""
    return Path(shutil.copytree(model, to) if model.is_dir() else shutil.copyfile(model, to))
