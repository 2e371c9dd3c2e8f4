"""LoRA adapters: fresh ones, trainable copies, and writing them as ordinary PEFT folders."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from uphold.core.errors import ModelError
from uphold.core.storage import atomic_folder, write_json, write_text
from uphold.models.fingerprint import files_fingerprint, weights_hash
from uphold.models.load import ADAPTER_FACTS, Loaded
from uphold.models.reference import ModelFiles
from uphold.models.shared import shared_copy


def fresh_adapter(loaded: Loaded, rank: int, alpha: float, dropout: float, seed: int) -> Any:
    """The model with a new LoRA on all linear layers but the output head (PEFT's "all-linear"), on the same weights.

    It computes what the model computes, since LoRA's second factor starts at zero; the first is drawn from
    `seed` without touching torch's global generator.
    """
    from peft import LoraConfig

    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    return put_lora(shared_copy(loaded.model), config, seed)


def put_lora(base: Any, config: Any, seed: int = 0) -> Any:
    """`base`, which is changed, with a new adapter in eval mode, drawn from `seed`; torch's generator is left alone."""
    import torch
    from peft import get_peft_model

    with torch.random.fork_rng(), warnings.catch_warnings():
        # PEFT asks the base whether it checkpoints by a name that transformers is about to drop.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        torch.manual_seed(seed)
        model = get_peft_model(base, config)
    model.eval()
    return model


def trainable_copy(loaded: Loaded, rank: int, alpha: float, dropout: float, seed: int) -> Any:
    """The model with an adapter that alone is trainable: a copy of its own adapter, or a fresh LoRA.

    It shares the frozen weights of `loaded`, which goes on computing what it did (`uphold.models.shared`).
    """
    if not is_adapted(loaded):
        return fresh_adapter(loaded, rank, alpha, dropout, seed)
    active = loaded.model.active_adapter
    model = shared_copy(loaded.model, active)
    model.set_adapter(active)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(f".{active}." in name and parameter.is_floating_point())
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ModelError(f"the adapter of '{loaded.name}' has no weights that can be trained")
    model.eval()
    return model


def is_adapted(loaded: Loaded) -> bool:
    """Whether the model carries a PEFT adapter."""
    return hasattr(loaded.model, "peft_config")


def base_weights(loaded: Loaded) -> str | None:
    """The hash of the base's weights on disk; None for a model that was handed over loaded."""
    return loaded.fingerprint["weights"] if loaded.files is not None else None


def base_name(loaded: Loaded) -> str:
    """The reference of the base, without its adapter."""
    if loaded.files is not None and loaded.files.adapter is not None:
        return loaded.name.rpartition("+")[0]
    return loaded.name


def save_adapter(model: Any, base: Loaded, folder: Path, card: str, facts: dict[str, Any]) -> Path:
    """Write the adapter of `model` as a PEFT folder with a model card and Uphold's side file.

    Args:
        model: a `peft.PeftModel`.
        base: what it was trained from; names the base and its weights.
        folder: replaced as a whole.
        card: the model card's Markdown, its YAML header included.
        facts: what else goes into `uphold.json`.
    """
    for config in model.peft_config.values():
        config.base_model_name_or_path = base_name(base)
        if isinstance(config.target_modules, set):
            config.target_modules = sorted(config.target_modules)
    with atomic_folder(folder) as temporary:
        # save_embedding_layers=False: PEFT would otherwise ask the hub whether the vocabulary was resized.
        model.save_pretrained(str(temporary), save_embedding_layers=False)
        write_json(temporary / ADAPTER_FACTS, {"base": base_name(base), "base_weights": base_weights(base), **facts})
        write_text(temporary / "README.md", card)
    return folder


def adapted(model: Any, base: Loaded, folder: Path, name: str) -> Loaded:
    """`model` as a `Loaded` whose fingerprint is that of the saved adapter in `folder` on the same base."""
    if base.files is not None:
        files = ModelFiles(name, base.files.base, folder)
        return Loaded(model, base.tokenizer, name, files_fingerprint(files), files)
    fingerprint = base.fingerprint | {"name": name, "adapter": weights_hash(folder)}
    return Loaded(model, base.tokenizer, name, fingerprint, None)
