from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.neurons.test_repair import failing, guard_rows
from tests.models.tiny import tiny
from uphold.core.errors import CorruptError
from uphold.models.neurons.config import Guard, NeuronConfig
from uphold.models.neurons.journal import journal_key
from uphold.models.neurons.neurons import read_anatomy
from uphold.models.neurons.repair import repair_failures

CONFIG = NeuronConfig(mode="add", max_nll_rise=100, min_agreement=0, total_nll_rise=100, total_agreement=0)


def test_an_interrupted_call_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, guard, journal = tiny("llama"), Guard(guard_rows()), tmp_path / "p.journal"
    failures = failing(model, 4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    patch, expected = repair_failures(model, failures, CONFIG, guard=guard)

    def stop(what: str, done: int, total: int, note: str = "") -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        repair_failures(model, failures, CONFIG, guard=guard, journal=journal, progress=stop)
    assert journal.is_file()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    done: list[int] = []
    again, report = repair_failures(
        model, failures, CONFIG, guard=guard, journal=journal, progress=lambda what, number, *_: done.append(number)
    )
    assert done == [3, 4]
    assert report == expected
    assert patch is not None
    assert again is not None
    assert again.id == patch.id
    # It stays until the patch is saved: asked once more, there is nothing left to do.
    done.clear()
    last, report = repair_failures(
        model, failures, CONFIG, guard=guard, journal=journal, progress=lambda what, number, *_: done.append(number)
    )
    assert not done
    assert report == expected
    assert last is not None
    assert last.id == patch.id


def test_another_calls_journal_is_not_gone_on_with(tmp_path: Path) -> None:
    model, journal = tiny("llama"), tmp_path / "p.journal"
    failures = failing(model, 2)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        repair_failures(model, failures, CONFIG, journal=journal, progress=stop)
    _, report = repair_failures(model, failures[1:], CONFIG, journal=journal)
    assert report == repair_failures(model, failures[1:], CONFIG)[1]


def test_the_key_is_of_weights_failures_options_and_guard() -> None:
    model, other = tiny("llama"), tiny("llama", tie_word_embeddings=True)
    failures = failing(model, 2)
    guard = Guard(guard_rows())
    attention = deepcopy(model)
    with torch.no_grad():
        attention.model.layers[0].self_attn.q_proj.weight.add_(1)
    calls = [
        (model, failures, CONFIG, None),
        (other, failures, CONFIG, None),
        (attention, failures, CONFIG, None),
        (model, failures[:1], CONFIG, None),
        (model, failures, NeuronConfig(), None),
        (model, failures, CONFIG, guard),
    ]
    keys = [journal_key(read_anatomy(one), *rest) for one, *rest in calls]  # type: ignore[arg-type]
    assert len(set(keys)) == len(calls)


def test_a_damaged_journal_is_refused(tmp_path: Path) -> None:
    model, journal = tiny("llama"), tmp_path / "p.journal"
    journal.write_bytes(b"damaged")
    with pytest.raises(CorruptError, match="remove it to start anew"):
        repair_failures(model, failing(model), CONFIG, journal=journal)
