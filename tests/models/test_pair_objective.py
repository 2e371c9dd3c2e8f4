from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.models.test_pair_model import member
from tests.models.test_pair_model import model as single
from uphold.models.encode import Encoded, collate
from uphold.models.pair_file import Gating
from uphold.models.pair_model import Gate, ModelPair, fused
from uphold.models.pair_objective import GateLoss

ROWS = [Encoded([5, 6, 7], [8, 9]), Encoded([10, 11], [12]), Encoded([13, 14, 15, 16], [17, 18])]


def gated(old: str = "gpt2", new: str = "llama", temperature: float = 1.5) -> Any:
    gate = Gate(32, 4)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        torch.nn.init.normal_(gate.outer.weight)
    return ModelPair(member(old), member(new), Gating(temperature, 4), gate).eval()


@pytest.mark.parametrize("new", ["llama", "gemma2", "granite"])
def test_value_and_gradient_are_those_of_autograd(new: str) -> None:
    """Also for a model that does something behind its head (soft-capping, scaling)."""
    model, batch = gated(new=new), collate(ROWS)
    loss = GateLoss("answer", 0.0)(model, batch)
    loss.total.backward()
    found = [parameter.grad.clone() for parameter in model.gate.parameters()]
    model.gate.zero_grad()

    rows, positions = batch.is_answer[:, 1:].nonzero(as_tuple=True)
    hidden: list[torch.Tensor] = []
    head = single(new).get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _module, inputs: hidden.append(inputs[0]))
    with torch.no_grad():
        old_logits, new_logits = (
            single(kind)(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[rows, positions]
            for kind in ("gpt2", new)
        )
    hook.remove()
    fusion = fused(old_logits, new_logits, model.gate(hidden[0][rows, positions]), 1.5)
    expected = F.cross_entropy(fusion, batch.input_ids[rows, positions + 1], reduction="sum")
    expected.backward()
    assert loss.total.item() == pytest.approx(expected.item(), rel=1e-5)
    for ours, parameter in zip(found, model.gate.parameters(), strict=True):
        torch.testing.assert_close(ours, parameter.grad, rtol=1e-3, atol=1e-5)
    assert loss.logs["loss"] == (pytest.approx(expected.item(), rel=1e-5), 5.0)
    assert GateLoss("answer", 0.0).count(batch) == 5


def test_chunks_do_not_change_it(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = GateLoss("all", 0.0)(gated(), collate(ROWS)).total
    monkeypatch.setattr("uphold.models.pair_objective.CHUNK", 1)
    assert GateLoss("all", 0.0)(gated(), collate(ROWS)).total.item() == pytest.approx(whole.item(), rel=1e-6)


def test_padding_changes_nothing() -> None:
    one, other = (GateLoss("all", 0.0)(gated(), collate(ROWS, extra)).total.item() for extra in (0, 5))
    assert one == pytest.approx(other, rel=1e-5)


def test_a_dropped_token_is_the_new_models_and_gives_no_gradient() -> None:
    model, batch = gated(), collate(ROWS)
    model.train()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        loss = GateLoss("all", 0.999999)(model, batch)
    loss.total.backward()
    assert all(not parameter.grad.any() for parameter in model.gate.parameters())
    model.eval()
    with model.gate.open():
        assert GateLoss("all", 0.5)(model, batch).total.item() == pytest.approx(loss.total.item(), rel=1e-6)
