from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import write_task
from tests.repair.interpolated import Scene, check_reloaded, make_scene, no_work
from uphold.measure.evaluate import evaluate
from uphold.models.encode import Encoder
from uphold.models.fisher import diagonal_fisher, with_mean_one
from uphold.models.load import load
from uphold.models.weights import merged
from uphold.repair.fisher_bcwi import FisherBcwiConfig, _mixture, fisher_bcwi, own_answers
from uphold.repair.protocol import begin
from uphold.tasks.base import required_instances
from uphold.tasks.load import load_task

CONFIG = FisherBcwiConfig(old_share=0.9, force=True)


@pytest.fixture(scope="module")
def scene(model_v1: Path, model_v2: Path, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return make_scene(tmp_path_factory.mktemp("fisher"), model_v1, model_v2)


def test_every_weight_counts_by_its_fisher_information_in_the_old_model(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = fisher_bcwi(scene.old, scene.new, scene.task, out=tmp_path / "out", config=CONFIG)
    assert result.form == "weights"
    old, new = merged(load(scene.old).model), merged(load(scene.new).model)
    train = list(evaluate(scene.old, scene.task, split="train").records())
    rows = Encoder(load(scene.old).tokenizer).pairs([(record.input, record.output) for record in train])
    before, after, made = (dict(one.named_parameters()) for one in (old, new, load(result.artifact).model))
    names = [name for name in before if "proj" in name]
    fisher = with_mean_one(diagonal_fisher(old, rows, names))
    for name, value in made.items():
        if name not in fisher:
            assert torch.equal(value, after[name])
            continue
        weight = 0.9 * fisher[name]
        expected = (weight * before[name] + 0.1 * after[name]) / (weight + 0.1)
        assert torch.allclose(value, expected, atol=1e-5), name
    check_reloaded(result, str(result.artifact), scene.task, tmp_path)
    no_work(monkeypatch)
    monkeypatch.setattr("uphold.models.fisher.diagonal_fisher", lambda *_, **__: pytest.fail("read again"))
    again = fisher_bcwi(scene.old, scene.new, scene.task, out=tmp_path / "out", config=CONFIG)
    assert str(again) == str(result)


def test_a_search_reads_the_kept_fisher_information(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fisher_bcwi(scene.old, scene.other, scene.task, out=tmp_path / "out", config=CONFIG)
    assert len(load_file(tmp_path / "out" / "fisher" / "fisher.safetensors")) == 16
    monkeypatch.setattr("uphold.models.fisher.diagonal_fisher", lambda *_, **__: pytest.fail("read again"))
    config = FisherBcwiConfig(step=0.5, force=True)
    result = fisher_bcwi(scene.old, scene.other, scene.task, out=tmp_path / "out", config=config)
    assert [entry.train["alpha"] for entry in result.repaired.history] == list(config.grid)


def test_few_examples_are_drawn_by_seed(scene: Scene, tmp_path: Path) -> None:
    task = load_task(scene.task)
    setting = begin("x", "", scene.old, scene.new, task, out=tmp_path / "out", force=True)
    found = []
    for index, seed in enumerate((0, 0, 1)):
        where = replace(setting, folder=tmp_path / str(index))
        _mixture(where, FisherBcwiConfig(examples=5, seed=seed))
        found.append((where.folder / "fisher" / "fisher.safetensors").read_bytes())
    assert found[0] == found[1] != found[2]


def test_written_answers_are_the_models_own_and_empty_ones_are_counted(
    model_v1: Path, model_v2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = load_task(
        write_task(tmp_path, 24, kind="generate", options=None, decoding={"max_new_tokens": 3, "stop": []})
    )
    setting = begin("x", "", model_v1, model_v2, task, out=tmp_path / "out", force=True)
    instances = required_instances(task, "train")
    said = [record.output for record in evaluate(model_v1, task, split="train").records()]
    rows, left_out = own_answers(setting, instances)
    end = setting.old.tokenizer.eos_token_id
    assert len(rows) + left_out == len(instances)
    assert left_out == said.count("")
    assert all(row.answer[-1] == end and len(row.answer) > 1 for row in rows)
