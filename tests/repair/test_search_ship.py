from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.conftest import write_task
from uphold.repair import search_ship
from uphold.repair.result import load_repair
from uphold.repair.search import search
from uphold.repair.search_result import SearchConfig


def test_only_what_the_search_wrote_is_withdrawn(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "repair.json").write_text('{"artifact": "adapter"}')
    search_ship.withdraw(tmp_path)
    assert (tmp_path / "adapter").is_dir()
    (tmp_path / "search.json").write_text("{}")
    (tmp_path / "repair.json").write_text('{"artifact": "../other"}')
    search_ship.withdraw(tmp_path)
    assert (tmp_path / "adapter").is_dir()
    assert not (tmp_path / "repair.json").exists()


def test_a_training_on_real_models_gets_its_controls(
    model_v1: Path, model_v2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Random models, so that whether a repair helps is chance.
    monkeypatch.setattr(
        sys.modules["uphold.repair.search"], "choose", lambda candidates, strict: next(iter(candidates), None)
    )
    options = {"epochs": 1, "rank": 2, "batch_size": 16, "warmup_steps": 1, "teacher_cache": "always"}
    results = [
        search(
            model_v1,
            model_v2,
            write_task(tmp_path, 24),
            out=tmp_path / "out",
            config=SearchConfig(methods=("uphold",), trials=1, force=True, margin=0.99),
            options=options,
        )
        for _ in range(2)
    ]
    assert [control.label for control in results[0].controls] == [
        "control: cross-entropy only",
        "control: new teacher only",
    ]
    assert results[0].trials == results[1].trials
    assert results[0].controls == results[1].controls
    repair = load_repair(tmp_path / "out")
    assert [arm.control for arm in repair.arms] == [False, True, True]
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()
    assert "control: cross-entropy only" in (tmp_path / "out" / "adapter" / "README.md").read_text()
    # They start where the repair starts, with room in the embeddings, and what was kept of teachers is gone.
    [place] = (tmp_path / "out" / "trials").glob("controls-*")
    for config in (place / "controls").glob("*/adapter_config.json"):
        assert "model.embed_tokens" in json.loads(config.read_text())["target_modules"]
    assert not list((tmp_path / "out" / "trials").rglob("teachers"))
