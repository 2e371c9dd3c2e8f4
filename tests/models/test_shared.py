from __future__ import annotations

from pathlib import Path

import pytest
import torch

from uphold.models.adapter import fresh_adapter, save_adapter, trainable_copy
from uphold.models.fingerprint import module_fingerprint
from uphold.models.load import Loaded, load
from uphold.models.shared import load_pair, shared_copy


def shared_bytes(one: torch.nn.Module, other: torch.nn.Module) -> int:
    """Bytes of weights that two models have in common memory."""
    mine = {value.data_ptr(): value.nbytes for value in one.parameters()}
    return sum(size for place, size in mine.items() if place in {value.data_ptr() for value in other.parameters()})


def weight_bytes(*models: torch.nn.Module) -> int:
    """Bytes that the weights of some models take together, common memory counted once."""
    return sum({value.data_ptr(): value.nbytes for one in models for value in one.parameters()}.values())


IDS = torch.tensor([[5, 6, 7, 8]])


def hashed(model: torch.nn.Module) -> str:
    return str(module_fingerprint(model, "x")["weights"])


@pytest.fixture(scope="module")
def references(model_v1: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The base, and two adapters for it that do something."""
    base, folder, found = load(model_v1), tmp_path_factory.mktemp("adapters"), [str(model_v1)]
    for seed in (1, 2):
        model = fresh_adapter(base, 4, 8, 0.0, seed)
        with torch.no_grad():
            for name, value in model.named_parameters():
                if "lora_B" in name:
                    value.normal_(std=0.1, generator=torch.Generator().manual_seed(seed))
        found.append(f"{model_v1}+{save_adapter(model, base, folder / str(seed), '', {})}")
    return found


def test_a_student_has_the_frozen_weights_of_its_teacher_and_an_adapter_of_its_own(references: list[str]) -> None:
    for reference in references:
        teacher = load(reference)
        student = trainable_copy(teacher, 4, 8, 0.0, 0)
        own = {name: value for name, value in student.named_parameters() if "lora_" in name}
        theirs = {value.data_ptr() for value in teacher.model.parameters()}
        assert own
        for name, value in student.named_parameters():
            assert (value.data_ptr() in theirs) == (name not in own), name
            assert value.requires_grad == (name in own), name
        adapters = sum(value.nbytes for value in own.values())
        assert weight_bytes(teacher.model, student) == weight_bytes(teacher.model) + adapters
        assert shared_bytes(teacher.model, student) == weight_bytes(student) - adapters


def test_tied_weights_stay_tied(model_v1: Path) -> None:
    loaded = load(model_v1)
    loaded.model.lm_head.weight = loaded.model.model.embed_tokens.weight
    made = shared_copy(loaded.model)
    assert made.lm_head.weight is made.model.embed_tokens.weight
    assert made.lm_head.weight.data_ptr() == loaded.model.lm_head.weight.data_ptr()


@pytest.mark.parametrize("which", [0, 1])
def test_training_leaves_the_teacher_bit_for_bit_and_in_eval_mode(references: list[str], which: int) -> None:
    teacher = load(references[which])
    flags = [value.requires_grad for value in teacher.model.parameters()]
    before, said = hashed(teacher.model), teacher.model(IDS).logits
    student = trainable_copy(teacher, 4, 8, 0.5, 0)
    student.train()
    assert not any(module.training for module in teacher.model.modules())
    optimizer = torch.optim.SGD([value for value in student.parameters() if value.requires_grad], lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        student(IDS).logits.square().mean().backward()
        optimizer.step()
    assert hashed(teacher.model) == before
    assert torch.equal(teacher.model(IDS).logits, said)
    assert not torch.equal(student.eval()(IDS).logits, said)
    assert all(value.grad is None for value in teacher.model.parameters())
    assert [value.requires_grad for value in teacher.model.parameters()] == flags


@pytest.mark.parametrize(("old", "new"), [(0, 1), (1, 0), (1, 2), (0, 0)])
def test_a_pair_on_one_base_holds_it_once_and_computes_what_two_would(
    references: list[str], old: int, new: int
) -> None:
    pair = load_pair(references[old], references[new])
    for loaded, index in zip(pair, (old, new), strict=True):
        alone = load(references[index])
        assert torch.equal(loaded.model(IDS).logits, alone.model(IDS).logits)
        assert loaded.fingerprint == alone.fingerprint
        assert (loaded.name, loaded.files) == (alone.name, alone.files)
        assert hashed(loaded.model) == hashed(alone.model)
        assert hasattr(loaded.model, "peft_config") == (index > 0)
    base = weight_bytes(load(references[0]).model)
    assert shared_bytes(pair[0].model, pair[1].model) == base


def test_a_pair_on_two_bases_or_of_models_in_memory_is_loaded_as_it_is(
    references: list[str], model_v1: Path, model_v2: Path
) -> None:
    old, new = load_pair(references[1], model_v2)
    assert shared_bytes(old.model, new.model) == 0
    given: Loaded = load(model_v1)
    assert load_pair(given, references[1])[0] is given
