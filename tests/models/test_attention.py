from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from transformers import Gemma3Config

from tests.models.tiny import CONFIGS, VOCABULARY, tiny
from uphold.models import attention
from uphold.models.attention import (
    accepted_arguments,
    attention_window,
    mask_for,
    max_length,
    predictions,
    read_header,
    reads_masks,
    reads_padding,
)

IDS = torch.tensor([[5, 9, 13, 17, 21, 25], [7, 9, 11, 13, 15, 17]])


def full_logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return torch.as_tensor(model(ids).logits)


# ---- who takes masks ----

TAKES_MASKS = [
    ("llama", "sdpa"),
    ("llama", "eager"),
    ("gpt2", "sdpa"),
    ("gpt2", "eager"),
    ("qwen2", "sdpa"),
    ("qwen2", "eager"),
    ("mistral", "sdpa"),
    ("mixtral", "sdpa"),
    ("gemma3", "sdpa"),
    ("gemma3", "eager"),
    ("gemma2", "eager"),
    ("llama4", "sdpa"),
]


@pytest.mark.parametrize(("kind", "kernel"), TAKES_MASKS)
def test_causal_transformers_with_explicit_positions_take_masks(kind: str, kernel: str) -> None:
    assert reads_masks(tiny(kind, kernel))


@pytest.mark.parametrize(
    ("kind", "kernel"),
    [("mamba", "eager"), ("rwkv", "eager"), ("bloom", "eager"), ("falcon-alibi", "sdpa"), ("falcon-alibi", "eager")],
)
def test_recurrent_models_and_positions_taken_from_the_mask_do_not(kind: str, kernel: str) -> None:
    assert not reads_masks(tiny(kind, kernel))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_other_dtypes_take_masks_too(kernel: str, dtype: torch.dtype) -> None:
    assert reads_masks(copy.deepcopy(tiny("llama", kernel)).to(dtype))


def test_a_kernel_that_takes_no_mask_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")
    monkeypatch.setattr(model.config, "_attn_implementation_internal", "flash_attention_2")
    monkeypatch.setattr(attention, "predictions", None)

    assert model.config._attn_implementation == "flash_attention_2"
    assert not reads_masks(model)


def test_a_model_that_overlooks_the_mask_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")
    plain = type(model).forward

    def deaf(
        self: Any, *, attention_mask: Any = None, position_ids: Any = None, past_key_values: Any = None, **rest: Any
    ) -> Any:
        return plain(self, position_ids=position_ids, past_key_values=past_key_values, **rest)

    monkeypatch.setattr(model, "forward", deaf.__get__(model))

    assert not reads_masks(model)


@pytest.mark.parametrize(
    ("kind", "kernel", "reads"),
    [
        ("llama", "sdpa", True),
        ("mistral", "sdpa", True),
        ("mamba", "eager", True),
        ("bloom", "eager", True),
        ("falcon-alibi", "sdpa", True),
        ("rwkv", "eager", False),
    ],
)
def test_who_may_be_padded_on_the_left(kind: str, kernel: str, reads: bool) -> None:
    assert reads_padding(tiny(kind, kernel)) == reads


# ---- predictions ----


@pytest.mark.parametrize(
    ("kind", "kernel"),
    [("llama", "sdpa"), ("gpt2", "eager"), ("gemma2", "eager"), ("granite", "sdpa"), ("bloom", "eager")],
)
def test_predictions_are_the_models_own_logits(kind: str, kernel: str) -> None:
    """Soft-capping (Gemma 2) and scaling (Granite) come after the projection and stay."""
    model = tiny(kind, kernel)
    rows, positions = torch.tensor([1, 0, 0, 1, 1]), torch.tensor([5, 2, 0, 5, 3])

    ours = predictions(model, {"input_ids": IDS}, rows, positions)

    assert ours.shape == (5, VOCABULARY)
    torch.testing.assert_close(ours, full_logits(model, IDS)[rows, positions], atol=1e-5, rtol=0)
    if kind == "gemma2":
        assert ours.abs().max() <= 2.0


@pytest.mark.parametrize(("rows", "positions"), [([1, 0], [5, 2]), ([0] * 6, [5, 5, 4, 0, 1, 1])])
def test_a_model_without_a_projection_that_we_know_gives_the_same(
    rows: list[int], positions: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where as many predictions are asked for as the only row has tokens."""
    model, ids = tiny("llama"), IDS[: max(rows) + 1]
    at = torch.tensor(rows), torch.tensor(positions)
    narrowed = predictions(model, {"input_ids": ids}, *at)
    monkeypatch.setattr(model, "get_output_embeddings", lambda: None)

    torch.testing.assert_close(predictions(model, {"input_ids": ids}, *at), narrowed, atol=1e-5, rtol=0)


def test_nothing_stays_behind_in_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")
    predictions(model, {"input_ids": IDS}, torch.tensor([0]), torch.tensor([0]))
    with pytest.raises(IndexError):
        predictions(model, {"input_ids": IDS + 10_000}, torch.tensor([0]), torch.tensor([0]))

    assert not model.get_output_embeddings()._forward_pre_hooks
    assert full_logits(model, IDS).shape == (2, 6, VOCABULARY)


# ---- headers and masks ----


@pytest.mark.parametrize(("kind", "kernel"), [("llama", "sdpa"), ("gpt2", "eager"), ("gemma3", "sdpa")])
def test_a_header_is_read_once_for_all_rows(kind: str, kernel: str) -> None:
    model = tiny(kind, kernel)
    header = [3, 4, 5]
    cache = read_header(model, header)
    assert cache.get_seq_length() == 3
    whole = full_logits(model, torch.cat([torch.tensor([header, header]), IDS], dim=1))
    seen = torch.ones(2, 6, 9, dtype=torch.bool).tril(3)

    for _ in range(2):  # what is read after a header is not kept
        arguments = {
            "input_ids": IDS,
            "position_ids": torch.arange(3, 9).expand(2, -1),
            "attention_mask": mask_for(model, seen),
            "past_key_values": cache,
            "use_cache": True,
        }
        ours = predictions(model, arguments, torch.tensor([0, 1]), torch.tensor([5, 5]))
        torch.testing.assert_close(ours, whole[:, -1], atol=1e-5, rtol=0)
        assert cache.get_seq_length() == 3


def test_masks_are_boolean_for_sdpa_and_added_elsewhere() -> None:
    seen = torch.tensor([[[True, False], [True, True]]])

    assert mask_for(tiny("llama"), seen).tolist() == [[[[True, False], [True, True]]]]
    lowest = torch.finfo(torch.float32).min
    assert mask_for(tiny("llama", "eager"), seen).tolist() == [[[[0.0, lowest], [0.0, 0.0]]]]


# ---- what configurations say ----


@pytest.mark.parametrize(
    ("kind", "changes", "window"),
    [
        ("llama", {}, None),
        ("mistral", {}, 6),
        ("mistral", {"sliding_window": None}, None),
        ("qwen2", {}, None),
        ("qwen2", {"sliding_window": 12}, None),  # switched off unless use_sliding_window
        ("qwen2", {"sliding_window": 12, "use_sliding_window": True, "max_window_layers": 1}, 12),
        ("gemma2", {}, 16),
        ("gemma3", {}, 16),
        ("gemma3", {"layer_types": ["full_attention", "full_attention"]}, None),
        ("llama4", {}, 8),
        ("mamba", {}, None),
        ("bloom", {}, None),
    ],
)
def test_the_narrowest_attention_window(kind: str, changes: dict[str, Any], window: int | None) -> None:
    assert attention_window(SimpleNamespace(config=config(kind, **changes))) == window  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "changes", "length"),
    [
        ("llama", {"max_position_embeddings": 128}, 128),
        ("gpt2", {"n_positions": 96}, 96),
        ("mamba", {}, None),
        ("bloom", {}, None),
    ],
)
def test_the_longest_row(kind: str, changes: dict[str, Any], length: int | None) -> None:
    assert max_length(SimpleNamespace(config=config(kind, **changes))) == length  # type: ignore[arg-type]


def test_a_model_for_pictures_too_says_it_in_its_text_part() -> None:
    both = Gemma3Config(text_config={**CONFIGS["gemma3"][1], "vocab_size": VOCABULARY, "max_position_embeddings": 64})
    model: Any = SimpleNamespace(config=both)

    assert attention_window(model) == 16
    assert max_length(model) == 64


def config(kind: str, **changes: Any) -> Any:
    name, values = CONFIGS[kind]
    ids = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return getattr(transformers, name)(**{**ids, **values, **changes})


def test_the_arguments_are_those_of_the_wrapped_base() -> None:
    class Wrapped:
        def get_base_model(self) -> Any:
            return tiny("llama")

        def forward(self, *args: Any, **kwargs: Any) -> None: ...

    assert {"position_ids", "past_key_values", "logits_to_keep"} <= accepted_arguments(Wrapped())  # type: ignore[arg-type]
    assert accepted_arguments(Wrapped()) == accepted_arguments(tiny("llama"))  # type: ignore[arg-type]
