from __future__ import annotations

import pytest
import torch

from uphold.models import gold_logprobs as module
from uphold.models.gold_logprobs import gold_logprobs, gold_rights
from uphold.models.projection import Projected, Whole


def made(count: int = 7, width: int = 5, vocabulary: int = 11) -> tuple[torch.Tensor, torch.nn.Linear, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    head = torch.nn.Linear(width, vocabulary, bias=False)
    head.weight.data = torch.randn(vocabulary, width, generator=generator)
    head.weight.requires_grad_(False)
    hidden = torch.randn(count, width, generator=generator).requires_grad_()
    return hidden, head, torch.randint(0, vocabulary, (count,), generator=generator)


@pytest.mark.parametrize("chunk", [1, 24, 10_000])
def test_values_and_gradients_are_those_of_autograd(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_LOGITS", chunk)
    hidden, head, targets = made()
    weights = torch.arange(7.0) - 3
    whole = head(hidden)
    expected = whole.log_softmax(-1).gather(1, targets[:, None])[:, 0]
    [wanted] = torch.autograd.grad((weights * expected).sum(), hidden)
    for logits in (Projected(hidden, head), Whole(head(hidden))):
        found = gold_logprobs(logits, targets)
        torch.testing.assert_close(found, expected)
        [gradient] = torch.autograd.grad((weights * found).sum(), hidden)
        torch.testing.assert_close(gradient, wanted)
    assert torch.equal(gold_rights(Projected(hidden, head), targets), whole.argmax(-1) == targets)


def test_no_positions_give_no_values() -> None:
    hidden, head, targets = made()
    assert gold_logprobs(Projected(hidden[:0], head), targets[:0]).shape == (0,)
    assert gold_rights(Projected(hidden[:0], head), targets[:0]).shape == (0,)
