from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.models.losses import draw, kl
from tests.models.tiny import tiny
from uphold.models.distillation import distillation_loss
from uphold.models.divergence import ForwardKL
from uphold.models.encode import Encoded, collate
from uphold.models.projection import Projected, Reader, Whole
from uphold.models.rules import Term, Tokens, Weights
from uphold.models.train import trained_tokens

BATCH = collate([Encoded([5, 6, 7], [8, 9]), Encoded([10, 11], [12]), Encoded([13, 14, 15, 16], [17, 18])])
TRAINED = trained_tokens(BATCH, "all")
KINDS = {
    "llama": Projected,
    "qwen2": Projected,
    "gpt2": Projected,
    "gemma3": Projected,
    "granite": Whole,
    "gemma2": Whole,
}


class OnlyKL:
    whole_sequences = False

    def __call__(self, tokens: Tokens) -> Weights:
        return Weights((Term("kl", ForwardKL(), 0, tokens.none + 1),))


def embeddings(model: Any) -> torch.nn.Parameter:
    """A weight to train that the head does not share."""
    layer = (getattr(model, "model", None) or model.transformer).get_submodule(
        "h.0.mlp.c_fc" if model.config.model_type == "gpt2" else "layers.0.mlp.up_proj"
    )
    return layer.weight  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_gradients_are_the_models_whatever_it_does_behind_its_head(kind: str) -> None:
    """Granite divides its logits and Gemma 2 caps them: their heads alone would give others."""
    model = tiny(kind, "eager").requires_grad_(False)
    weight = embeddings(model).requires_grad_()
    try:
        read = Reader(model).logits(BATCH, TRAINED.sequence, TRAINED.position)
        assert type(read) is KINDS[kind]
        full = model(input_ids=BATCH.input_ids, attention_mask=BATCH.attention_mask).logits
        full = full[TRAINED.sequence, TRAINED.position]
        assert torch.allclose(read.chunk(slice(None)), full, atol=1e-4)
        assert torch.allclose(read.chunk(slice(2, 5)), full[2:5], atol=1e-4)
        teacher = draw(*full.shape, seed=1)
        [expected] = torch.autograd.grad(kl(teacher, full).sum(), weight)
        total, _ = distillation_loss(read, [Whole(teacher)], TRAINED, OnlyKL())
        [found] = torch.autograd.grad(total, weight)
        assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4)
    finally:
        weight.requires_grad_(False)


def test_a_head_that_is_trained_is_left_to_the_model() -> None:
    model = tiny("llama").requires_grad_(False)
    model.lm_head.weight.requires_grad_()
    try:
        assert isinstance(Reader(model).logits(BATCH, TRAINED.sequence, TRAINED.position), Whole)
    finally:
        model.requires_grad_(False)


def test_no_positions_are_no_logits() -> None:
    nothing = TRAINED.sequence[:0]
    assert len(Reader(tiny("llama")).logits(BATCH, nothing, nothing)) == 0


def test_a_model_is_left_without_hooks() -> None:
    model = tiny("llama").requires_grad_(False)
    Reader(model).logits(BATCH, TRAINED.sequence, TRAINED.position)
    assert not model.lm_head._forward_pre_hooks
    assert model(input_ids=BATCH.input_ids).logits.shape[:2] == BATCH.input_ids.shape


def test_a_cap_is_read_from_the_config_where_no_logit_is_large_enough_to_show_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny("gemma2", "eager")
    monkeypatch.setattr(model.config, "final_logit_softcapping", 1000.0)
    assert isinstance(Reader(model).logits(BATCH, TRAINED.sequence, TRAINED.position), Whole)
