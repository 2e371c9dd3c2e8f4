from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.models.test_weights import with_adapter
from uphold.core.errors import UsageError
from uphold.models.load import Loaded, load
from uphold.models.mixture import WeightMixture, between, changed, old_share, plain_mixture
from uphold.models.weights import lora_factors, merged

OLD, NEW = torch.tensor([0.1, -2.0, 3.3]), torch.tensor([0.7, 5.1, 3.3])
shares = st.floats(0, 1)


@pytest.fixture(scope="module")
def two(model_v1: Path, model_v2: Path) -> tuple[Loaded, Loaded]:
    return load(model_v1), load(model_v2)


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in merged(model).named_parameters()}


@given(shares, st.floats(1e-6, 1e6))
def test_the_share_is_the_papers_quotient(alpha: float, fisher: float) -> None:
    found = float(old_share(alpha, torch.tensor(fisher, dtype=torch.float64)))
    assert found == pytest.approx(alpha * fisher / (alpha * fisher + 1 - alpha), rel=1e-9)
    assert 0 <= found <= 1


@given(shares)
def test_a_constant_fisher_of_1_is_plain_interpolation(alpha: float) -> None:
    share = old_share(alpha, torch.ones(3))
    assert torch.allclose(between(OLD, NEW, share), alpha * OLD + (1 - alpha) * NEW, atol=1e-5)


def test_the_limits_of_the_fisher() -> None:
    nothing, much = torch.zeros(3), torch.full((3,), 1e12)
    for alpha in (0.0, 0.5, 0.999):
        assert torch.equal(between(OLD, NEW, old_share(alpha, nothing)), NEW)
    assert torch.equal(between(OLD, NEW, old_share(1.0, nothing)), OLD)
    assert torch.equal(between(OLD, NEW, old_share(1.0, much)), OLD)
    assert torch.equal(between(OLD, NEW, old_share(0.0, much)), NEW)
    assert torch.allclose(between(OLD, NEW, old_share(0.5, much)), OLD)


def test_both_ends_are_exact_in_every_precision() -> None:
    for kind in (torch.float32, torch.bfloat16, torch.float16):
        old, new = OLD.to(kind), NEW.to(kind)
        assert torch.equal(between(old, new, 0.0), new)
        assert torch.equal(between(old, new, 1.0), old)
        assert between(old, new, 0.3).dtype is kind


def test_by_hand() -> None:
    """alpha 1/2 and F = (3, 1, 0): shares 3/4, 1/2 and 0 of the old weights."""
    fisher = torch.tensor([3.0, 1.0, 0.0])
    mixed = between(torch.tensor([8.0, 8.0, 8.0]), torch.tensor([4.0, 4.0, 4.0]), old_share(0.5, fisher))
    assert mixed.tolist() == [7.0, 6.0, 4.0]


def test_whole_models_are_mixed_tensor_by_tensor(two: tuple[Loaded, Loaded]) -> None:
    old, new = two
    mixture = plain_mixture(old, new)
    assert mixture.form == "weights"
    assert "fine-tuned from the old one" in mixture.notes[0]
    before, after = weights(old.model), weights(new.model)
    for alpha in (0.0, 1.0, 0.4):
        mixture.set(alpha)
        found = weights(mixture.model)
        for name, value in found.items():
            expected = alpha * before[name] + (1 - alpha) * after[name]
            assert torch.equal(value, expected) if alpha in (0, 1) else torch.allclose(value, expected), name
    ids = torch.arange(4, 20).unsqueeze(0)
    with torch.inference_mode():
        for alpha, model in ((0.0, new.model), (1.0, old.model)):
            mixture.set(alpha)
            assert torch.equal(mixture.model(ids).logits, model(ids).logits)
    assert all(torch.equal(value, before[name]) for name, value in weights(old.model).items())


def test_adapters_on_one_base_are_mixed_as_an_adapter(two: tuple[Loaded, Loaded]) -> None:
    base, _ = two
    old, new = with_adapter(base, 4, 8, 1), with_adapter(base, 2, 4, 2)
    mixture = plain_mixture(old, new)
    assert (mixture.form, mixture.notes) == ("adapter", ())
    dense = WeightMixture(merged(old.model), merged(new.model))
    for alpha in (0.0, 0.2, 0.9, 1.0):
        mixture.set(alpha)
        dense.set(alpha)
        found, expected = weights(mixture.model), weights(dense.model)
        assert all(torch.allclose(found[name], value, atol=1e-6) for name, value in expected.items())


def test_the_base_itself_can_be_the_old_model(two: tuple[Loaded, Loaded]) -> None:
    base, _ = two
    new = with_adapter(base, 2, 4, 2)
    mixture = plain_mixture(base, new)
    mixture.set(0.25)
    before, after, found = weights(base.model), weights(new.model), weights(mixture.model)
    assert mixture.form == "adapter"
    assert all(torch.allclose(found[name], 0.25 * before[name] + 0.75 * after[name], atol=1e-6) for name in found)


def test_a_soup_of_equal_members_is_the_member(two: tuple[Loaded, Loaded]) -> None:
    base, other = two
    new = with_adapter(base, 2, 4, 2)
    factors = lora_factors(new.model)
    assert factors
    expected = weights(new.model)
    for old in (with_adapter(base, 4, 8, 1), other):
        soup = plain_mixture(old, new, [factors, factors])
        soup.set(0.0)
        assert all(torch.allclose(expected[name], value, atol=1e-6) for name, value in weights(soup.model).items())


def test_a_soup_is_the_mean_of_its_members(two: tuple[Loaded, Loaded]) -> None:
    base, other = two
    members = [with_adapter(base, 2, 4, seed) for seed in (2, 3, 4)]
    each = [weights(member.model) for member in members]
    before = weights(other.model)
    soup = plain_mixture(other, members[0], [lora_factors(member.model) or {} for member in members[1:]])
    assert soup.form == "weights"
    soup.set(0.5)
    for name, value in weights(soup.model).items():
        assert torch.allclose(value, 0.5 * before[name] + sum(one[name] for one in each) / 6, atol=1e-6), name


def test_a_soup_needs_plain_adapters(two: tuple[Loaded, Loaded]) -> None:
    import copy

    from peft import LoraConfig, get_peft_model

    base, other = two
    config = LoraConfig(r=2, target_modules=["q_proj"], use_dora=True)
    new = base._replace(model=get_peft_model(copy.deepcopy(base.model), config).eval())
    assert plain_mixture(other, new).form == "weights"
    with pytest.raises(UsageError, match="no plain LoRA"):
        plain_mixture(other, new, [{}])


def test_only_what_differs_is_mixed(two: tuple[Loaded, Loaded]) -> None:
    base, _ = two
    adapted = merged(with_adapter(base, 2, 4, 2).model)
    names = changed(base.model, adapted)
    assert len(names) == 14
    assert all("proj" in name for name in names)
    assert changed(base.model, base.model) == []
