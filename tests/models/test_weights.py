from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from tests.conftest import save_tiny_model
from uphold.core.errors import UsageError
from uphold.models.adapter import fresh_adapter, save_adapter
from uphold.models.load import Loaded, load
from uphold.models.weights import (
    LoraSum,
    bare_copy,
    base_parameters,
    check_same_shapes,
    lora_factors,
    merged,
    relative_distance,
    same_base,
    save_weights,
)


def with_adapter(base: Loaded, rank: int, alpha: float, seed: int) -> Loaded:
    """`base` with a random LoRA that does change its answers."""
    model = fresh_adapter(base, rank, alpha, 0.0, seed)
    draw = torch.Generator().manual_seed(seed)
    for name, value in model.named_parameters():
        if "lora_B" in name:
            value.data.copy_(0.3 * torch.randn(value.shape, generator=draw))
    return base._replace(model=model)


def deltas(model: Any, base: Loaded) -> dict[str, torch.Tensor]:
    """What an adapter adds to every parameter of its base."""
    before = base_parameters(base)
    return {name: (value - before[name]).detach() for name, value in merged(model).named_parameters()}


@pytest.fixture(scope="module")
def base(model_v1: Path) -> Loaded:
    return load(model_v1)


@pytest.fixture(scope="module")
def pair(base: Loaded) -> tuple[Loaded, Loaded]:
    return with_adapter(base, 4, 8, seed=1), with_adapter(base, 3, 5, seed=2)


def test_a_sum_of_adapters_adds_exactly_the_weighted_sum_of_what_each_adds(
    base: Loaded, pair: tuple[Loaded, Loaded]
) -> None:
    ours, theirs = (lora_factors(one.model) for one in pair)
    assert ours
    assert theirs
    both = LoraSum(bare_copy(base), [ours, theirs])
    first, second = (deltas(one.model, base) for one in pair)
    for share in (0.0, 0.3, 1.0):
        both.set([share, 1 - share])
        for name, value in deltas(both.model, base).items():
            assert torch.allclose(value, share * first[name] + (1 - share) * second[name], atol=1e-6), name
    assert both.model.peft_config["default"].r == 7


def test_averaging_the_factors_would_be_something_else(base: Loaded) -> None:
    """The reason for the sum's rank: (B1 + B2)/2 (A1 + A2)/2 is not (B1 A1 + B2 A2)/2."""
    ours, theirs = (lora_factors(with_adapter(base, 4, 8, seed).model) for seed in (1, 2))
    assert ours
    assert theirs
    name = next(iter(ours))
    one, two = ours[name], theirs[name]
    wrong = (one.up + two.up) / 2 @ ((one.down + two.down) / 2)
    right = (one.up @ one.down + two.up @ two.down) / 2
    assert (wrong - right).norm() > 0.5 * right.norm()


def test_adapters_on_other_layers_are_summed_as_well(base: Loaded, pair: tuple[Loaded, Loaded]) -> None:
    whole = lora_factors(pair[0].model)
    assert whole
    names = list(whole)
    first, second = {name: whole[name] for name in names[:5]}, {name: whole[name] for name in names[3:8]}
    both = LoraSum(bare_copy(base), [first, second])
    both.set([1.0, 1.0])
    found = deltas(both.model, base)
    for index, name in enumerate(names):
        times = (index < 5) + (3 <= index < 8)
        expected = times * whole[name].up @ whole[name].down
        assert torch.allclose(found[f"{name}.weight"], expected, atol=1e-6)


def test_a_sum_is_an_ordinary_adapter_on_disk(base: Loaded, pair: tuple[Loaded, Loaded], tmp_path: Path) -> None:
    ours, theirs = (lora_factors(one.model) for one in pair)
    assert ours
    assert theirs
    both = LoraSum(bare_copy(base), [ours, theirs])
    both.set([0.25, 0.75])
    again = load(f"{base.name}+{save_adapter(both.model, base, tmp_path / 'adapter', 'card', {})}")
    ids = torch.arange(4, 20).unsqueeze(0)
    with torch.inference_mode():
        assert torch.equal(again.model(ids).logits, both.model(ids).logits)


def test_a_model_is_taken_apart_under_the_names_that_it_has_without_its_adapter(
    base: Loaded, pair: tuple[Loaded, Loaded]
) -> None:
    plain = base_parameters(base)
    assert base_parameters(pair[0]).keys() == plain.keys() == dict(bare_copy(pair[0]).named_parameters()).keys()
    assert same_base(*pair)
    assert same_base(base, pair[0])
    assert lora_factors(base.model) == {}
    assert merged(base.model) is base.model


def test_what_is_no_plain_lora_has_no_factors(base: Loaded) -> None:
    import copy

    from peft import LoraConfig, get_peft_model

    for changes in (
        {"use_dora": True},
        {"bias": "all"},
        {"modules_to_save": ["lm_head"]},
        {"init_lora_weights": "pissa"},
    ):
        config = LoraConfig(r=2, target_modules=["q_proj"], **changes)
        assert lora_factors(get_peft_model(copy.deepcopy(base.model), config)) is None, changes


def test_other_bases_and_shapes_are_told_apart(base: Loaded, model_v2: Path, tmp_path: Path) -> None:
    other = load(model_v2)
    check_same_shapes(base, other)
    assert not same_base(base, other)
    wide = load(save_tiny_model(tmp_path / "wide", 1, hidden=48))
    with pytest.raises(UsageError, match=r"do not have the same weights \(lm_head.weight is \(47, 32\) and \(47, 48\)"):
        check_same_shapes(base, wide)


def test_the_distance_of_a_model_to_itself_is_0_and_to_a_stranger_about_1_4(base: Loaded, model_v2: Path) -> None:
    ours, theirs = base_parameters(base), base_parameters(load(model_v2))
    assert relative_distance(ours, ours) == 0
    matrices = [name for name in ours if "norm" not in name]
    found = relative_distance({name: ours[name] for name in matrices}, {name: theirs[name] for name in matrices})
    assert found == pytest.approx(2**0.5, abs=0.05)


def test_saved_weights_have_the_checkpoints_names_and_answer_alike(
    base: Loaded, model_v1: Path, tmp_path: Path
) -> None:
    folder = save_weights(base.model, base.tokenizer, tmp_path / "out", "# card\n", {"method": "x"})
    with (
        safe_open(model_v1 / "model.safetensors", "pt") as before,
        safe_open(folder / "model.safetensors", "pt") as after,
    ):
        assert sorted(before.keys()) == sorted(after.keys())
        assert all(torch.equal(before.get_tensor(name), after.get_tensor(name)) for name in before.keys())  # noqa: SIM118
    assert load(folder).tokenizer.get_vocab() == base.tokenizer.get_vocab()
    assert (folder / "README.md").read_text() == "# card\n"


def test_a_pair_of_models_has_no_weights_to_interpolate(base: Loaded) -> None:
    paired = base._replace(name="both", fingerprint=base.fingerprint | {"pair": "x"})
    with pytest.raises(UsageError, match="'both' is a pair of models"):
        check_same_shapes(base, paired)
