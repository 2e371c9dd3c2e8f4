from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models.toy_lm import Toy
from uphold.models.neurons.edits import Edit, Ledger, added, patched
from uphold.models.neurons.neurons import Down, read_anatomy

W, P = torch.tensor([0.1, -0.2, 0.3]), torch.tensor([0.5, -0.5, 0.25])


def make(ledger: Ledger, down: Down, index: int, column: torch.Tensor) -> None:
    after, delta = ledger.settled(down, index, column)
    ledger.write(Edit(down, index, 1.0, down.neuron(index).clone(), after, delta, 0, 0, 1, 2))


@pytest.mark.parametrize("mode", ["mix", "add"])
def test_no_strength_leaves_a_neuron_alone(mode: str) -> None:
    assert torch.equal(patched(W, P, 0, mode), W)  # type: ignore[arg-type]


def test_a_mix_ends_at_the_direction() -> None:
    assert patched(W, P, 1, "mix").tolist() == pytest.approx(((W + P) / 2).tolist())
    assert patched(W, P, 0.25, "mix").tolist() == pytest.approx(((W + 0.25 * P) / 1.25).tolist())
    assert torch.allclose(patched(W, P, 1e9, "mix"), P, atol=1e-6)
    assert patched(W, P, 3, "add").tolist() == pytest.approx((W + 3 * P).tolist())


@given(st.floats(0.001, 10), st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]))
@settings(max_examples=40, deadline=None)
def test_a_neuron_and_its_delta_give_the_very_bits(strength: float, dtype: torch.dtype) -> None:
    toy = Toy(width=32).to(dtype)
    down = read_anatomy(toy, head="head").downs[0]
    pristine = down.neuron(1).clone()
    ledger = Ledger()
    direction = torch.randn(32, generator=torch.Generator().manual_seed(3)).double()
    for _ in range(3):
        make(ledger, down, 1, patched(down.neuron(1), direction, strength, "mix"))
        last = ledger.edits[-1]
        assert torch.equal(down.neuron(1), last.after)
        assert torch.equal(added(pristine, last.delta), last.after)
    ledger.rollback()
    assert torch.equal(down.neuron(1), pristine)


def test_undo_goes_backwards_also_where_a_neuron_was_hit_twice() -> None:
    toy = Toy()
    down = read_anatomy(toy, head="head").downs[0]
    before = {name: value.clone() for name, value in toy.state_dict().items()}
    ledger = Ledger()
    make(ledger, down, 1, torch.ones(6))
    mark, once = ledger.mark(), down.neuron(1).clone()
    make(ledger, down, 1, 2 * torch.ones(6))
    make(ledger, down, 3, torch.zeros(6))
    changed = [
        index for index in range(5) if not torch.equal(down.neuron(index), before["blocks.0.fc2.weight"][:, index])
    ]
    assert changed == [1, 3]
    assert all(torch.equal(value, before[name]) for name, value in toy.state_dict().items() if "fc2.weight" not in name)
    ledger.rollback(mark)
    assert torch.equal(down.neuron(1), once)
    ledger.rollback()
    assert all(torch.equal(value, before[name]) for name, value in toy.state_dict().items())
    assert not ledger.edits


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_undoes_everything(error: type[BaseException]) -> None:
    toy = Toy()
    down = read_anatomy(toy, head="head").downs[0]
    before = down.module.weight.detach().clone()

    def broken_off() -> None:
        with Ledger() as ledger:
            make(ledger, down, 1, torch.ones(6))
            raise error

    with pytest.raises(error):
        broken_off()
    assert torch.equal(down.module.weight, before)
    with Ledger() as ledger:
        make(ledger, down, 1, torch.ones(6))
    assert not torch.equal(down.module.weight, before)
