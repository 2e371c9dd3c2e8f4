from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from uphold.core.errors import EmptyError, ModelError
from uphold.models.encode import Encoded, collate
from uphold.models.fisher import diagonal_fisher, with_mean_one
from uphold.models.load import load

ROWS = [Encoded([5, 6, 7], [8, 9]), Encoded([10, 11], [12]), Encoded([13, 14, 15, 16], [17, 18])]


class Softmax(nn.Module):
    """Next-token logits W e(token), with fixed e."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(3, 2)
        self.head = nn.Linear(2, 3, bias=False)
        with torch.no_grad():
            self.embed.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]]))
            self.head.weight.zero_()
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        return SimpleNamespace(logits=self.head(self.embed(input_ids)))


def test_by_hand() -> None:
    """W = 0, so p = 1/3 each and the gradient is (p - onehot(y)) e(x): squared and averaged over two answers.

    x = 0, e = (1, 0), y = 2: rows (1/3, 1/3, -2/3) in column 0. x = 1, e = (0, 2), y = 0: (-4/3, 2/3, 2/3) in column 1.
    """
    found = diagonal_fisher(Softmax(), [Encoded([0], [2]), Encoded([1], [0])], ["head.weight"])
    expected = torch.tensor([[1 / 9, 16 / 9], [1 / 9, 4 / 9], [4 / 9, 4 / 9]]) / 2
    assert torch.allclose(found["head.weight"], expected)


def test_an_answers_tokens_are_one_event_and_answers_are_apart() -> None:
    """Tokens of one answer: the sum's gradient squared. Two answers with opposite gradients: they do not cancel."""
    both = diagonal_fisher(Softmax(), [Encoded([0], [0, 0])], ["head.weight"])["head.weight"]
    assert both[0, 0].item() == pytest.approx((2 * 2 / 3) ** 2)
    apart = diagonal_fisher(Softmax(), [Encoded([0], [0]), Encoded([0], [1])], ["head.weight"])["head.weight"]
    assert apart[0, 0].item() == pytest.approx(((2 / 3) ** 2 + (1 / 3) ** 2) / 2)


def test_a_tied_weight_gets_the_gradient_of_both_its_uses() -> None:
    model = Softmax(tied=True)
    found = diagonal_fisher(model, [Encoded([0], [2])], ["embed.weight"])["embed.weight"]
    functional.cross_entropy(model(torch.tensor([[0]])).logits[0], torch.tensor([2])).backward()
    assert model.embed.weight.grad is not None
    assert torch.allclose(found, model.embed.weight.grad.square())


def test_it_equals_backward_passes_one_at_a_time_and_leaves_the_model_alone(model_v1: Path) -> None:
    model: Any = load(model_v1).model
    names = [name for name, _ in model.named_parameters() if "q_proj" in name or "embed" in name]
    flags = [value.requires_grad for value in model.parameters()]
    found = diagonal_fisher(model, ROWS, names)
    assert [value.requires_grad for value in model.parameters()] == flags
    assert all(value.grad is None for value in model.parameters())
    expected = {name: torch.zeros_like(found[name]) for name in names}
    for row in ROWS:
        ids = collate([row]).input_ids
        model.zero_grad()
        logits = model(ids).logits[0, len(row.prompt) - 1 : -1]
        functional.cross_entropy(logits, ids[0, len(row.prompt) :], reduction="sum").backward()
        for name, value in model.named_parameters():
            if name in expected:
                expected[name] += value.grad.square() / len(ROWS)
    model.zero_grad()
    assert found.keys() == expected.keys()
    assert all(torch.allclose(found[name], value, rtol=1e-4, atol=1e-12) for name, value in expected.items())


def test_rescaling_gives_mean_1_over_all_entries_and_keeps_ratios() -> None:
    fisher = {"a": torch.tensor([1.0, 3.0]), "b": torch.tensor([[4.0], [0.0], [2.0]])}
    found = with_mean_one(fisher)
    assert torch.cat([value.flatten() for value in found.values()]).tolist() == [0.5, 1.5, 2.0, 0.0, 1.0]


def test_nothing_to_go_by_is_an_error() -> None:
    with pytest.raises(EmptyError, match="no answers"):
        diagonal_fisher(Softmax(), [], ["head.weight"])
    with pytest.raises(ModelError, match="0 everywhere"):
        with_mean_one({"a": torch.zeros(3)})
    broken = Softmax()
    with torch.no_grad():
        broken.head.weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="not finite"):
        diagonal_fisher(broken, [Encoded([0], [2])], ["head.weight"])
