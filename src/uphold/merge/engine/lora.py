"""LoRA adapters as differences of single weights, read from the adapter's folder without making a model of it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from uphold.core.errors import ModelError
from uphold.core.storage import read_json
from uphold.models.checkpoint import Checkpoint, open_checkpoint

_PREFIX = "base_model.model."
_ROWS = 256
"""Rows of an update that are computed at once: always the same ones, so that rounding never depends on the reader."""
_KEPT_BASE = (None, True, False, "gaussian", "orthogonal")
"""Ways to start a LoRA that leave the base's weights as they are."""


@dataclass(frozen=True)
class Update:
    """What an adapter does to one weight: adds `scale * up @ down` to it, or puts another in its place."""

    down: torch.Tensor
    """Shape (rank, inputs); the new weight itself where `up` is None."""
    up: torch.Tensor | None
    """Shape (outputs, rank)."""
    scale: float
    transposed: bool
    """Whether the weight is stored as (inputs, outputs)."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight that it is for."""
        if self.up is None:
            return tuple(self.down.shape)
        shape = (self.up.shape[0], self.down.shape[1])
        return shape[::-1] if self.transposed else shape

    def apply(self, flat: torch.Tensor, start: int) -> torch.Tensor:
        """The elements from `start` on with the update.

        Args:
            flat: those of the base, float32, shape (n,); left as they are.
            start: which the first one is in the flattened weight.
        """
        stop = start + flat.numel()
        if self.up is None:
            return self.down.reshape(-1)[start:stop].float()
        left, right = self.up.float(), self.down.float()
        if self.transposed:
            left, right = right.T.contiguous(), left.T.contiguous()
        columns = right.shape[1]
        result = flat.clone()
        first = start // columns // _ROWS * _ROWS
        for row in range(first, -(-stop // columns), _ROWS):
            block = (left[row : row + _ROWS] @ right).reshape(-1)
            offset = row * columns
            begin, end = max(start, offset), min(stop, offset + block.numel())
            result[begin - start : end - start].add_(block[begin - offset : end - offset], alpha=self.scale)
        return result


def read_updates(folder: Path, base: Checkpoint, name: str) -> tuple[dict[str, Update], Checkpoint]:
    """The updates of an adapter by the names of the base's weights, and the adapter's open file.

    Raises:
        ModelError: it is no plain LoRA, or does not fit the base.
    """
    config = read_json(folder / "adapter_config.json")
    _check_plain(config, name)
    file = open_checkpoint(folder)
    updates: dict[str, Update] = {}
    for key in file.infos:
        target, kind = _target(key)
        if kind == "up":
            continue
        if target not in base.infos and target not in base.tied:
            raise ModelError(f"'{name}': the adapter changes {target!r}, which the base lacks; name its own base")
        update = _update(config, file, key, target, kind, name)
        if update.shape != base.infos[base.tied.get(target, target)].shape:
            raise ModelError(
                f"'{name}': the adapter's change of {target!r} has shape {update.shape}, the base's weight "
                f"{base.infos[base.tied.get(target, target)].shape}; name its own base"
            )
        updates[base.tied.get(target, target)] = update
    return updates, file


def _target(key: str) -> tuple[str, str]:
    """Which of the base's weights a tensor of an adapter belongs to, and which part of the update it is."""
    name = key.removeprefix(_PREFIX)
    for mark, kind in (
        (".lora_A.weight", "down"),
        (".lora_B.weight", "up"),
        (".lora_embedding_A", "embedding"),
        (".lora_embedding_B", "up"),
    ):
        if name.endswith(mark):
            return name.removesuffix(mark) + ".weight", kind
    return name, "whole"


def _update(config: Mapping[str, Any], file: Checkpoint, key: str, target: str, kind: str, name: str) -> Update:
    if kind == "whole":
        return Update(file.tensor(key), None, 1.0, False)
    other = key.replace(".lora_A.", ".lora_B.").replace(".lora_embedding_A", ".lora_embedding_B")
    if other not in file.infos:
        raise ModelError(f"'{name}': the adapter has {key!r} but no {other!r}; copy it again")
    down, up = file.tensor(key), file.tensor(other)
    if down.dim() != 2 or up.dim() != 2 or down.shape[0] != up.shape[1]:
        raise ModelError(f"'{name}': {key!r} is no LoRA of a linear layer or an embedding: only these are merged in")
    module = target.removesuffix(".weight")
    rank = int(_pattern(config.get("rank_pattern"), module, config["r"]))
    alpha = float(_pattern(config.get("alpha_pattern"), module, config["lora_alpha"]))
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return Update(down, up, scale, kind == "embedding" or bool(config.get("fan_in_fan_out")))


def _pattern(patterns: Any, module: str, default: Any) -> Any:
    """What a pattern of PEFT says of a module: its keys are ends of module names, or regular expressions of them."""
    for key, value in (patterns or {}).items():
        if module == key or module.endswith(f".{key}") or re.fullmatch(rf"(.*\.)?({key})", module):
            return value
    return default


def _check_plain(config: Any, name: str) -> None:
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise ModelError(f"'{name}': the adapter is of the kind {kind}; only a LoRA can be merged into the weights")
    odd = [key for key in ("use_dora", "layer_replication", "lora_bias", "trainable_token_indices") if config.get(key)]
    if config.get("bias", "none") != "none":
        odd.append("bias")
    if config.get("init_lora_weights", True) not in _KEPT_BASE:
        odd.append("init_lora_weights")
    if odd:
        raise ModelError(
            f"'{name}': the adapter uses {', '.join(odd)}; only a plain LoRA can be merged into the weights: "
            "merge it with PEFT first"
        )
