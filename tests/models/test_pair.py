from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import save_tiny_model, write_task
from uphold import compare, evaluate
from uphold.core.errors import CorruptError, ModelError, TokenizerMismatchError, UsageError
from uphold.models.adapter import base_name, fresh_adapter, save_adapter
from uphold.models.load import Loaded, fingerprint_of, load
from uphold.models.pair import fresh_gate, pair_of, save_pair
from uphold.models.pair_file import GATE, Averaging, Gating, Parameters, Reranking
from uphold.models.pool import ModelPool

EACH = [Averaging(0.4), Reranking(2, 3), Gating(2.0, 4)]


@pytest.fixture
def models(tmp_path: Path, model_v1: Path, model_v2: Path) -> tuple[Path, Path]:
    """Copies that a test may spoil."""
    return tuple(Path(shutil.copytree(path, tmp_path / path.name)) for path in (model_v1, model_v2))  # type: ignore[return-value]


def made(models: tuple[Any, Any], how: Parameters, folder: Path) -> Loaded:
    old, new = map(load, models)
    gate = fresh_gate(new, how.width, 0) if isinstance(how, Gating) else None
    if gate is not None:
        torch.nn.init.constant_(gate.outer.bias, 0.3)
    return save_pair(pair_of(old, new, how, gate), folder)


@pytest.mark.parametrize("how", EACH, ids=lambda how: type(how).__name__)
@pytest.mark.parametrize("kind", ["choice", "generate"])
def test_a_folder_answers_as_the_pair_in_memory(
    how: Parameters, kind: str, models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = (
        {}
        if kind == "choice"
        else {"kind": "generate", "options": None, "scorer": "exact", "decoding": {"max_new_tokens": 4}}
    )
    task = write_task(tmp_path, 40, **changes)
    pair = made(models, how, tmp_path / "pair")
    in_memory = evaluate(pair, task)
    monkeypatch.setenv("UPHOLD_STORE", str(tmp_path / "another"))
    stored = evaluate(str(tmp_path / "pair"), task)
    assert list(stored.records()) == list(in_memory.records())
    assert stored.fingerprint["model"] == in_memory.fingerprint["model"]
    plain = evaluate(models[1], task)
    assert sum(one.tokens for one in stored.records()) > sum(one.tokens for one in plain.records())


def test_a_pair_is_compared_with_the_old_model_and_named_by_its_repairs_folder(
    models: tuple[Path, Path], tmp_path: Path
) -> None:
    pair = made(models, Averaging(), tmp_path / "repair" / "pair")
    task = write_task(tmp_path, 40)
    found = compare(models[0], tmp_path / "repair", task)
    assert found.rates == compare(models[0], pair, task).rates
    assert found.new.sha256 == evaluate(pair, task).sha256
    assert compare(models[0], models[1], task).new.sha256 != found.new.sha256


def test_old_and_new_alone_are_the_ends_of_an_ensemble(models: tuple[Path, Path], tmp_path: Path) -> None:
    task = write_task(tmp_path, 40)
    for share, model in ((0.0, models[1]), (1.0, models[0])):
        pair = made(models, Averaging(share), tmp_path / "pair")
        ours, theirs = evaluate(pair, task).records(), evaluate(model, task).records()
        assert [(one.output, one.option_logprobs) for one in ours] == [
            (one.output, one.option_logprobs) for one in theirs
        ]


@pytest.mark.parametrize("which", [0, 1])
def test_a_model_that_has_changed_is_refused(which: int, models: tuple[Path, Path], tmp_path: Path) -> None:
    made(models, Averaging(), tmp_path / "pair")
    save_tiny_model(models[which], seed=9)
    role = ("old", "new")[which]
    for use in (fingerprint_of, load, ModelPool().load):
        with pytest.raises(ModelError, match=rf"the {role} model of the pair.*has changed.*its weights differs"):
            use(tmp_path / "pair")


def test_fingerprints_tell_pairs_apart(models: tuple[Path, Path], tmp_path: Path) -> None:
    old, new = map(load, models)
    pairs = [pair_of(old, new, how) for how in (Averaging(0.4), Averaging(0.5), Reranking(), Reranking(seed=1))]
    gates = [fresh_gate(new, 4, seed) for seed in (0, 1)]
    pairs += [pair_of(new, old, Averaging(0.4)), *(pair_of(old, new, Gating(width=4), gate) for gate in gates)]
    assert len({pair.fingerprint["weights"] for pair in pairs}) == len(pairs)
    again = pair_of(load(models[0]), load(models[1]), Averaging(0.4), name="other name")
    assert again.fingerprint["weights"] == pairs[0].fingerprint["weights"]
    reference = fingerprint_of(str(made(models, Averaging(0.4), tmp_path / "pair").name))
    assert reference["weights"] == again.fingerprint["weights"]
    assert {"device", "dtype", "attention"} <= reference.keys()


def test_another_gate_is_refused(models: tuple[Path, Path], tmp_path: Path) -> None:
    made(models, Gating(width=4), tmp_path / "pair")
    made(models, Gating(width=4), tmp_path / "other")
    gate = tmp_path / "pair" / GATE
    gate.write_bytes(gate.read_bytes()[:-1] + b"x")
    with pytest.raises(CorruptError, match=r"gate\.safetensors is not the one"):
        load(tmp_path / "pair")
    gate.unlink()
    with pytest.raises(CorruptError, match=r"gate\.safetensors is not the one"):
        fingerprint_of(tmp_path / "pair")


def test_adapters_are_part_of_a_pair_and_found_from_any_folder(
    models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = load(models[1])
    adapter = fresh_adapter(base, 2, 4, 0.0, seed=3)
    torch.nn.init.normal_(next(value for name, value in adapter.named_parameters() if "lora_B" in name))
    save_adapter(adapter, base, tmp_path / "adapter", "card", {})
    monkeypatch.chdir(tmp_path)
    reference = f"{models[1].name}+adapter"
    made((models[0].name, reference), Averaging(), tmp_path / "pair")
    monkeypatch.chdir(tmp_path.parent)
    loaded = load(tmp_path / "pair")
    assert base_name(loaded.model.members[1]) == str(models[1])
    assert loaded.fingerprint["pair"]["new"]["adapter"] is not None
    plain = evaluate(models[1], write_task(tmp_path, 40))
    assert evaluate(tmp_path / "pair", write_task(tmp_path, 40)).sha256 != plain.sha256


def test_models_from_memory_cannot_be_found_again(models: tuple[Path, Path], tmp_path: Path) -> None:
    old, new = map(load, models)
    pairs = [(one.model, one.tokenizer) for one in (old, new)]
    pair = made((pairs[0], pairs[1]), Averaging(), tmp_path / "pair")
    assert evaluate(pair, write_task(tmp_path, 40)).count
    with pytest.raises(ModelError, match="the old model of this pair was in memory only"):
        load(tmp_path / "pair")


def test_what_cannot_be_paired_is_refused(models: tuple[Path, Path], tmp_path: Path) -> None:
    other = save_tiny_model(tmp_path / "other", seed=5, letters="abcdefgh0123456789:")
    with pytest.raises(TokenizerMismatchError, match="different tokenizers"):
        pair_of(load(models[0]), load(other), Averaging())
    made(models, Averaging(), tmp_path / "pair")
    with pytest.raises(UsageError, match=r"is a pair of models.*name one of its two"):
        pair_of(load(models[0]), load(tmp_path / "pair"), Averaging())


def test_a_pool_keeps_a_pair_and_gives_it_up_for_another_model(models: tuple[Path, Path], tmp_path: Path) -> None:
    made(models, Averaging(), tmp_path / "pair")
    pool = ModelPool()
    first = pool.load(str(tmp_path / "pair"))
    assert pool.load(str(tmp_path / "pair")).model is first.model
    single = pool.load(str(models[1]))
    assert "pair" not in single.fingerprint
    assert pool.load(str(tmp_path / "pair")).model is not first.model
