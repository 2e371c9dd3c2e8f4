from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.merge.engine.checkpoints import decoder, linear, save_model
from uphold.core.errors import ModelError
from uphold.merge import merge
from uphold.merge.engine.lora import Update
from uphold.merge.engine.run import merge as run_merge
from uphold.models.checkpoint import open_checkpoint

BASE = decoder(0)
UP = "model.layers.1.mlp.up_proj"


def save_adapter(folder: Path, tensors: dict[str, torch.Tensor], **config: Any) -> Path:
    from safetensors.torch import save_file

    folder.mkdir()
    save_file(
        {f"base_model.model.{name}": value for name, value in tensors.items()}, folder / "adapter_model.safetensors"
    )
    content = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none", **config}
    (folder / "adapter_config.json").write_text(json.dumps(content))
    return folder


def factors(outputs: int = 8, inputs: int = 4, rank: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {
        f"{UP}.lora_A.weight": torch.randn(rank, inputs, generator=generator),
        f"{UP}.lora_B.weight": torch.randn(outputs, rank, generator=generator),
    }


def merged(tmp_path: Path, adapter: Path) -> dict[str, torch.Tensor]:
    base = save_model(tmp_path / "base", BASE)
    run_merge(linear([f"{base}+{adapter}"]), out=tmp_path / "out", threads=1)
    with open_checkpoint(tmp_path / "out") as checkpoint:
        return {name: checkpoint.tensor(name).clone() for name in checkpoint.infos}


@pytest.mark.parametrize(
    ("config", "scale"),
    [({}, 2.0), ({"use_rslora": True}, 4 / 2**0.5), ({"alpha_pattern": {"up_proj": 6}}, 3.0), ({"lora_alpha": 1}, 0.5)],
)
def test_an_adapter_is_merged_into_the_weights(tmp_path: Path, config: dict[str, Any], scale: float) -> None:
    parts = factors()
    found = merged(tmp_path, save_adapter(tmp_path / "adapter", parts, **config))
    change = scale * parts[f"{UP}.lora_B.weight"] @ parts[f"{UP}.lora_A.weight"]
    torch.testing.assert_close(found.pop(f"{UP}.weight"), BASE[f"{UP}.weight"] + change)
    assert all(value.equal(BASE[name]) for name, value in found.items())


def test_peft_computes_the_same(model_v1: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    from uphold.models.load import load

    model = get_peft_model(load(str(model_v1)).model, LoraConfig(r=3, lora_alpha=5, target_modules="all-linear"))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_" in name:
                value.copy_(torch.randn(value.shape, generator=generator))
    model.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
    merge(linear([f"{model_v1}+{tmp_path / 'adapter'}"]), out=tmp_path / "out", threads=1)
    theirs = model.merge_and_unload().state_dict()
    with open_checkpoint(tmp_path / "out") as checkpoint:
        for name in checkpoint.infos:
            torch.testing.assert_close(checkpoint.tensor(name), theirs[name], rtol=1e-5, atol=1e-5)


def test_layers_that_were_trained_as_a_whole_take_the_place_of_the_bases(tmp_path: Path) -> None:
    norm = torch.tensor([1.0, 2.0, 3.0, 4.0])
    found = merged(tmp_path, save_adapter(tmp_path / "adapter", {"model.norm.weight": norm}))
    assert found["model.norm.weight"].equal(norm)


def test_weights_that_are_stored_the_other_way_round(tmp_path: Path) -> None:
    parts = factors(outputs=4, inputs=8)
    found = merged(tmp_path, save_adapter(tmp_path / "adapter", parts, fan_in_fan_out=True))
    change = 2 * (parts[f"{UP}.lora_B.weight"] @ parts[f"{UP}.lora_A.weight"]).T
    torch.testing.assert_close(found[f"{UP}.weight"], BASE[f"{UP}.weight"] + change)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_piece_of_an_update_is_that_piece_of_the_whole(transposed: bool) -> None:
    generator = torch.Generator().manual_seed(2)
    update = Update(torch.randn(3, 40, generator=generator), torch.randn(600, 3, generator=generator), 0.7, transposed)
    flat = torch.zeros(600 * 40)
    whole = update.apply(flat, 0)
    for start, stop in ((0, 1), (39, 41), (10_239, 10_300), (23_999, 24_000), (500, 20_000)):
        assert update.apply(flat[start:stop], start).equal(whole[start:stop])
    assert not flat.any()


@pytest.mark.parametrize(
    ("tensors", "config", "message"),
    [
        (factors(), {"peft_type": "IA3"}, "only a LoRA"),
        (factors(), {"use_dora": True}, "the adapter uses use_dora"),
        (factors(), {"bias": "all"}, "the adapter uses bias"),
        (factors(), {"init_lora_weights": "pissa"}, "the adapter uses init_lora_weights"),
        (factors(outputs=9), {}, r"has shape \(9, 4\), the base's weight \(8, 4\)"),
        ({"nothing.lora_A.weight": torch.ones(2, 4), "nothing.lora_B.weight": torch.ones(8, 2)}, {}, "the base lacks"),
        ({f"{UP}.lora_A.weight": torch.ones(2, 4)}, {}, "but no .*lora_B"),
        (
            {f"{UP}.lora_A.weight": torch.ones(2, 4, 1, 1), f"{UP}.lora_B.weight": torch.ones(8, 2, 1, 1)},
            {},
            "no LoRA of a linear layer",
        ),
    ],
)
def test_adapters_that_cannot_be_merged_in(
    tmp_path: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        merged(tmp_path, save_adapter(tmp_path / "adapter", tensors, **config))


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter", factors())
    (adapter / "uphold.json").write_text(json.dumps({"base": "other", "base_weights": "0" * 64}))
    with pytest.raises(ModelError, match=r"trained on another base \('other'\)"):
        merged(tmp_path, adapter)
