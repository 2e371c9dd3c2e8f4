from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import LETTERS, save_tiny_model
from uphold.core.errors import CorruptError, ModelError, TokenizerMismatchError, UsageError
from uphold.models.adapter import fresh_adapter, save_adapter
from uphold.models.load import check_same_tokenizer, fingerprint_of, library_versions, load


def test_dtype_and_kernel_are_explicit_whatever_the_checkpoint_says(model_v1: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    loaded = load(model_v1)
    loaded.model.to(torch.bfloat16).save_pretrained(half)
    loaded.tokenizer.save_pretrained(half)
    again = load(half)
    assert again.model.dtype == torch.float32
    assert again.model.config._attn_implementation == "sdpa"
    assert not again.model.training
    assert fingerprint_of(half)["dtype"] == "torch.float32"


def test_reference_and_loaded_model_have_one_fingerprint(model_v1: Path) -> None:
    assert fingerprint_of(load(model_v1)) == fingerprint_of(model_v1)


def test_a_model_and_tokenizer_in_memory_are_taken(model_v1: Path) -> None:
    loaded = load(model_v1)
    pair = load((loaded.model, loaded.tokenizer))
    assert pair.model is loaded.model
    alone = load(loaded.model)
    assert alone.tokenizer.get_vocab() == loaded.tokenizer.get_vocab()
    with pytest.raises(UsageError, match="expected a model reference"):
        load(42)


def test_missing_weights_are_refused_instead_of_drawn(model_v1: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(model_v1, tmp_path / "copy")
    tensors = load_file(copy / "model.safetensors")
    del tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 weights, the first is model\.layers\.0\.mlp\.up_proj\.weight"):
        load(copy)


def test_an_unknown_architecture_is_one_line(tmp_path: Path, model_v1: Path) -> None:
    copy = shutil.copytree(model_v1, tmp_path / "copy")
    (copy / "config.json").write_text(json.dumps({"model_type": "no-such-model"}))
    with pytest.raises(ModelError, match="cannot be loaded") as refused:
        load(copy)
    assert "\n" not in str(refused.value)


def test_an_adapter_for_another_base_is_refused(model_v1: Path, model_v2: Path, tmp_path: Path) -> None:
    base = load(model_v1)
    adapter = save_adapter(fresh_adapter(base, 4, 8, 0.0, 0), base, tmp_path / "adapter", "card", {})
    assert hasattr(load(f"{model_v1}+{adapter}").model, "peft_config")
    with pytest.raises(ModelError, match="trained on another base"):
        load(f"{model_v2}+{adapter}")


def test_an_adapter_of_another_shape_is_refused_without_our_side_file(model_v1: Path, tmp_path: Path) -> None:
    wide = save_tiny_model(tmp_path / "wide", seed=3, hidden=64)
    base = load(model_v1)
    adapter = save_adapter(fresh_adapter(base, 4, 8, 0.0, 0), base, tmp_path / "adapter", "card", {})
    (adapter / "uphold.json").unlink()
    with pytest.raises(ModelError, match="does not fit this base"):
        load(f"{wide}+{adapter}")


def test_a_damaged_adapter_is_named(model_v1: Path, tmp_path: Path) -> None:
    base = load(model_v1)
    adapter = save_adapter(fresh_adapter(base, 4, 8, 0.0, 0), base, tmp_path / "adapter", "card", {})
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:50])
    with pytest.raises(CorruptError, match=r"adapter_model\.safetensors"):
        load(f"{model_v1}+{adapter}")


def test_equal_vocabulary_sizes_are_not_equal_tokenizers(model_v1: Path, tmp_path: Path) -> None:
    swapped = LETTERS[1] + LETTERS[0] + LETTERS[2:]
    other = load(save_tiny_model(tmp_path / "other", seed=1, letters=swapped))
    same = load(model_v1)
    check_same_tokenizer(same, load(model_v1))
    with pytest.raises(TokenizerMismatchError, match="'a' is 4 and 5"):
        check_same_tokenizer(same, other)


def test_versions_of_what_can_change_a_number_are_recorded() -> None:
    assert {"uphold", "torch", "transformers", "peft"} <= library_versions().keys()


def test_a_gguf_file_loads_through_transformers(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    path = write_gguf(gguf, tmp_path / "tiny.gguf")
    loaded = load(path)
    assert loaded.model.dtype == torch.float32
    assert loaded.fingerprint["weights"] == fingerprint_of(path)["weights"]
    ids = loaded.tokenizer("a b", return_tensors="pt")["input_ids"]
    assert torch.isfinite(loaded.model(ids).logits).all()


def write_gguf(gguf: object, path: Path) -> Path:
    """A one-layer Llama with a byte-pair tokenizer, written with the gguf package."""
    import numpy as np

    writer = gguf.GGUFWriter(str(path), "llama")  # type: ignore[attr-defined]
    hidden, wide, tokens = 8, 16, ["<s>", "</s>", "a", "b", "Ġ", "ab"]
    writer.add_block_count(1)
    writer.add_context_length(32)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(wide)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 1, 1, 1, 1])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    draw = np.random.default_rng(0)
    shapes = {
        "token_embd.weight": (len(tokens), hidden),
        "output.weight": (len(tokens), hidden),
        "output_norm.weight": (hidden,),
        "blk.0.attn_norm.weight": (hidden,),
        "blk.0.ffn_norm.weight": (hidden,),
        **{f"blk.0.attn_{part}.weight": (hidden, hidden) for part in ("q", "k", "v", "output")},
        "blk.0.ffn_gate.weight": (wide, hidden),
        "blk.0.ffn_up.weight": (wide, hidden),
        "blk.0.ffn_down.weight": (hidden, wide),
    }
    for name, shape in shapes.items():
        writer.add_tensor(name, draw.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
