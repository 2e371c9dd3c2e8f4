from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models.tiny import tiny
from uphold.core.errors import UsageError
from uphold.models import signatures
from uphold.models.patches.source import open_weights
from uphold.models.signatures import check_same, cosine_between, names_and_blocks, projected


def drawn(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def three(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    return tuple(drawn(3 * seed + one, *shape, dtype=dtype) for one in range(3))


def test_the_sheets_case_in_two_dimensions() -> None:
    zero, a, p = torch.zeros(2), torch.tensor([1.0, 0.0]), torch.tensor([3.0, 4.0])

    found = projected(zero, a, p)

    assert found.share == 3
    assert found.residual.tolist() == [0, 4]
    assert (a + found.residual).tolist() == [1, 4]
    assert found.cosine == pytest.approx(0.6)
    assert (found.norm, found.length) == (4, 1)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), rows=st.integers(1, 9), columns=st.integers(1, 40), scale=st.floats(1e-4, 1e3))
def test_the_residual_is_orthogonal_and_pythagoras_holds(seed: int, rows: int, columns: int, scale: float) -> None:
    initial, standard, robust = (scale * one for one in three(seed, rows, columns))
    found = projected(initial, standard, robust)
    a, p = standard.double() - initial.double(), robust.double() - initial.double()
    residual = found.residual.double()

    assert abs((residual * a).sum()) <= 1e-6 * p.norm() * a.norm()
    assert p.square().sum() == pytest.approx(float(residual.square().sum() + found.share**2 * a.square().sum()))
    assert found.norm == pytest.approx(float(residual.norm()), abs=1e-6 * float(p.norm()))
    left = standard.double() + residual
    assert torch.allclose(left, robust.double() + (1 - found.share) * a, atol=1e-5 * scale * 10)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), factor=st.floats(-4, 4))
def test_a_robust_change_along_the_clean_one_leaves_nothing(seed: int, factor: float) -> None:
    initial, standard, _ = three(seed, 20, dtype=torch.float64)
    robust = initial + factor * (standard - initial)

    found = projected(initial, standard, robust)

    assert found.residual.abs().max() <= 1e-6
    assert found.share == pytest.approx(factor, abs=1e-9)


def test_equal_models_leave_exactly_nothing() -> None:
    initial, standard, _ = three(1, 7, 5)
    assert not projected(initial, standard, standard).residual.any()
    assert not projected(initial, standard, initial).residual.any()


def test_where_nothing_was_projected_out_the_patch_is_the_robust_model() -> None:
    initial = torch.zeros(2)
    standard, robust = torch.tensor([2.0, 0.0]), torch.tensor([2.0, 5.0])  # <p, a> = <a, a>
    found = projected(initial, standard, robust)
    assert found.share == 1
    assert torch.equal(standard + found.residual, robust)


def test_a_tensor_that_clean_training_left_alone_keeps_the_whole_robust_change() -> None:
    initial, _, robust = three(2, 6)
    found = projected(initial, initial.clone(), robust)
    assert torch.equal(found.residual, (robust.double() - initial.double()).float())
    assert (found.share, found.cosine) == (0, 0)


def test_a_clean_change_below_rounding_is_none() -> None:
    initial, robust = torch.ones(4, dtype=torch.float64), torch.full((4,), 2.0, dtype=torch.float64)
    standard = initial + 1e-12
    assert projected(initial, standard, robust).share == 0
    assert projected(torch.zeros(4, dtype=torch.float64), standard - 1, robust).share > 1e11


def test_sums_are_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    # In float32, 4096 + 0.0001 squared and summed 10,000 times would lose the small terms.
    initial = torch.zeros(10_001)
    standard = torch.full((10_001,), 1e-4)
    standard[0] = 4096.0
    robust = standard.clone()
    robust[1:] *= 3
    found = projected(initial, standard, robust)
    assert found.share == pytest.approx((4096.0**2 + 3e4 * 1e-8) / (4096.0**2 + 1e4 * 1e-8), rel=1e-15)

    monkeypatch.setattr(signatures, "_CHUNK", 97)
    assert torch.allclose(projected(initial, standard, robust).residual, found.residual, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_every_dtype_is_read(dtype: torch.dtype) -> None:
    found = projected(*three(5, 4, 4, dtype=dtype))
    assert found.residual.dtype == torch.float32
    assert found.residual.shape == (4, 4)


def test_empty_tensors_have_no_signature() -> None:
    found = projected(torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0, 3))
    assert found.residual.shape == (0, 3)
    assert found == (found.residual, 0, 0, 0, 0)


def test_cosines_of_sets_of_tensors() -> None:
    one = {"a": torch.tensor([1.0, 0.0]), "b": torch.tensor([[0.0]])}
    other = {"a": torch.tensor([1.0, 0.0]), "b": torch.tensor([[-1.0]])}
    assert cosine_between(one, one) == 1
    assert cosine_between(one, other) == pytest.approx(1 / math.sqrt(2))
    assert cosine_between(one, {name: -value for name, value in one.items()}) == -1
    with pytest.raises(UsageError, match="zero everywhere"):
        cosine_between(one, {"a": torch.zeros(2), "b": torch.zeros(1, 1)})


def test_models_of_two_architectures_are_refused_by_the_first_tensor_that_differs() -> None:
    sources: list[Any] = [{"a": torch.zeros(2)}, {"a": torch.zeros(3)}, {"b": torch.zeros(2)}]
    with open_weights(sources[0]) as one, open_weights(sources[1]) as other, open_weights(sources[2]) as third:
        check_same({"one": one, "again": one}, ["a"])
        with pytest.raises(UsageError, match=r"a is \[2\] in one, \[3\] in other"):
            check_same({"one": one, "other": other}, ["a"])
        with pytest.raises(UsageError, match="third has no tensor a, but one has"):
            check_same({"one": one, "third": third}, ["a"])


def test_blocks_are_counted_by_the_config(tmp_path: Path, model_v1: Path) -> None:
    names, blocks = names_and_blocks(model_v1)
    assert blocks == 2
    assert "model.layers.1.mlp.up_proj.weight" in names
    assert names_and_blocks(model_v1 / "model.safetensors") == (names, None)
    assert names_and_blocks(tiny("gpt2"))[1] == 2
    assert names_and_blocks(torch.nn.Linear(2, 2)) == (("weight", "bias"), None)
    torch.save({"layers.0.weight": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"num_hidden_layers": 5}}))
    assert names_and_blocks(tmp_path) == (("layers.0.weight",), 5)
