from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from tests.conftest import write_task
from tests.repair.interpolated import check_reloaded
from uphold import load_repair
from uphold.cli.main import app
from uphold.core.errors import EmptyError, UsageError
from uphold.core.registry import method
from uphold.measure.evaluate import evaluate
from uphold.models.fingerprint import weights_hash
from uphold.models.load import load
from uphold.models.patches.copy import apply_to_copy
from uphold.models.patches.file import load_patch
from uphold.repair.adapt import AdaptConfig, adapt
from uphold.repair.mint import MintConfig, mint
from uphold.repair.protocol import begin
from uphold.repair.search_plan import kind_of
from uphold.tasks.base import subset
from uphold.tasks.load import load_task

FREE = {"max_nll_rise": 100.0, "min_agreement": 0.0, "total_nll_rise": 100.0, "total_agreement": 0.0}
CONFIG = MintConfig(mode="add", force=True, failures=2, guard=5, **FREE)  # type: ignore[arg-type]


def test_regressions_are_repaired_by_a_patch_that_makes_the_saved_weights(
    model_v1: Path, model_v2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = write_task(tmp_path, 120)
    result = mint(model_v1, model_v2, task, out=tmp_path / "out", config=CONFIG)
    assert (result.method, result.paper, result.form) == ("mint", "arXiv:2312.05356", "weights")
    assert result.artifact == tmp_path / "out" / "weights"
    check_reloaded(result, str(result.artifact), task, tmp_path)
    assert str(load_repair(tmp_path / "out")) == str(result)
    patch = load_patch(tmp_path / "out" / "patch.safetensors")
    assert patch.manifest.method == "mint"
    apply_to_copy(model_v2, [patch], tmp_path / "copy")
    assert weights_hash(tmp_path / "copy") == weights_hash(result.artifact) != weights_hash(model_v2)
    report = json.loads((tmp_path / "out" / "neurons.json").read_text())
    statuses = [one["status"] for one in report["failures"]]
    assert len(statuses) == 2
    assert "repaired" in statuses
    assert f"{statuses.count('repaired')} of 2 failures repaired" in result.notes[-2]
    assert "more failures of the train split were left out" in result.notes[-1]
    # The failures are what the old model has right and the new one wrong, continued by the gold option.
    wrong, right = (
        {record.id: record.correct for record in evaluate(name, task, split="train").records()}
        for name in (model_v2, model_v1)
    )
    answers = {one.id: one.target for one in load_task(task).instances("train")}
    tokenizer = load(model_v2).tokenizer
    for one in report["failures"]:
        name = one["failure"]["name"]
        assert (right[name], wrong[name]) == (True, False)
        assert tokenizer.decode(one["failure"]["target"]) == answers[name]

    monkeypatch.setattr("uphold.models.neurons.repair.repair_failures", lambda *_, **__: pytest.fail("made again"))
    again = mint(model_v1, model_v2, task, out=tmp_path / "out", config=CONFIG)
    assert str(again) == str(result)


def test_models_in_memory_are_left_as_they_were(model_v1: Path, model_v2: Path, tmp_path: Path) -> None:
    task = write_task(tmp_path, 80)
    loaded = load(model_v2)
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    result = mint(model_v1, loaded, task, out=tmp_path / "out", config=CONFIG)
    assert all(torch.equal(value, before[name]) for name, value in loaded.model.state_dict().items())
    made = dict(load(result.artifact).model.named_parameters())
    changed = [name for name in made if not torch.equal(made[name], before[name])]
    assert changed
    assert all("down_proj" in name for name in changed)


def test_an_adapter_is_merged_first(model_v1: Path, model_v2: Path, tmp_path: Path) -> None:
    task = write_task(tmp_path, 120)
    tiny = AdaptConfig(epochs=1, learning_rate=1e-3, warmup_steps=2, batch_size=32, micro_batch=32, rank=2, alpha=2)
    new = adapt(model_v2, task, out=tmp_path / "new", config=tiny).reference
    result = mint(model_v1, new, task, out=tmp_path / "out", config=CONFIG)
    assert any("merged into its weights" in note for note in result.notes)
    made = dict(load(result.artifact).model.named_parameters())
    merged = dict(load(new).model.merge_and_unload().named_parameters())
    patch = load_patch(tmp_path / "out" / "patch.safetensors")
    assert {name for name in made if not torch.equal(made[name], merged[name])} == set(patch.names)
    assert patch.manifest.weights == ""


def test_a_generate_task_on_the_command_line(model_v1: Path, model_v2: Path, tmp_path: Path) -> None:
    # What the old model writes first is the gold answer of all that the other one does not write as well.
    task = load_task(write_task(tmp_path, 60, kind="generate", options=None, tags=None, decoding={"max_new_tokens": 1}))
    said = {
        record.input: record.output
        for split in ("train", "validation", "test")
        for record in evaluate(model_v1, task, split=split).records()  # type: ignore[arg-type]
    }
    rows = [{"text": prompt.removesuffix(":"), "answer": text} for prompt, text in said.items() if text.strip()]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["repair", "mint", str(model_v1), str(model_v2), "--task", str(tmp_path / "task.yaml"), "--force"]
    options = ["--mode", "add", "--failures", "2", "--out", str(tmp_path / "out"), "--json", "--quiet"]
    free = ["--max-nll-rise", "100", "--min-agreement", "0", "--total-nll-rise", "100", "--total-agreement", "0"]
    done = CliRunner().invoke(app, [*arguments, *options, *free])
    assert done.exit_code == 0, done.output
    values = json.loads(done.stdout)
    assert (values["method"], values["form"], values["config"]["failures"]) == ("mint", "weights", 2)
    report = json.loads((tmp_path / "out" / "neurons.json").read_text())
    ends = {one["failure"]["target"][-1] for one in report["failures"]}
    assert ends == {load(model_v2).tokenizer.eos_token_id}


def test_nothing_to_repair_is_an_error(model_v1: Path, model_v2: Path, tmp_path: Path) -> None:
    task = load_task(write_task(tmp_path))
    old, new = (
        {record.id: record.correct for record in evaluate(one, task, split="train").records()}
        for one in (model_v1, model_v2)
    )
    kept = [one for one in task.instances("train") if not (old[one.id] and not new[one.id])]
    parts: Any = {split: task.instances(split) for split in ("validation", "test")}
    narrow = subset(task, "train", kept)
    narrow = type(narrow)(**{**vars(narrow), "splits": {**parts, "train": tuple(kept)}})
    with pytest.raises(EmptyError, match="there is nothing to repair"):
        mint(model_v1, model_v2, narrow, out=tmp_path / "out", config=CONFIG)


def test_where_nothing_can_be_repaired_the_artifact_is_the_new_model(
    model_v1: Path, model_v2: Path, tmp_path: Path
) -> None:
    task = write_task(tmp_path, 80)
    out = tmp_path / "out"
    out.mkdir()
    (out / "patch.safetensors").touch()
    weak = MintConfig(strength=1e-6, max_edits=1, max_neurons=1, failures=2, force=True)
    result = mint(model_v1, model_v2, task, out=out, config=weak)
    assert weights_hash(result.artifact) == weights_hash(model_v2)
    assert not (out / "patch.safetensors").exists()
    assert any("nothing was repaired" in note for note in result.notes)
    assert (
        result.repaired.comparison.new.sha256
        == begin("mint", "", model_v1, model_v2, load_task(task), out=tmp_path / "other", force=True).before.new.sha256
    )


def test_it_is_registered_with_its_options() -> None:
    found = method("repair", "mint")
    assert found.config is MintConfig
    assert kind_of(found) == "other"
    assert CONFIG.neurons.mode == "add"
    assert CONFIG.neurons.max_nll_rise == 100
    with pytest.raises(UsageError, match="failures and guard"):
        MintConfig(failures=-1)
