from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.conftest import save_tiny_model, write_task
from tests.repair.test_recorded import TINY, WRITTEN
from uphold.cli.main import app
from uphold.core.errors import UsageError
from uphold.repair.cross_vocabulary import CrossVocabularyConfig, cross_vocabulary
from uphold.repair.result import load_repair


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An old model whose letters are fewer and have other numbers."""
    return save_tiny_model(tmp_path_factory.mktemp("other") / "old", seed=5, letters="9876543210dcbaxyz: ")


@pytest.mark.parametrize("changes", [{}, WRITTEN], ids=["choice", "generate"])
def test_models_with_different_tokenizers(
    changes: dict[str, Any], other: Path, model_v2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = write_task(tmp_path, 40, **changes)
    config = CrossVocabularyConfig(**TINY, mask="old-only", answers="old", unmatched=0.5)
    result = cross_vocabulary(other, model_v2, task, out=tmp_path / "out", config=config)
    assert [arm.name for arm in result.arms] == ["repaired", "control-ce", "control-new"]
    assert str(load_repair(tmp_path / "out")) == str(result)
    if changes:
        trained = [entry.train["loss"] for entry in result.repaired.history if entry.train]
        assert trained[-1] < trained[0]
        assert any("tokens of 47 (new) and 23 (old) stand for the same text" in note for note in result.notes)
    for loss in ("option_loss.OptionDistillation", "aligned_objective.AlignedDistillation", "objective.Distillation"):
        monkeypatch.setattr(f"uphold.models.{loss}.__call__", lambda *_: pytest.fail("trained again"))
    assert str(cross_vocabulary(other, model_v2, task, out=tmp_path / "out", config=config)) == str(result)


def test_from_the_command_line(other: Path, model_v2: Path, tmp_path: Path) -> None:
    task = write_task(tmp_path, 40, **WRITTEN)
    options = [f"--{key.replace('_', '-')}" + ("" if value is True else f"={value}") for key, value in TINY.items()]
    command = ["repair", "cross-vocabulary", str(other), str(model_v2), "--task", str(task), "--out"]
    outcome = CliRunner().invoke(app, [*command, str(tmp_path / "out"), *options, "--no-controls", "--quiet"])
    assert outcome.exit_code == 0, outcome.output
    assert "across vocabularies" in outcome.stdout


def test_impossible_options_are_refused() -> None:
    for given, message in (
        ({"mask": "student-wrog"}, "did you mean 'student-wrong'"),
        ({"answers": "golden"}, "did you mean 'gold'"),
        ({"unmatched": -1.0}, "unmatched >= 0"),
        ({"select": "loss"}, "no loss on validation"),
    ):
        with pytest.raises(UsageError, match=message):
            CrossVocabularyConfig(**given)
