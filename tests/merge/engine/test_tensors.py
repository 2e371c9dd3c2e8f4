from __future__ import annotations

import pytest
import torch

from uphold.core.errors import ModelError, UsageError
from uphold.merge import merge_tensors

BASE = torch.arange(8.0).reshape(2, 4)
A = BASE + torch.tensor([[0.1, -0.2, 0.3, -0.4], [0.5, 0, -0.7, 0.8]])
B = BASE + torch.tensor([[-0.1, -0.1, 0.6, 0.2], [0.1, 0.4, -0.2, -0.9]])
C = BASE + torch.tensor([[0.2, 0.3, -0.1, -0.3], [0.2, 0.1, -0.4, 0.5]])


def test_task_arithmetic_of_the_sheet() -> None:
    found = merge_tensors("task_arithmetic", [{"w": A}, {"w": B}, {"w": C}], base={"w": BASE}, weight=[0.5, 0.5, 1])
    expected = torch.tensor([[0.2, 1.15, 2.35, 2.6], [4.5, 5.3, 5.15, 7.45]])
    torch.testing.assert_close(found["w"], expected, rtol=0, atol=1e-6)


def test_ties_of_the_sheet() -> None:
    models = [{"w": A}, {"w": B}, {"w": C}]
    found = merge_tensors("ties", models, base={"w": BASE}, weight=[1, 2, 1], density=0.5, lambda_=0.8)
    expected = torch.tensor([[0, 1.24, 2.48, 2.72], [4.4, 5.32, 5.56, 6.28]])
    torch.testing.assert_close(found["w"], expected, rtol=0, atol=1e-6)


def test_a_modules_state_dict_comes_back_loadable() -> None:
    def net(seed: int) -> torch.nn.Sequential:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))

    one, two = net(1), net(2)
    one[1].num_batches_tracked += 5
    before = {name: value.clone() for name, value in one.state_dict().items()}
    found = merge_tensors("linear", [one.state_dict(), two.state_dict()], weight=[1, 3])
    merged = net(3)
    merged.load_state_dict(found)
    torch.testing.assert_close(merged[0].weight, 0.25 * one[0].weight + 0.75 * two[0].weight)
    assert found["1.num_batches_tracked"].item() == 5
    assert all(value.equal(before[name]) for name, value in one.state_dict().items())
    assert list(found) == list(before)


def test_parameters_with_gradients_and_tied_weights() -> None:
    weight = torch.nn.Parameter(torch.ones(2, 2))
    found = merge_tensors("linear", [{"a": weight, "b": weight}] * 2, weight=0.5)
    assert found["a"] is found["b"]
    assert not found["a"].requires_grad
    assert found["a"].equal(weight)


def test_filters_and_gradients_may_be_given_too() -> None:
    names = ["layers.0.w", "layers.1.w", "norm"]
    one, two = ({name: torch.full((2,), value) for name in names} for value in (0.0, 1.0))
    filtered = [{"filter": "norm", "value": 0.25}, {"value": [0, 1]}]
    found = merge_tensors("slerp", [two], base=one, t=filtered)
    assert {name: value[0].item() for name, value in found.items()} == pytest.approx(
        {"layers.0.w": 0.0, "layers.1.w": 1.0, "norm": 0.25}, abs=0.3
    )
    assert found["layers.1.w"].equal(two["layers.1.w"])


def test_the_seed_chooses_the_masks() -> None:
    base, model = {"w": torch.zeros(1000)}, {"w": torch.ones(1000)}
    found = [
        merge_tensors("dare_linear", [model], base=base, weight=1, density=0.5, seed=seed)["w"] for seed in (0, 0, 1)
    ]
    assert found[0].equal(found[1])
    assert not found[0].equal(found[2])


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UsageError, match="'wieght': did you mean 'weight'"):
        merge_tensors("linear", [{"w": A}], wieght=1)
    with pytest.raises(UsageError, match="'weight' has 3 values for 2 models"):
        merge_tensors("linear", [{"w": A}, {"w": B}], weight=[1, 2, 3])
    with pytest.raises(ModelError, match="has shape"):
        merge_tensors("linear", [{"w": A}, {"w": B[0]}], weight=1)
    with pytest.raises(ModelError, match="lacks v"):
        merge_tensors("linear", [{"w": A, "v": A.clone()}, {"w": B}], weight=1)
    with pytest.raises(UsageError, match="unknown merge method"):
        merge_tensors("liner", [{"w": A}], weight=1)
