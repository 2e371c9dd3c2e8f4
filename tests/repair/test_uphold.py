from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tests.conftest import write_task
from uphold import load_repair
from uphold.core.errors import UsageError
from uphold.models.distillation import distillation_loss
from uphold.models.encode import Encoder
from uphold.models.load import load
from uphold.models.projection import Whole
from uphold.models.rules import Trained
from uphold.repair.protocol import begin
from uphold.repair.uphold import UpholdConfig, UpholdRule, _examples, uphold
from uphold.tasks.load import load_task

TINY = {"epochs": 2, "learning_rate": 5e-3, "warmup_steps": 2, "batch_size": 16, "micro_batch": 8, "rank": 4}


def loss(rule: UpholdRule, instance: list[int]) -> float:
    """Of three tokens over four words, the last of them 0 to 3."""
    generator = torch.Generator().manual_seed(0)
    own, old, new = (torch.randn(3, 4, generator=generator) for _ in range(3))
    numbers = torch.arange(3)
    trained = Trained(numbers, numbers, numbers, torch.ones(3, dtype=torch.bool), torch.tensor(instance))
    total, _ = distillation_loss(Whole(own), [Whole(old), Whole(new)], trained, rule)
    return float(total)


def test_the_loss_is_that_of_the_docstring() -> None:
    generator = torch.Generator().manual_seed(0)
    own, old, new = (torch.randn(3, 4, generator=generator) for _ in range(3))
    average = 0.4 * old.softmax(-1) + 0.6 * new.softmax(-1)
    divergence = F.kl_div(own.log_softmax(-1), average, reduction="none").sum(-1)
    crossed = F.cross_entropy(own, torch.arange(3), reduction="none")
    # The second row carries a model's own answer: no gold there.
    gold = torch.tensor([0.3, 0.0, 0.3])
    expected = (gold * crossed + (1 - gold) * divergence).sum().item()
    assert loss(UpholdRule(share=0.4, gold_weight=0.3), [0, -1, 7]) == pytest.approx(expected, rel=1e-5)


def test_without_gold_weight_rows_are_alike_and_with_all_of_it_teachers_do_not_matter() -> None:
    assert loss(UpholdRule(gold_weight=0.0), [0, 1, 2]) == loss(UpholdRule(gold_weight=0.0), [-1, -1, -1])
    assert loss(UpholdRule(share=0.0, gold_weight=1.0), [0, 1, 2]) == pytest.approx(
        loss(UpholdRule(share=1.0, gold_weight=1.0), [0, 1, 2])
    )


def test_prompts_are_read_with_gold_answers_and_with_own_ones_where_these_differ(
    model_v1: Path, model_v2: Path, tmp_path: Path
) -> None:
    task = load_task(write_task(tmp_path, 40))
    setting = begin("uphold", "", model_v1, model_v2, task, out=tmp_path / "out", force=True)
    gold = _examples(setting, UpholdConfig(own_answers=False))
    everything = _examples(setting, UpholdConfig())
    instances = task.instances("train")
    assert [row.instance for [row] in gold] == list(range(len(instances)))
    assert everything[: len(gold)] == gold
    own = [row for [row] in everything[len(gold) :]]
    assert own
    assert {row.instance for row in own} == {-1}
    said = {
        (record.input, record.output)
        for model in (model_v1, model_v2)
        for record in setting.run(model, "train", "").records()
        if record.output != record.target
    }
    encoder = Encoder(load(model_v2).tokenizer)
    expected = encoder.pairs(sorted(said))
    assert sorted((row.prompt, row.answer) for row in own) == sorted((row.prompt, row.answer) for row in expected)


@pytest.mark.parametrize("extra_rank", [None, 0])
def test_a_whole_repair_leaves_one_ordinary_adapter(
    extra_rank: int | None, model_v1: Path, model_v2: Path, tmp_path: Path
) -> None:
    task = write_task(tmp_path, 60)
    config = UpholdConfig(**TINY, force=True, extra_rank=extra_rank, controls=False)
    result = uphold(model_v1, model_v2, task, out=tmp_path / "out", config=config)
    assert [entry.epoch for entry in result.repaired.history if entry.chosen] == [2]
    assert result.form == "adapter"
    names = {path.name for path in result.artifact.iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "README.md", "uphold.json"}
    assert str(load_repair(tmp_path / "out")) == str(result)
    reloaded = load(f"{model_v2}+{tmp_path / 'out'}")
    embeddings = [name for name, _ in reloaded.model.named_parameters() if "lora_embedding" in name]
    assert bool(embeddings) == (extra_rank is None)


def test_impossible_options_are_refused() -> None:
    with pytest.raises(UsageError, match=r"share and gold_weight must be in \[0, 1\]"):
        UpholdConfig(share=1.5)
    with pytest.raises(UsageError, match="extra_rank must be at least 0"):
        replace(UpholdConfig(), extra_rank=-1)


def test_kept_teachers_teach_the_models_own_answers_too(model_v1: Path, model_v2: Path, tmp_path: Path) -> None:
    task = write_task(tmp_path, 60)
    losses = []
    for kept in ("never", "always"):
        config = UpholdConfig(**TINY, force=True, controls=False, teacher_cache=kept)  # type: ignore[arg-type]
        result = uphold(model_v1, model_v2, task, out=tmp_path / kept, config=config)
        losses.append([entry.train["loss"] for entry in result.repaired.history[1:]])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
