"""Several models on one set of frozen weights.

Each model is a tree of modules of its own, with its own mode, hooks and adapter; what is frozen in one and equal in
another is the same memory in both. Teachers stay in eval mode while a student trains, nothing has to be switched, and
a second model costs no more than its adapter.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from uphold.models.fingerprint import files_fingerprint
from uphold.models.load import Loaded, ModelLike, attach_adapter, load
from uphold.models.reference import find_model


def shared_copy(model: Any, own: str | None = None) -> Any:
    """A copy of `model` on the same weights, which are frozen in the copy and left as they are in the original.

    Args:
        model: any module.
        own: an adapter whose weights are copied too, instead of being shared.
    """
    import torch

    memo: dict[int, Any] = {}
    for name, value in model.named_parameters(remove_duplicate=False):
        if own is None or f".{own}." not in name:
            memo[id(value)] = torch.nn.Parameter(value.detach(), requires_grad=False)
    for value in model.buffers():
        memo[id(value)] = value
    made = copy.deepcopy(model, memo)
    made.zero_grad(set_to_none=True)
    return made


def load_pair(old: ModelLike, new: ModelLike) -> tuple[Loaded, Loaded]:
    """Two models loaded, on one set of base weights where both are references to one base.

    Raises:
        UpholdError: see `uphold.models.load.load`.
    """
    ready = load(new)
    if not (isinstance(old, str | Path) and isinstance(new, str | Path)) or ready.files is None:
        return load(old), ready
    files = find_model(old)
    fingerprint = files_fingerprint(files)
    if any(fingerprint[part] != ready.fingerprint[part] for part in ("weights", "config", "tokenizer")):
        return load(old), ready
    base = plain_base(ready.model)
    if base is None:
        return load(old), ready
    model = base if files.adapter is None else attach_adapter(base, files, fingerprint["weights"])
    model.eval()
    return Loaded(model, ready.tokenizer, files.name, fingerprint, files), ready


def plain_base(model: Any) -> Any:
    """A copy of `model` without its adapter, on the same weights; None where the adapter has changed these."""
    if not hasattr(model, "peft_config"):
        return shared_copy(model)
    config = model.peft_config[model.active_adapter]
    # Such adapters put weights of their own in the base's place (modules_to_save), or wrote to them (PiSSA, OLoRA).
    kept = getattr(config, "init_lora_weights", True) in (True, False, "gaussian")
    if len(model.peft_config) != 1 or not kept or getattr(config, "modules_to_save", None):
        return None
    return shared_copy(model).unload()
