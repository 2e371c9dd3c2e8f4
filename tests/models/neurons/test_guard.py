from __future__ import annotations

import pytest
import torch

from tests.models.neurons.test_repair import guard_rows
from tests.models.tiny import tiny
from uphold.models.neurons.config import Guard
from uphold.models.neurons.guard import Drift, drift, forced, read_guard
from uphold.models.neurons.neurons import read_anatomy


@pytest.mark.parametrize("most", [1, 1 << 25])
def test_padding_and_batches_do_not_count(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uphold.models.neurons.guard._LOGITS", most)
    model, rows = tiny("gpt2"), guard_rows()
    reading = read_guard(read_anatomy(model), Guard(rows))
    assert reading is not None
    losses, predicted = [], []
    for row in sorted(rows, key=lambda one: len(one.prompt) + len(one.answer)):
        ids = torch.tensor([[*row.prompt, *row.answer]])
        with torch.no_grad():
            logits = model(ids).logits[0, len(row.prompt) - 1 : -1]
        losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor(row.answer), reduction="none"))
        predicted.append(logits.argmax(-1))
    assert reading.nll == pytest.approx(float(torch.cat(losses).mean()), rel=1e-5)
    assert torch.equal(reading.predicted, torch.cat(predicted))


def test_only_a_check_reads_nothing() -> None:
    assert read_guard(read_anatomy(tiny("gpt2")), Guard(check=lambda _: True)) is None


def test_drift_between_two_models() -> None:
    guard = Guard(guard_rows())
    one, other = (read_guard(read_anatomy(tiny(kind)), guard) for kind in ("gpt2", "llama"))
    assert one is not None
    assert other is not None
    found = drift(one, other)
    assert found.tokens == sum(len(row.answer) for row in guard.rows)
    assert found.agreement == float((one.predicted == other.predicted).float().mean())
    assert found.nll_rise == other.nll - one.nll
    assert drift(one, one) == Drift(found.tokens, 1.0, one.nll, one.nll)


def test_a_budget() -> None:
    found = Drift(100, 0.97, 2.0, 2.03)
    assert found.exceeds(0.04, 0.96) == ""
    assert "rises by 0.0300 nats per token, more than 0.02" in found.exceeds(0.02, 0.96)
    assert "only 97.00% of the guard set's predictions stay, less than 98.00%" in found.exceeds(0.04, 0.98)
    assert Drift(100, 1.0, 2.0, float("nan")).exceeds(1, 0)


def test_forced_is_what_greedy_decoding_would_say() -> None:
    model = tiny("llama")
    anatomy = read_anatomy(model)
    ids = [5, 9, 17, 4]
    written = list[int]()
    for _ in range(3):
        with torch.no_grad():
            written.append(int(model(torch.tensor([[*ids, *written]])).logits[0, -1].argmax()))
    right = forced(anatomy, ids, written)
    assert (right.predicted, right.right, right.rank, right.gap) == (tuple(written), 3, 0.0, 0.0)
    assert right.all_right
    other = forced(anatomy, ids, [written[0], (written[1] + 1) % 47, written[2]])
    assert not other.all_right
    assert other.rank > 0 < other.gap
    assert other.predicted[:2] == tuple(written[:2])
