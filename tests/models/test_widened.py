from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from uphold.core.errors import UsageError
from uphold.models.adapter import fresh_adapter, save_adapter
from uphold.models.encode import Encoded, collate
from uphold.models.load import Loaded, load
from uphold.models.widened import widened

BATCH = collate([Encoded([5, 6, 7], [8, 9]), Encoded([10, 11], [12])])


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=BATCH.input_ids, attention_mask=BATCH.attention_mask).logits


def shaken(model: torch.nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.parameters():
            if value.requires_grad:
                value += 0.05 * torch.randn(value.shape, generator=generator)


@pytest.fixture
def adapted(model_v2: Path, tmp_path: Path) -> Loaded:
    """A base with a LoRA of rank 4 that does something."""
    base = load(model_v2)
    model = fresh_adapter(base, 4, 8, 0.0, seed=0)
    shaken(model)
    save_adapter(model, base, tmp_path / "adapter", "card", {})
    return load(f"{model_v2}+{tmp_path / 'adapter'}")


@pytest.mark.parametrize("embeddings", [True, False])
def test_a_widened_student_starts_as_the_new_model(adapted: Loaded, embeddings: bool) -> None:
    before = logits(adapted.model)
    student = widened(adapted, 3, 12.0, 0.0, embeddings, seed=1)
    torch.testing.assert_close(logits(student), before, atol=1e-5, rtol=1e-5)
    assert torch.equal(logits(adapted.model), before)
    ranks = {value.shape[0] for name, value in student.named_parameters() if "lora_A" in name}
    assert ranks == {3 + 4}
    assert any("lora_embedding" in name for name, _ in student.named_parameters()) == embeddings
    assert all(value.requires_grad == ("lora_" in name) for name, value in student.named_parameters())


def test_a_base_without_an_adapter_gets_a_fresh_one_only(model_v2: Path) -> None:
    base = load(model_v2)
    student = widened(base, 3, 6.0, 0.0, True, seed=1)
    torch.testing.assert_close(logits(student), logits(base.model))
    assert {value.shape[0] for name, value in student.named_parameters() if "lora_A" in name} == {3}


def test_what_was_trained_is_saved_as_an_ordinary_adapter(adapted: Loaded, model_v2: Path, tmp_path: Path) -> None:
    student = widened(adapted, 3, 12.0, 0.0, True, seed=1)
    shaken(student, seed=2)
    save_adapter(student, adapted, tmp_path / "wide", "card", {})
    again = load(f"{model_v2}+{tmp_path / 'wide'}")
    assert torch.equal(logits(again.model), logits(student))
    assert not torch.allclose(logits(again.model), logits(adapted.model), atol=1e-3)


def test_frozen_weights_are_shared_and_the_seed_is_all_that_counts(adapted: Loaded) -> None:
    state = torch.get_rng_state()
    one, other = (widened(adapted, 3, 12.0, 0.0, True, seed=1) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    for (name, mine), (_, theirs) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(mine, theirs)
        assert (mine.data_ptr() == theirs.data_ptr()) == ("lora_" not in name)


def test_an_adapter_that_is_no_plain_lora_is_refused(model_v2: Path) -> None:
    base = load(model_v2)
    model = get_peft_model(base.model, LoraConfig(r=2, target_modules=["q_proj"], use_dora=True))
    with pytest.raises(UsageError, match="not a plain LoRA of linear layers, so nothing can be put beside it"):
        widened(base._replace(model=model), 3, 12.0, 0.0, True, seed=1)
