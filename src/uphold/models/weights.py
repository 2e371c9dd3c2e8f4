"""Weights of whole models and of LoRA adapters: taken apart, interpolated, written back, saved.

Names are those of the model without its adapter. A saved checkpoint has the names of the one it was made from.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from uphold.core.errors import UsageError
from uphold.core.storage import atomic_folder, write_json, write_text
from uphold.models.adapter import is_adapted, put_lora
from uphold.models.load import ADAPTER_FACTS, Loaded
from uphold.models.shared import shared_copy


class Factors(NamedTuple):
    """What a LoRA adds to one linear layer: the matrix `up @ down`, its scale included."""

    down: torch.Tensor
    """Shape (rank, inputs)."""
    up: torch.Tensor
    """Shape (outputs, rank), in float32."""


def base_parameters(loaded: Loaded) -> dict[str, torch.Tensor]:
    """The parameters of a model without its adapter, tied ones once."""
    if not is_adapted(loaded):
        return dict(loaded.model.named_parameters())
    from peft.tuners.tuners_utils import BaseTunerLayer

    base = loaded.model.get_base_model()
    added = {"modules_to_save"}
    for layer in base.modules():
        if isinstance(layer, BaseTunerLayer):
            added.update(layer.adapter_layer_names)
    return {
        name.replace(".base_layer.", ".").replace(".original_module.", "."): value
        for name, value in base.named_parameters()
        if added.isdisjoint(name.split("."))
    }


def check_same_shapes(old: Loaded, new: Loaded) -> None:
    """Refuse models whose weights do not correspond one to one.

    Raises:
        UsageError: they are of two architectures or sizes, the message names the first difference; or one is a pair.
    """
    for one in (old, new):
        if "pair" in one.fingerprint:
            raise UsageError(
                f"'{one.name}' is a pair of models: its weights cannot be interpolated, name one of the two"
            )
    ours, theirs = ({name: tuple(value.shape) for name, value in base_parameters(one).items()} for one in (old, new))
    if ours == theirs:
        return
    name = min(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    raise UsageError(
        f"'{old.name}' and '{new.name}' do not have the same weights ({name} is {ours.get(name, 'absent')} and "
        f"{theirs.get(name, 'absent')}): interpolation needs one architecture; repair by distillation instead "
        "('uphold methods' lists what there is)"
    )


def same_base(old: Loaded, new: Loaded) -> bool:
    """Whether two models are equal bit for bit but for their adapters."""
    ours, theirs = base_parameters(old), base_parameters(new)
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


def relative_distance(old: Mapping[str, torch.Tensor], new: Mapping[str, torch.Tensor]) -> float:
    """|old - new| / |new| over all weights (Euclidean norms); about 1.4 for models that have nothing in common."""
    with torch.no_grad():
        between = sum(float((new[name].float() - value.float()).square().sum()) for name, value in old.items())
        length = sum(float(value.float().square().sum()) for value in new.values())
    return float((between / length) ** 0.5) if length else float("inf")


def bare_copy(loaded: Loaded) -> Any:
    """The model without its adapter: a tree of modules of its own, on the same frozen weights."""
    module = shared_copy(loaded.model)
    return module.unload() if is_adapted(loaded) else module


def merged(model: Any) -> Any:
    """A model with its adapter added to its weights: a copy, or the model itself where it has no adapter."""
    if not hasattr(model, "peft_config"):
        return model
    return copy.deepcopy(model).merge_and_unload()


def lora_factors(model: Any) -> dict[str, Factors] | None:
    """What the model's adapter adds, by layer: nothing where there is no adapter, None where it is no plain LoRA.

    Plain is a LoRA of linear layers only, without variants (DoRA, biases, layers trained as a whole, first factors
    taken out of the base's weights).
    """
    if not hasattr(model, "peft_config"):
        return {}
    from peft import LoraConfig
    from peft.tuners.lora import LoraLayer

    names = list(model.active_adapters)
    config = model.peft_config[names[0]] if len(names) == 1 else None
    if not isinstance(config, LoraConfig) or config.bias != "none" or config.modules_to_save or config.use_dora:
        return None
    if config.init_lora_weights not in (True, False, "gaussian"):
        return None
    found: dict[str, Factors] = {}
    for name, layer in model.get_base_model().named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        plain = names[0] in layer.lora_A and not layer.lora_variant.get(names[0]) and not layer.merged
        if not plain or getattr(layer.lora_B[names[0]], "bias", None) is not None:
            return None
        down, up = layer.lora_A[names[0]].weight.detach(), layer.lora_B[names[0]].weight.detach()
        if down.dim() != 2 or up.dim() != 2:
            return None
        found[name] = Factors(down, up.float() * layer.scaling[names[0]])
    return found


class LoraSum:
    """An ordinary LoRA whose matrices are a weighted sum of those of several, exactly: sum_i c_i up_i @ down_i.

    The ranks add up: the factors stand side by side. Averaging the factors themselves would give products of one
    adapter's `up` with another's `down`, which no model was trained with.
    """

    def __init__(self, base: Any, parts: Sequence[Mapping[str, Factors]]) -> None:
        """Put the adapter on `base`, which is changed; all coefficients are 0 at first.

        Args:
            base: a model without an adapter.
            parts: the adapters, by layer; a layer may be missing in some of them.
        """
        from peft import LoraConfig

        self._parts = parts
        names = sorted({name for part in parts for name in part})
        rank = max(sum(len(part[name].down) for part in parts if name in part) for name in names)
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=_targets(base, names), task_type="CAUSAL_LM")
        self.model: Any = put_lora(base, config)
        self._layers = {name: self.model.get_base_model().get_submodule(name) for name in names}
        with torch.no_grad():
            for name, layer in self._layers.items():
                downs = [part[name].down for part in parts if name in part]
                target = layer.lora_A["default"].weight
                target.zero_()
                target[: sum(map(len, downs))] = torch.cat(downs).to(target)

    def set(self, coefficients: Sequence[float]) -> None:
        """Write the coefficients, one for each adapter."""
        with torch.no_grad():
            for name, layer in self._layers.items():
                pairs = zip(coefficients, self._parts, strict=True)
                ups = torch.cat([factor * part[name].up for factor, part in pairs if name in part], dim=1)
                layer.lora_B["default"].weight[:, : ups.shape[1]] = ups.to(layer.lora_B["default"].weight)


def save_weights(model: Any, tokenizer: Any, folder: Path, card: str, facts: Mapping[str, Any]) -> Path:
    """Write a model as a folder that transformers can load, with a model card and Uphold's side file.

    Args:
        model: without an adapter.
        tokenizer: its tokenizer.
        folder: replaced as a whole.
        card: the model card's Markdown.
        facts: the content of `uphold.json`.
    """
    with atomic_folder(folder) as temporary:
        model.save_pretrained(str(temporary))
        tokenizer.save_pretrained(str(temporary))
        write_json(temporary / ADAPTER_FACTS, dict(facts))
        write_text(temporary / "README.md", card)
    return folder


def _targets(base: Any, names: Sequence[str]) -> list[str]:
    """Short names of the layers where these mean the same layers, else their full names."""
    short = sorted({name.rpartition(".")[2] for name in names})
    meant = {name for name, _ in base.named_modules() if name.rpartition(".")[2] in short}
    return short if meant == set(names) else list(names)
