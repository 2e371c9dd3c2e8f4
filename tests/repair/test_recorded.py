from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from tests.conftest import save_tiny_model, write_task
from uphold.cli.main import app
from uphold.core.errors import UsageError
from uphold.core.runs import load_run, write_run
from uphold.measure.evaluate import evaluate
from uphold.models.divergence import GoldStatistics
from uphold.models.rules import Tokens, Trained
from uphold.repair.recorded import RecordedConfig, RecordedRule, recorded
from uphold.repair.result import load_repair
from uphold.tasks.base import SPLITS

TINY: dict[str, Any] = {
    "epochs": 2,
    "learning_rate": 5e-3,
    "warmup_steps": 2,
    "batch_size": 16,
    "micro_batch": 8,
    "rank": 4,
    "force": True,
}
WRITTEN = {"kind": "generate", "options": None, "scorer": "exact", "decoding": {"max_new_tokens": 2}}


def record_answers(model: Path, task: Path, folder: Path) -> Path:
    """What `uphold evaluate` leaves behind for the three splits, in one folder."""
    for split in SPLITS:
        evaluate(model, task, split=split).copy_to(folder / split)
    return folder


@pytest.mark.parametrize("changes", [{}, WRITTEN], ids=["choice", "generate"])
def test_it_works_when_the_old_model_is_gone(
    changes: dict[str, Any], model_v2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = write_task(tmp_path, 40, **changes)
    old = save_tiny_model(tmp_path / "old", seed=1)
    answers = record_answers(old, task, tmp_path / "answers")
    shutil.rmtree(old)
    config = RecordedConfig(**TINY, mask="old-only", teacher_cache="always")
    result = recorded(answers, model_v2, task, out=tmp_path / "out", config=config)
    assert [arm.name for arm in result.arms] == ["repaired", "control-ce", "control-new"]
    assert result.method == "recorded"
    assert result.before.old.name == str(old)
    assert list(result.before.old.records()) == list(load_run(answers / "test").records())
    assert str(load_repair(tmp_path / "out")) == str(result)
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "out" / "training" / "teachers").exists()
    for loss in ("option_loss.OptionDistillation", "objective.Distillation"):
        monkeypatch.setattr(f"uphold.models.{loss}.__call__", lambda *_: pytest.fail("trained again"))
    again = recorded(answers, model_v2, task, out=tmp_path / "out", config=config)
    assert str(again) == str(result)


def test_the_student_comes_to_say_what_was_recorded(model_v2: Path, model_v1: Path, tmp_path: Path) -> None:
    """All recorded answers to a choice are 'c': following them makes the student say 'c' too."""
    task = write_task(tmp_path, 40)
    answers = record_answers(model_v1, task, tmp_path / "answers")
    for split in SPLITS:
        run = load_run(answers / split)
        told = [
            replace(
                one,
                output="c",
                answer="c",
                correct=one.target == "c",
                score=float(one.target == "c"),
                option_logprobs=(-9.0, -9.0, -0.1, -9.0),
            )
            for one in run.records()
        ]
        write_run(answers / split, told, run.fingerprint)
    config = RecordedConfig(
        **TINY | {"epochs": 12, "learning_rate": 2e-2}, mask="old-only", controls=False, select="last"
    )
    result = recorded(answers, model_v2, task, out=tmp_path / "out", config=config)
    said = [record.output for record in result.repaired.comparison.new.records()]
    assert said.count("c") > 0.8 * len(said)
    assert (result.repaired.comparison["nfr"].value or 0) <= (result.before["nfr"].value or 0)


def test_records_without_likelihoods_from_a_log(model_v2: Path, tmp_path: Path) -> None:
    """A table with prompts and replies, and a hole in every split."""
    task = write_task(tmp_path, 40)
    rows = [json.loads(line) for line in (tmp_path / "data.jsonl").read_text().splitlines()]
    log = tmp_path / "log.jsonl"
    log.write_text(
        "".join(
            json.dumps({"prompt": f"{row['text']}:", "response": row["answer"], "correct": True}) + "\n"
            for number, row in enumerate(rows)
            if number % 10
        )
    )
    result = recorded(log, model_v2, task, out=tmp_path / "out", config=RecordedConfig(**TINY, controls=False))
    assert any("test instances have no recorded answer: they are left out" in note for note in result.notes)
    assert result.splits["test"] < 20
    assert (result.before["accuracy_old"].value or 0) == 1.0
    assert not any(record.option_logprobs for record in result.before.old.records())


def test_from_the_command_line(model_v1: Path, model_v2: Path, tmp_path: Path) -> None:
    task = write_task(tmp_path, 40)
    answers = record_answers(model_v1, task, tmp_path / "answers")
    options = [f"--{key.replace('_', '-')}" + ("" if value is True else f"={value}") for key, value in TINY.items()]
    command = ["repair", "recorded", str(answers), str(model_v2), "--task", str(task), "--out", str(tmp_path / "out")]
    outcome = CliRunner().invoke(app, [*command, *options, "--no-controls", "--quiet"])
    assert outcome.exit_code == 0, outcome.output
    assert "recorded answers" in outcome.stdout
    assert (tmp_path / "out" / "report.html").is_file()


def statistics(right: list[bool]) -> GoldStatistics:
    return GoldStatistics(torch.tensor(right), torch.zeros(len(right)))


@pytest.mark.parametrize(("wrong_only", "expected"), [(True, [0.0, 0.0, 0.4, 0.0]), (False, [0.0, 0.4, 0.4, 0.0])])
def test_the_rule_by_hand(wrong_only: bool, expected: list[float]) -> None:
    """Instance 1 is followed, instance 0 not; the prompt's token never is."""
    trained = Trained(
        sequence=torch.tensor([0, 0, 0, 1]),
        position=torch.tensor([0, 1, 2, 0]),
        targets=torch.tensor([3, 3, 3, 3]),
        is_answer=torch.tensor([False, True, True, True]),
        instance=torch.tensor([1, 1, 1, 0]),
    )
    tokens = Tokens(trained, statistics([False, True, False, False]), (statistics([True] * 4),))
    rule = RecordedRule(torch.tensor([False, True]), 0.4, 2.0, wrong_only)
    weights = rule(tokens)
    assert weights.cross_entropy is not None
    assert weights.cross_entropy.tolist() == pytest.approx(expected)
    [term] = weights.terms
    assert term.weight.tolist() == pytest.approx([1 - one for one in expected])


def test_impossible_options_are_refused() -> None:
    for given, message in (
        ({"mask": "flip"}, "did you mean 'flips'"),
        ({"strength": 0.0}, "strength in"),
        ({"label_smoothing": 1.0}, "label_smoothing in"),
        ({"select": "loss"}, "no loss on validation"),
    ):
        with pytest.raises(UsageError, match=message):
            RecordedConfig(**given)
