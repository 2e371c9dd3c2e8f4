from __future__ import annotations

import gc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.models.patches.test_patch import deltas
from uphold.core.errors import ModelError, UsageError
from uphold.models.load import load
from uphold.models.patches.apply import Applied, apply
from uphold.models.patches.delta import Delta
from uphold.models.patches.make import make
from uphold.models.patches.patch import Manifest, Patch, pristine_hashes


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """A VGG-like network with batch norm."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU()]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(24, 6), nn.Linear(6, 5)).to(dtype)


def bits(model: nn.Module | Mapping[str, torch.Tensor]) -> dict[str, bytes]:
    tensors = model.state_dict() if isinstance(model, nn.Module) else model
    return {
        name: one.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for name, one in tensors.items()
    }


def change(seed: int, scale: float = 0.1, names: tuple[str, ...] = ("0.weight", "3.bias", "7.weight")) -> Patch:
    generator, before = torch.Generator().manual_seed(seed), network().state_dict()
    made = {name: Delta.dense(scale * torch.randn(before[name].shape, generator=generator)) for name in names}
    return Patch(made, Manifest("test", pristine_hashes(before, names)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_bit_is_back_after_a_block(dtype: torch.dtype) -> None:
    model = network(dtype)
    before = bits(model)
    with apply(model, [change(1), change(2)], [0.5, -1.0], force=True) as on:
        assert bits(model) != before
        assert on.asked > on.lost
    assert bits(model) == before


def test_every_bit_is_back_after_an_exception() -> None:
    model = network()
    before = bits(model)
    with pytest.raises(RuntimeError, match="inside"), apply(model, change(1)), apply(model, change(2), 3):
        raise RuntimeError("inside")
    assert bits(model) == before


def test_what_was_trained_meanwhile_is_undone_on_the_touched_tensors() -> None:
    model = network()
    before = bits(model)
    with apply(model, change(1)), torch.no_grad():
        model[0].weight.add_(1.0)
    assert bits(model) == before


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_patches_may_come_and_go_in_any_order(data: st.DataObject) -> None:
    model = network()
    before = bits(model)
    patches = [change(1), change(2, names=("0.weight",)), change(3, names=("7.weight", "0.bias")), change(4, 10.0)]
    on: dict[int, tuple[Applied, float]] = {}
    for _ in range(data.draw(st.integers(1, 10))):
        number = data.draw(st.integers(0, len(patches) - 1))
        if number in on:
            on.pop(number)[0].remove()
        else:
            strength = data.draw(st.sampled_from([-1.0, 0.3, 1.0]))
            on[number] = (apply(model, patches[number], strength), strength)
        fresh = network()
        if on:
            apply(fresh, [patches[k] for k in sorted(on)], [on[k][1] for k in sorted(on)])
        assert bits(model) == bits(fresh)
    for handle, _ in on.values():
        handle.remove()
    assert bits(model) == before


@given(one=deltas((6, 4, 3, 3)))
def test_strength_zero_changes_no_bit(one: Delta) -> None:
    model = network()
    before = bits(model)
    patch = Patch({"3.weight": one}, Manifest("test", pristine_hashes(model.state_dict(), ["3.weight"])))
    with apply(model, patch, 0.0):
        assert bits(model) == before


def test_a_model_and_its_state_dict_are_the_same_weights() -> None:
    model = network()
    before = bits(model)
    first = apply(model, change(1))
    second = apply(model.state_dict(), change(2))
    fresh = network()
    apply(fresh, [change(2), change(1)])
    assert bits(model) == bits(fresh)
    first.remove()
    second.remove()
    second.remove()
    assert bits(model) == before


def test_a_handle_that_is_thrown_away_leaves_its_patch_on() -> None:
    model = network()
    apply(model, change(1))
    gc.collect()
    patched = bits(model)
    with pytest.raises(UsageError, match="not those that the patch was made from"):
        apply(model, change(2))
    with apply(model, change(2), force=True):
        assert bits(model) != patched
    assert bits(model) == patched


def test_a_patch_made_elsewhere_needs_force_and_the_same_shapes() -> None:
    model = network()
    with torch.no_grad():
        model[0].weight.add_(1e-3)
    before = bits(model)
    with pytest.raises(UsageError, match=r"1 of 3 tensors of this model .*'0.weight'"):
        apply(model, change(1))
    with apply(model, change(1), force=True):
        assert bits(model) != before
    assert bits(model) == before
    for names, match in ({"0.weight": "has shape"}, "shape"), ({"nothing": ""}, "unknown tensor"):
        name = next(iter(names))
        wrong = Patch({name: Delta.dense(torch.ones(2, 2))}, Manifest("test", {name: ""}))
        with pytest.raises(UsageError, match=match):
            apply(model, wrong, force=True)
    assert bits(model) == before


def test_all_is_checked_before_the_first_weight_changes() -> None:
    model = network()
    before = bits(model)
    huge = change(3, names=("7.weight",))
    huge = Patch({"7.weight": Delta.dense(torch.full((5, 6), 3e38))}, huge.manifest)
    model[7].weight.data.fill_(3e38)
    full = bits(model)
    with pytest.raises(UsageError, match="overflows"):
        apply(model, [change(1, names=("0.weight",)), huge], force=True)
    assert bits(model) == full
    assert bits(model)["0.weight"] == before["0.weight"]
    meta = nn.Sequential(nn.Linear(2, 2, device="meta"))
    with pytest.raises(ModelError, match="not in memory"):
        apply(meta, Patch({"0.weight": Delta.dense(torch.ones(2, 2))}, Manifest("test", {"0.weight": ""})), force=True)


def test_buffers_are_replaced_and_integers_never_added_to() -> None:
    model = network()
    before = bits(model)
    manifest = Manifest("test", pristine_hashes(model.state_dict(), ["1.running_var", "1.num_batches_tracked"]))
    put = {"1.running_var": torch.full((4,), 2.0), "1.num_batches_tracked": torch.tensor(7)}
    with apply(model, Patch({}, manifest, put), 0.3):
        assert model[1].running_var.tolist() == [2.0] * 4
        assert int(model[1].num_batches_tracked) == 7
    assert bits(model) == before
    name = "1.num_batches_tracked"
    adding = Patch({name: Delta.dense(torch.tensor(1.0))}, Manifest("test", {name: ""}))
    with pytest.raises(UsageError, match="holds integers"):
        apply(model, adding, force=True)
    floating = Patch({}, Manifest("test", {name: ""}), {name: torch.tensor(1.5)})
    with pytest.raises(UsageError, match="expected one kind"):
        apply(model, floating, force=True)


def test_tied_weights_are_changed_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.emb, self.head = nn.Embedding(4, 3), nn.Linear(3, 4, bias=False)
            self.head.weight = self.emb.weight

    model = Tied()
    before = bits(model)
    start = model.emb.weight.detach().clone()
    both = {"emb.weight": Delta.dense(torch.ones(4, 3)), "head.weight": Delta.dense(torch.ones(4, 3))}
    with apply(model, Patch(both, Manifest("test", pristine_hashes(model.state_dict(), list(both))))):
        assert torch.equal(model.head.weight, start + 1)
    assert bits(model) == before
    both["head.weight"] = Delta.dense(torch.zeros(4, 3))
    with pytest.raises(UsageError, match="one tensor here"):
        apply(model, Patch(both, Manifest("test", pristine_hashes(model.state_dict(), list(both)))))


def test_weights_that_do_not_lie_in_one_piece() -> None:
    tensors = {"a": torch.randn(5, 4).T}
    before = tensors["a"].clone()
    patch = make({"a": before}, {"a": before + 1.5})
    with apply(tensors, patch):
        assert torch.allclose(tensors["a"], before + 1.5)
    assert torch.equal(tensors["a"], before)


def test_a_model_of_transformers_and_its_adapter(model_v1: Path, model_v2: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file

    patch = make(model_v1, model_v2, keep=0.5)
    loaded = load(model_v1)
    plain = bits(loaded.model)
    with apply(loaded.model, patch):
        patched = bits(loaded.model)
    assert bits(loaded.model) == plain != patched

    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM")
    adapted: Any = get_peft_model(loaded.model, config)
    adapted.save_pretrained(tmp_path)
    before = bits(adapted)
    with apply(adapted, patch):
        inner = "model.layers.0.self_attn.q_proj.weight"
        layer = adapted.get_base_model().model.layers[0].self_attn.q_proj
        assert bits({"w": layer.base_layer.weight})["w"] == patched[inner]
        original = adapted.get_base_model().lm_head.original_module.weight
        assert bits({"w": original})["w"] == patched["lm_head.weight"]
    assert bits(adapted) == before

    old = load_file(tmp_path / "adapter_model.safetensors")
    own = make(old, {name: tensor + 0.25 for name, tensor in old.items()})
    assert len(own.names) == 5
    with apply(adapted, own):
        after = bits(adapted)
        assert sum(after[name] != before[name] for name in before) == len(own.names)
    assert bits(adapted) == before
