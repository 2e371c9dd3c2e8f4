from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import write_task
from uphold import compare, evaluate, load_repair
from uphold.core.errors import UsageError
from uphold.models.fingerprint import weights_hash
from uphold.models.load import load
from uphold.models.pair import pair_of
from uphold.models.pair_file import GATE, Gating
from uphold.models.pair_model import Gate
from uphold.repair.gated_fusion import GatedFusionConfig, gated_fusion
from uphold.repair.result import Repair

TINY = GatedFusionConfig(epochs=3, learning_rate=1e-2, batch_size=16, width=8, force=True)


@pytest.fixture(scope="module")
def repaired(model_v1: Path, model_v2: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("gate")
    patch = pytest.MonkeyPatch()
    patch.setenv("UPHOLD_STORE", str(folder / "store"))
    task = write_task(folder, 100)
    before = [weights_hash(path) for path in (model_v1, model_v2)]
    result = gated_fusion(model_v1, model_v2, task, out=folder / "out", config=TINY)
    assert before == [weights_hash(path) for path in (model_v1, model_v2)]
    yield result, task, folder / "out"
    patch.undo()


def test_the_gate_is_trained_and_its_epoch_chosen(repaired: tuple[Repair, Path, Path]) -> None:
    result, _, folder = repaired
    history = result.repaired.history
    assert [entry.epoch for entry in history] == [0, 1, 2, 3]
    assert sum(entry.chosen for entry in history) == 1
    assert history[3].train["loss"] < history[1].train["loss"]
    assert history[1].train["gate"] != history[3].train["gate"]
    gate = load_file(folder / "pair" / GATE)
    assert gate["outer.weight"].any()
    assert gate["inner.weight"].shape == (8, 32)


def test_epoch_0_is_the_new_model(repaired: tuple[Repair, Path, Path], model_v2: Path) -> None:
    result, task, _ = repaired
    records = list(evaluate(model_v2, task, split="validation").records())
    right = sum(bool(record.correct) for record in records) / len(records)
    assert result.repaired.history[0].validation["accuracy"] == pytest.approx(right)
    assert result.repaired.history[0].validation["nfr"] == result.validation["nfr"].value


def test_its_folder_answers_as_it_was_measured(repaired: tuple[Repair, Path, Path], model_v1: Path) -> None:
    result, task, folder = repaired
    assert str(load_repair(folder)) == str(result)
    assert compare(model_v1, folder / "pair", task).rates == result.repaired.comparison.rates


def test_repeating_the_call_trains_nothing(
    repaired: tuple[Repair, Path, Path], model_v1: Path, model_v2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, task, folder = repaired
    monkeypatch.setattr(
        "uphold.models.pair_objective.GateLoss.__call__", lambda *_: pytest.fail("trained again"), raising=True
    )
    # Of a gate there are no layers whose activations could be forgotten: the option changes nothing.
    again = gated_fusion(model_v1, model_v2, task, out=folder, config=replace(TINY, gradient_checkpointing=True))
    assert str(again) == str(result)
    with pytest.raises(UsageError, match="another training"):
        gated_fusion(model_v1, model_v2, task, out=folder, config=replace(TINY, seed=1))


def test_an_interrupted_training_ends_with_the_same_gate(
    repaired: tuple[Repair, Path, Path], model_v1: Path, model_v2: Path, tmp_path: Path
) -> None:
    _, task, folder = repaired

    def stop(what: str, done: int, total: int, note: str = "") -> None:
        if "epoch 3" in note:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gated_fusion(model_v1, model_v2, task, out=tmp_path / "out", config=TINY, progress=stop)
    config = replace(TINY, gradient_checkpointing=True)
    gated_fusion(model_v1, model_v2, task, out=tmp_path / "out", config=config)
    ours, theirs = (load_file(place / "pair" / GATE) for place in (tmp_path / "out", folder))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_gate_that_stands_open_is_the_new_model(model_v1: Path, model_v2: Path, tmp_path: Path) -> None:
    task = write_task(tmp_path, 60)
    gate = Gate(32, 4)
    torch.nn.init.constant_(gate.outer.bias, 100.0)
    pair = pair_of(load(model_v1), load(model_v2), Gating(width=4), gate)
    ours, theirs = evaluate(pair, task).records(), evaluate(model_v2, task).records()
    assert [one.option_logprobs for one in ours] == [one.option_logprobs for one in theirs]


def test_impossible_options_are_refused() -> None:
    with pytest.raises(UsageError, match="drop in"):
        GatedFusionConfig(drop=1.0)
    with pytest.raises(UsageError, match="temperature above 0"):
        GatedFusionConfig(old_temperature=0.0)
