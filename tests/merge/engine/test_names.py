from __future__ import annotations

import pytest

from uphold.merge.engine.names import (
    Layer,
    belongs_to,
    comes_first,
    is_buffer,
    is_embedding,
    is_head,
    layer_of,
    stacks_of,
)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.3.mlp.up_proj.weight", Layer("model.layers.", 3, ".mlp.up_proj.weight")),
        ("transformer.h.11.attn.c_attn.bias", Layer("transformer.h.", 11, ".attn.c_attn.bias")),
        ("model.layers.0.experts.7.w1.weight", Layer("model.layers.", 0, ".experts.7.w1.weight")),
        ("0.weight", Layer("", 0, ".weight")),
        ("model.norm.weight", None),
        ("conv2d.weight", None),
        ("layers.5", None),
        ("a.99999999999999999999.b", None),
        ("", None),
    ],
)
def test_layers_are_found_by_the_first_number(name: str, layer: Layer | None) -> None:
    assert layer_of(name) == layer


def test_stacks_are_counted() -> None:
    names = ["enc.layers.0.w", "enc.layers.5.w", "dec.layers.1.w", "norm.w"]
    assert stacks_of(names) == {"enc.layers.": 6, "dec.layers.": 2}


@pytest.mark.parametrize(
    ("name", "embedding", "head", "first"),
    [
        ("model.embed_tokens.weight", True, False, True),
        ("transformer.wte.weight", True, False, True),
        ("transformer.wpe.weight", False, False, True),
        ("embeddings.word_embeddings.weight", True, False, True),
        ("lm_head.weight", False, True, False),
        ("lm_head.bias", False, True, False),
        ("embed_out.weight", False, True, False),
        ("model.norm.weight", False, False, False),
        ("transformer.ln_f.bias", False, False, False),
    ],
)
def test_what_stands_before_and_behind_the_layers(name: str, embedding: bool, head: bool, first: bool) -> None:
    assert (is_embedding(name), is_head(name), comes_first(name)) == (embedding, head, first)


def test_constants() -> None:
    assert is_buffer("model.layers.0.self_attn.rotary_emb.inv_freq")
    assert not is_buffer("model.layers.0.self_attn.q_proj.bias")


def test_modules_are_parts_of_the_path() -> None:
    assert belongs_to("model.encoder.layers.0.w", "encoder")
    assert belongs_to("model.encoder.layers.0.w", "model.encoder.")
    assert belongs_to("anything", "default")
    assert belongs_to("language_model.model.norm.weight", "text_decoder")
    assert not belongs_to("model.encoder_norm.weight", "encoder")
