from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from tests.conftest import save_tiny_model
from uphold.core.errors import ModelError, NotComparableError, UsageError
from uphold.models.checkpoint import open_checkpoint
from uphold.models.forward_order import forward_order
from uphold.models.patches.apply import apply
from uphold.models.patches.file import load_patch
from uphold.models.patches.patch import Patch, compose, pristine_hashes, scale, value_hash
from uphold.repair.signatures import (
    UNRELATED,
    check_same_start,
    coefficients,
    factor,
    foreign_layers,
    kept_layers,
    layer_sizes,
    restricted,
    signature,
    transfer,
)

IMAGE = torch.zeros(1, 1, 6, 6)
State = dict[str, torch.Tensor]


def changed(state: State, seed: int, size: float = 0.1) -> State:
    """Another training from the same start: every floating-point tensor moves."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: value + size * torch.randn(value.shape, generator=generator)
        if value.is_floating_point()
        else value + seed
        for name, value in state.items()
    }


@pytest.fixture
def three() -> tuple[State, State, State]:
    state = {name: value.clone() for name, value in _net().state_dict().items()}
    initial = changed(state, 0)
    return initial, changed(initial, 1), changed(initial, 2)


def _net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 2), nn.Flatten(), nn.Linear(4, 2)
    )


def _normal() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2)
    )


def hashes(state: State) -> dict[str, str]:
    return pristine_hashes(state, list(state))


def loaded(state: State, net: nn.Module | None = None) -> nn.Module:
    made = net or _net()
    made.load_state_dict(state)
    return made


def test_the_sheets_case_as_a_patch() -> None:
    states = [
        {"1.weight": torch.tensor([value]), "2.weight": torch.ones(1)} for value in ([0.0, 0], [1.0, 0], [3.0, 4])
    ]
    patch = signature(*states, layers=1)
    target = {name: value.clone() for name, value in states[1].items()}
    with apply(target, patch):
        assert target["1.weight"].tolist() == [[1, 4]]
    assert target["1.weight"].tolist() == [[1, 0]]
    assert patch.manifest.facts["projection"]["1.weight"]["share"] == 3


def test_kept_tensors_are_orthogonal_and_others_stay_bit_for_bit(three: tuple[State, State, State]) -> None:
    initial, standard, _ = three
    patch = signature(*three, layers=2)
    assert patch.names == ("0.bias", "0.weight", "2.bias", "2.weight")
    for name, delta in patch.deltas.items():
        a, residual = (standard[name] - initial[name]).double(), delta.tensor().double()
        assert abs((residual * a).sum()) <= 1e-6 * residual.norm() * a.norm()
    net = loaded(standard)
    before = hashes(net.state_dict())
    with apply(net, patch):
        after = hashes(net.state_dict())
        assert {name for name, value in after.items() if value != before[name]} == set(patch.names)
    assert hashes(net.state_dict()) == before


def test_projected_weights_and_robust_weights_differ_by_the_clean_change(three: tuple[State, State, State]) -> None:
    initial, standard, robust = three
    patch = signature(*three)
    for name, delta in patch.deltas.items():
        share = patch.manifest.facts["projection"][name]["share"]
        left = standard[name] + delta.tensor()
        assert torch.allclose(left, robust[name] + (1 - share) * (standard[name] - initial[name]), atol=1e-6)


def test_equal_or_untrained_models_leave_no_signature(three: tuple[State, State, State]) -> None:
    initial, standard, _ = three
    for wrong in (standard, initial):
        with pytest.raises(UsageError, match="nothing is left of the robust model's change"):
            signature(initial, standard, wrong)


def test_strength_zero_leaves_every_bit_and_strengths_are_linear(three: tuple[State, State, State]) -> None:
    net = loaded(three[1])
    before = hashes(net.state_dict())
    patch = signature(*three)
    with apply(net, patch, strengths=0.0):
        assert hashes(net.state_dict()) == before
    half, whole = (signature(*three, strength=value) for value in (0.5, 1.0))
    for name, delta in half.deltas.items():
        scaled = half.manifest.scale * delta.tensor()
        assert torch.equal(scaled, 0.5 * whole.deltas[name].tensor())


@settings(max_examples=40, deadline=None)
@given(strength=st.floats(-3, 3))
def test_the_authors_multiply_twice(strength: float) -> None:
    assert factor(strength) == strength
    assert factor(strength, "authors") == strength**2
    assert factor(1.0, "authors") == 1


def test_several_signatures_share_the_strength(three: tuple[State, State, State]) -> None:
    initial, standard, _ = three
    patches = [signature(*three), signature(initial, standard, changed(initial, 3))]
    assert coefficients(patches) == (0.5, 0.5)
    assert coefficients(patches, 0.8) == (0.4, 0.4)
    assert coefficients(patches, compat="authors") == (0.25, 0.25)
    assert coefficients(patches, weights=[0.5, 2], compat="authors") == (0.25, 4)
    assert coefficients(patches[:1], 0.5, compat="authors") == (0.25,)
    with pytest.raises(UsageError, match="1 weights for 2 signatures"):
        coefficients(patches, weights=[1])
    with pytest.raises(UsageError, match="at least one"):
        coefficients([])
    net = loaded(standard)
    with apply(net, patches, coefficients(patches)):
        summed = {name: value.clone() for name, value in net.state_dict().items()}
    with apply(net, patches[::-1], coefficients(patches)):
        assert hashes(net.state_dict()) == hashes(summed)
    with apply(net, compose(patches, coefficients(patches))):
        assert hashes(net.state_dict()) == hashes(summed)
    expected = standard["0.weight"] + 0.5 * (
        patches[0].deltas["0.weight"].tensor() + patches[1].deltas["0.weight"].tensor()
    )
    assert torch.allclose(summed["0.weight"], expected, atol=1e-7)


def test_signatures_of_two_starts_do_not_combine(three: tuple[State, State, State]) -> None:
    initial, standard, robust = three
    other = signature(changed(initial, 9), standard, robust)
    with pytest.raises(NotComparableError, match="started from different weights"):
        coefficients([signature(*three), other])
    check_same_start([signature(*three, layers=1), signature(*three)])


def test_an_updated_backbone_is_patched_when_forced(three: tuple[State, State, State]) -> None:
    patch = signature(*three, layers=1)
    later = changed(three[1], 5, 0.01)
    net = loaded(later)
    with pytest.raises(UsageError, match="force"):
        apply(net, patch)
    with apply(net, patch, force=True):
        assert torch.allclose(net[0].weight, later["0.weight"] + patch.deltas["0.weight"].tensor(), atol=1e-7)
    assert hashes(net.state_dict()) == hashes(later)


@pytest.mark.parametrize("levels", [256, 16, 8, 4])
def test_levels_bound_the_error(three: tuple[State, State, State], levels: int) -> None:
    exact, coarse = signature(*three), signature(*three, quantiser=f"linear:{levels}")
    assert coarse.manifest.quantiser == f"linear:{levels}"
    for name, delta in exact.deltas.items():
        values = delta.tensor()
        bound = float(values.max() - values.min()) / (2 * (levels - 1))
        error = (coarse.deltas[name].tensor() - values).abs().max()
        assert error <= bound * (1 + 1e-5)


@pytest.mark.parametrize("how", ["int8", "int4", "log", "linear:16", "tanh:16"])
def test_quantised_signatures_are_smaller_and_keep_zero(three: tuple[State, State, State], how: str) -> None:
    initial, standard, robust = three
    robust = {**robust, "0.weight": standard["0.weight"].clone()}
    exact, coarse = signature(initial, standard, robust), signature(initial, standard, robust, quantiser=how)
    assert coarse.nbytes < exact.nbytes / 3
    assert not coarse.deltas["0.weight"].tensor().any()


def test_layers_by_number_by_name_and_all_but_the_head(three: tuple[State, State, State]) -> None:
    assert [unit.name for unit in kept_layers(three[1])] == ["0", "2", "4"]
    assert [unit.name for unit in kept_layers(three[1], 2)] == ["0", "2"]
    assert [unit.name for unit in kept_layers(three[1], ["4", "6"])] == ["4", "6"]
    assert kept_layers(three[1], 3) == list(forward_order(_net(), IMAGE)[:3])
    assert signature(*three, layers=["2"]).names == ("2.bias", "2.weight")
    for wrong, message in (
        (7, "3 before its head"),
        (["9"], "no tensor belongs to the layer '9'"),
        ("0", "not the text"),
    ):
        with pytest.raises(UsageError, match=message):
            signature(*three, layers=wrong)


def test_features_10_is_not_among_the_first_two_layers() -> None:
    names = [f"features.{2 * number}.weight" for number in range(6)] + ["classifier.weight"]
    states = [
        {name: torch.randn(2, 2, generator=torch.Generator().manual_seed(seed)) for name in names} for seed in range(3)
    ]
    shuffled = [{name: state[name] for name in sorted(state)} for state in states]
    assert signature(*shuffled, layers=2).names == ("features.0.weight", "features.2.weight")


def test_a_part_of_a_signature_is_the_signature_of_fewer_layers(three: tuple[State, State, State]) -> None:
    whole = signature(*three)
    part = restricted(whole, 2)
    assert part.id == signature(*three, layers=2).id
    for wrong in (0, 4):
        with pytest.raises(UsageError, match="keeps 3 layers"):
            restricted(whole, wrong)


def test_sizes_of_layers(three: tuple[State, State, State], tmp_path: Path) -> None:
    _, standard, _ = three
    patch = signature(*three, layers=2)
    sizes = layer_sizes(load_patch(patch.save(tmp_path / "p.safetensors")))
    both = [patch.deltas[name].tensor() for name in ("0.weight", "0.bias")]
    expected = math.hypot(*(one.norm() for one in both)) / math.hypot(
        standard["0.weight"].norm(), standard["0.bias"].norm()
    )
    assert sizes["0"] == pytest.approx(expected, rel=1e-5)
    assert list(sizes) == ["0", "2"]


def test_a_signature_as_large_as_the_weights_tells_of_two_starts(three: tuple[State, State, State]) -> None:
    initial, standard, robust = three
    assert foreign_layers(signature(*three)) == []
    elsewhere = {**robust, "2.weight": torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(7))}
    patch = signature(initial, standard, elsewhere)
    assert foreign_layers(patch) == ["2"]
    assert foreign_layers(scale(patch, 0.1)) == ["2"]


def test_what_it_was_made_from_is_recorded(three: tuple[State, State, State], tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.safetensors" for name in ("initial", "standard", "robust")]
    for path, state in zip(paths, three, strict=True):
        save_file(state, path)
    manifest = load_patch(signature(*paths, layers=1).save(tmp_path / "p.safetensors")).manifest
    models = {"standard": {"source": manifest.source, "weights": manifest.weights}, **manifest.facts["models"]}
    for name, path in zip(("initial", "standard", "robust"), paths, strict=True):
        with open_checkpoint(path) as checkpoint:
            assert models[name] == {"source": str(path), "weights": checkpoint.content_hash()}


def test_three_models_must_have_the_kept_tensors_in_one_shape(three: tuple[State, State, State]) -> None:
    initial, standard, robust = three
    with pytest.raises(UsageError, match=r"the robust model has no tensor 0.weight, but the standard model has"):
        signature(initial, standard, {name: value for name, value in robust.items() if name != "0.weight"})
    with pytest.raises(UsageError, match=r"2.bias is \[4\] in the standard model, \[5\] in the initial model"):
        signature({**initial, "2.bias": torch.zeros(5)}, standard, robust)
    other_head = {**initial, "6.weight": torch.zeros(1000, 4), "6.bias": torch.zeros(1000)}
    found, expected = signature(other_head, standard, robust), signature(*three)
    assert found.manifest.pristine == expected.manifest.pristine
    assert all(torch.equal(delta.tensor(), expected.deltas[name].tensor()) for name, delta in found.deltas.items())


def test_numbers_that_are_not_finite_are_refused(three: tuple[State, State, State]) -> None:
    initial, standard, robust = three
    with pytest.raises(UsageError, match=r"0.weight holds numbers that are not finite"):
        signature(initial, standard, {**robust, "0.weight": torch.full((3, 1, 3, 3), math.nan)})
    with pytest.raises(UsageError, match="strength is a finite number"):
        signature(*three, strength=math.inf)
    with pytest.raises(UsageError, match="'paper' or 'authors'"):
        signature(*three, compat="both")  # type: ignore[arg-type]


def test_batch_norm_is_replaced_and_its_counter_left_alone() -> None:
    net = _normal()
    initial = changed(net.state_dict(), 0)
    for name in initial:
        if name.endswith("running_var"):
            initial[name] = initial[name].abs() + 1
    standard, robust = changed(initial, 1), changed(initial, 2)
    order = forward_order(net, IMAGE)

    patch = signature(initial, standard, robust, layers=1, order=order)

    normal = {f"1.{name}" for name in ("weight", "bias", "running_mean", "running_var")}
    assert patch.deltas.keys() == {"0.weight", "0.bias"}
    assert patch.replacements.keys() == normal
    target = loaded(standard, net)
    with apply(target, patch, strengths=0.5):
        state = target.state_dict()
        assert all(torch.equal(state[name], robust[name]) for name in normal)
        assert state["1.num_batches_tracked"] == standard["1.num_batches_tracked"]
        assert torch.equal(state["3.running_mean"], standard["3.running_mean"])
    assert hashes(target.state_dict()) == hashes(standard)

    third = changed(initial, 3)
    other = signature(initial, standard, third, layers=1, order=order)
    with apply(target, [patch, other], coefficients([patch, other])):
        state = target.state_dict()
        assert all(torch.allclose(state[name], (robust[name] + third[name]) / 2) for name in normal)
    given = {"1.running_mean": torch.full((3,), 7.0)}
    stored = signature(initial, standard, robust, layers=1, order=order, batch_norm=given)
    assert torch.equal(stored.replacements["1.running_mean"], given["1.running_mean"])
    assert torch.equal(stored.replacements["1.running_var"], robust["1.running_var"])
    with pytest.raises(UsageError, match=r"'3.running_mean' is no batch-norm tensor of a kept layer"):
        signature(initial, standard, robust, layers=1, order=order, batch_norm={"3.running_mean": torch.zeros(4)})


def test_modules_files_and_state_dicts_give_one_signature(three: tuple[State, State, State], tmp_path: Path) -> None:
    expected = signature(*three, layers=2)
    paths = []
    for number, state in enumerate(three):
        paths.append(tmp_path / f"{number}.pt")
        torch.save(state, paths[-1])
    for sources in (paths, [loaded(state) for state in three]):
        found = signature(*sources, layers=2)
        assert found.deltas.keys() == expected.deltas.keys()
        assert all(torch.equal(delta.tensor(), expected.deltas[name].tensor()) for name, delta in found.deltas.items())
        assert found.manifest.pristine == expected.manifest.pristine
    assert found.manifest.facts["initial"] == {name: value_hash(three[0][name]) for name in expected.names}


def test_a_decoder_in_folders(tmp_path: Path) -> None:
    folders = [save_tiny_model(tmp_path / str(seed), seed) for seed in range(3)]

    patch = signature(*folders, layers=2, quantiser="int8")

    assert "model.embed_tokens.weight" in patch.names
    assert all(name.startswith(("model.embed_tokens.", "model.layers.0.")) for name in patch.names)
    assert [name for name, _ in patch.manifest.facts["layers"]] == ["model.embed_tokens", "model.layers.0"]
    assert patch.manifest.paper == "arXiv:2302.12480"
    assert (patch.manifest.source, len(patch.manifest.weights)) == (str(folders[1]), 64)


def test_what_holds_no_weights_is_refused(three: tuple[State, State, State], tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        signature(tmp_path / "absent", three[1], three[2])
    with pytest.raises(UsageError, match="not int"):
        signature(3, three[1], three[2], layers=1)


def directed(three: tuple[State, State, State], toward: State, share: float) -> Patch:
    initial, standard, _ = three
    noise = changed(initial, 8)
    mixed = {name: share * toward[name] + (1 - share) * noise[name] for name in initial}
    return signature(initial, standard, mixed)


def test_transfer_is_the_cosine_over_the_first_layers(three: tuple[State, State, State]) -> None:
    initial, standard, robust = three
    own = signature(*three)
    known = {
        "half": directed(three, robust, 0.5),
        "same": own,
        "other": signature(initial, standard, changed(initial, 4)),
    }

    found = transfer(own, known)

    assert [one.name for one in found] == ["same", "half", "other"]
    assert found[0].cosine == pytest.approx(1)
    assert found[0].expected
    assert not found[2].expected
    assert abs(found[2].cosine) < UNRELATED
    assert str(found[0]) == "same: cosine 1.00, transfer expected"
    opposite = signature(*three, strength=-1)
    assert transfer(own, {"opposite": opposite})[0].cosine == pytest.approx(-1)
    deep = {**robust, "4.weight": -robust["4.weight"]}
    assert transfer(own, {"deep": signature(initial, standard, deep)})[0].cosine == pytest.approx(1)
    assert transfer(own, {"deep": signature(initial, standard, deep)}, layers=3)[0].cosine < 1


def test_transfer_needs_signatures_of_one_network(three: tuple[State, State, State]) -> None:
    own = signature(*three)
    with pytest.raises(UsageError, match=r"'short' does not touch 2.weight"):
        transfer(own, {"short": signature(*three, layers=1)})
    plain = compose([own])
    with pytest.raises(UsageError, match="made by 'compose'"):
        transfer(plain, {"own": own})


def test_progress_counts_tensors(three: tuple[State, State, State]) -> None:
    calls: list[Any] = []
    signature(*three, layers=1, progress=lambda *call: calls.append(call[:3]))
    assert calls == [("signature", 1, 2), ("signature", 2, 2)]


def test_the_three_models_are_not_changed(three: tuple[State, State, State]) -> None:
    before = copy.deepcopy(three)
    with apply({name: value.clone() for name, value in three[1].items()}, signature(*three)):
        pass
    assert [hashes(state) for state in three] == [hashes(state) for state in before]
