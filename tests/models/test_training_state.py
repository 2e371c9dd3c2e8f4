from __future__ import annotations

from pathlib import Path

import pytest

from tests.models.training import Doing, run, weights
from uphold.core.errors import CorruptError, UsageError


def test_a_finished_training_is_read_not_repeated(model_v1: Path, tmp_path: Path) -> None:
    first, history = run(model_v1, tmp_path / "t")

    again, read = run(model_v1, tmp_path / "t", objective=Doing(lambda: pytest.fail("trained again")))
    assert weights(first) == weights(again)
    assert read == history


def test_another_trainings_folder_is_refused(model_v1: Path, tmp_path: Path) -> None:
    run(model_v1, tmp_path / "t")
    with pytest.raises(UsageError, match="holds another training"):
        run(model_v1, tmp_path / "t", key="other")


def test_a_damaged_state_is_named(model_v1: Path, tmp_path: Path) -> None:
    run(model_v1, tmp_path / "t")
    (tmp_path / "t" / "done" / "state.safetensors").write_bytes(b"x")
    with pytest.raises(CorruptError, match="done cannot be read"):
        run(model_v1, tmp_path / "t")
