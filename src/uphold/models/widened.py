"""A student with more room: the new model's adapter and a fresh one side by side, as one ordinary LoRA."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from uphold.core.errors import UsageError
from uphold.models.adapter import put_lora
from uphold.models.load import Loaded
from uphold.models.shared import plain_base
from uphold.models.weights import Factors, lora_factors


def widened(loaded: Loaded, rank: int, alpha: float, dropout: float, embeddings: bool, seed: int) -> Any:
    """The model with a trainable LoRA that computes at first what its own adapter computes.

    The factors of its adapter stand beside `rank` fresh ones in every linear layer but the output head, and, where
    asked, in the input embeddings, so that the change may have the rank of both. All of it is trained. The frozen
    weights are those of `loaded`, in the same memory.

    Args:
        loaded: a model without an adapter, or with a plain LoRA.
        rank: of the fresh part.
        alpha: what the fresh part adds is multiplied by alpha / rank.
        dropout: before the adapter, in training.
        embeddings: adapt the input embeddings, too.
        seed: of the fresh weights; torch's global generator is left alone.

    Raises:
        UsageError: its adapter is not a plain LoRA of linear layers.
    """
    from peft import LoraConfig

    factors, base = lora_factors(loaded.model), plain_base(loaded.model)
    if factors is None or base is None:
        raise UsageError(
            f"the adapter of '{loaded.name}' is not a plain LoRA of linear layers, so nothing can be put beside it: "
            "merge it into its base first, or choose another method"
        )
    layers = _linear_layers(base)
    places = [_name_of(base, base.get_input_embeddings())] if embeddings else []
    ranks = {name: rank + (len(factors[name].down) if name in factors else 0) for name in (*layers, *places)}
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=sorted(ranks),
        rank_pattern={f"^{name}$": value for name, value in ranks.items() if value != rank},
        alpha_pattern={f"^{name}$": alpha * value / rank for name, value in ranks.items() if value != rank},
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        # The output head keeps the frozen weights that it shares with the embeddings: that is what is wanted here.
        warnings.filterwarnings("ignore", message=".*tie_word_embeddings.*")
        model = put_lora(base, config, seed)
    for name, own in factors.items():
        _put_beside(model.get_base_model().get_submodule(name), own, rank)
    return model


def _put_beside(layer: Any, own: Factors, rank: int) -> None:
    """Write an adapter's factors behind the fresh ones, which lead."""
    scale = layer.scaling["default"]
    with torch.no_grad():
        down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        down[rank:] = own.down.to(down)
        up[:, rank:] = (own.up / scale).to(up)


def _linear_layers(base: Any) -> list[str]:
    """Full names of the linear layers but the output head."""
    head = base.get_output_embeddings()
    return [name for name, module in base.named_modules() if isinstance(module, torch.nn.Linear) and module is not head]


def _name_of(base: Any, wanted: Any) -> str:
    names: dict[int, str] = {id(module): name for name, module in base.named_modules()}
    return names[id(wanted)]
