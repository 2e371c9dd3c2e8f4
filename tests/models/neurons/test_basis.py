from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.models.tiny import tiny
from uphold.core.errors import ModelError
from uphold.models.neurons.basis import (
    NormGain,
    SemanticBasis,
    basis_direction,
    delta_direction,
    orthogonal_to,
    unit_range,
)
from uphold.models.neurons.neurons import Anatomy, read_anatomy

HEAD = torch.randn(200, 12, generator=torch.Generator().manual_seed(0))


def test_the_basis_is_the_pseudo_inverse() -> None:
    basis = SemanticBasis(HEAD)
    whole, head = basis.rows(range(200)), HEAD.double()
    assert torch.allclose(whole, torch.linalg.pinv(head.T), atol=1e-9)
    assert torch.allclose(whole.T @ head, torch.eye(12, dtype=torch.float64), atol=1e-8)
    hat = head @ whole.T
    assert torch.allclose(hat, hat.T, atol=1e-9)
    assert torch.allclose(hat @ hat, hat, atol=1e-8)
    assert float(hat.trace()) == pytest.approx(12, abs=1e-6)
    assert basis.leverage == pytest.approx(12, abs=1e-6)
    assert float(hat.diagonal().mean()) == pytest.approx(12 / 200, abs=1e-9)
    assert torch.equal(basis.rows([3, 7]), whole[[3, 7]])


def test_a_row_has_the_logits_nearest_to_its_token() -> None:
    head = HEAD.double()
    wanted = torch.zeros(200, 1, dtype=torch.float64)
    wanted[5] = 1
    best = torch.linalg.lstsq(head, wanted).solution[:, 0]
    assert torch.allclose(SemanticBasis(HEAD).rows([5])[0], best, atol=1e-9)


def test_leverage_is_the_rank_of_a_deficient_head() -> None:
    assert SemanticBasis(HEAD @ torch.diag((torch.arange(12) < 5).float())).leverage == pytest.approx(5, abs=1e-3)
    assert SemanticBasis(HEAD[:4]).leverage == pytest.approx(4, abs=1e-3)


def test_padded_rows_of_the_head_do_not_count() -> None:
    padded = torch.cat([HEAD, 100 * torch.randn(8, 12, generator=torch.Generator().manual_seed(1))])
    assert torch.equal(SemanticBasis(padded, 200).rows([3]), SemanticBasis(HEAD).rows([3]))


def test_a_broken_head_is_refused() -> None:
    with pytest.raises(ModelError, match="not numbers"):
        SemanticBasis(torch.full((4, 2), torch.nan))


@given(st.integers(0, 199), st.integers(0, 199), st.floats(0.01, 100))
@settings(max_examples=30, deadline=None)
def test_directions(target: int, wrong: int, factor: float) -> None:
    basis, scaled = SemanticBasis(HEAD), SemanticBasis(HEAD * factor)
    delta = delta_direction(basis, target, wrong)
    assert torch.equal(delta, -delta_direction(basis, wrong, target))
    if target == wrong:
        assert unit_range(delta) is None
        return
    unit = unit_range(delta)
    assert unit is not None
    assert float(unit.max() - unit.min()) == pytest.approx(1)
    # The depth factor (l + 1) / L cancels.
    for depth in (0.125, 0.5, 1.0):
        deep = unit_range(delta * depth)
        assert deep is not None
        assert torch.allclose(deep, unit)
    other = unit_range(delta_direction(scaled, target, wrong))
    assert other is not None
    assert torch.allclose(other, unit, atol=1e-4)
    assert torch.allclose(scaled.rows([target]), basis.rows([target]) / factor, rtol=1e-4, atol=1e-8 / factor)


def test_the_vanilla_delta_is_the_simplified_one() -> None:
    basis, start = SemanticBasis(HEAD), torch.randn(12, generator=torch.Generator().manual_seed(2))
    for layer in range(4):
        vanilla = basis_direction(basis, 3, start, layer, 4) - basis_direction(basis, 9, start, layer, 4)
        assert torch.allclose(vanilla, delta_direction(basis, 3, 9) * (layer + 1) / 4)
    assert torch.allclose(basis_direction(basis, 3, start, 3, 4), basis.rows([3])[0])


@given(st.integers(0, 5), st.integers(0, 100))
@settings(max_examples=30, deadline=None)
def test_history_is_projected_out(count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    history, vector = list[torch.Tensor](), torch.empty(0)
    for _ in range(count + 1):
        vector = torch.randn(8, generator=generator, dtype=torch.float64)
        made = orthogonal_to(vector, history)
        assert all(abs(float(made @ one)) < 1e-9 for one in history)
        assert float(made.norm()) == pytest.approx(float(vector.norm()))
        history.append(made / made.norm())


def test_a_direction_used_before_is_used_again_as_it_is() -> None:
    vector = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert torch.equal(orthogonal_to(vector, [vector / 5]), vector)
    assert torch.equal(orthogonal_to(vector, []), vector)


@pytest.mark.parametrize(
    ("kind", "attention", "centres"), [("llama", "sdpa", False), ("gemma2", "eager", False), ("gpt2", "sdpa", True)]
)
def test_the_gain_of_the_final_norm_is_found(kind: str, attention: str, centres: bool) -> None:
    anatomy = read_anatomy(tiny(kind, attention))
    norm, gain = anatomy.norm, torch.linspace(-2, 3, 32)
    assert norm is not None
    kept = norm.weight.detach().clone()
    with torch.no_grad():
        norm.weight.copy_(gain - 1 if kind == "gemma2" else gain)
        found = NormGain(anatomy)
        assert found.centres == centres
        assert torch.allclose(found.gain.float(), gain, atol=1e-4)
        # What is asked for comes out of the norm, but for the common scale and, centred, a constant.
        hidden, wanted = torch.randn(1, 1, 32), torch.randn(32)
        moved = 1e-3 * found.before(wanted.double() * gain).float()
        out = norm(hidden + moved) - norm(hidden - moved)
        norm.weight.copy_(kept)
    assert float(torch.cosine_similarity(out[0, 0], wanted * gain, dim=0)) > 0.8


def test_small_gains_do_not_explode_and_no_norm_is_refused() -> None:
    anatomy = read_anatomy(tiny("llama"))
    assert anatomy.norm is not None
    kept = anatomy.norm.weight.detach().clone()
    with torch.no_grad():
        anatomy.norm.weight[0] = 0
        made = NormGain(anatomy).before(torch.ones(32, dtype=torch.float64))
        anatomy.norm.weight.copy_(kept)
    assert float(made.abs().max()) < 101
    bare = Anatomy(nn.Module(), (), HEAD, 200, None, None)
    with pytest.raises(ModelError, match="norm="):
        NormGain(bare)
