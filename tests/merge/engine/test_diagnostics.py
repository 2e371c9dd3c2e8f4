from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.merge.engine.checkpoints import save_model
from uphold.merge import merge

BASE = torch.zeros(1, 4) + torch.tensor([3.0, 0.0, 4.0, 0.0])
A = BASE + torch.tensor([1.0, 1.0, 0.0, 0.0])
B = BASE + torch.tensor([1.0, -1.0, 0.0, 2.0])


def diagnosed(tmp_path: Path, **recipe: Any) -> tuple[dict[str, Any], str]:
    for name, value in (("base", BASE), ("a", A), ("b", B)):
        save_model(tmp_path / name, {"w.weight": value})
    models = [{"model": str(tmp_path / name)} for name in ("a", "b")]
    content = {"models": models, "parameters": {"weight": 0.5}, **recipe}
    result = merge(content, out=tmp_path / "out", diagnostics=True, threads=1)
    assert result.diagnostics is not None
    assert json.loads((tmp_path / "out/diagnostics.json").read_text()) == result.diagnostics
    again = merge(content, out=tmp_path / "out", diagnostics=True, threads=1)
    assert again.reused
    assert again.diagnostics == result.diagnostics
    return result.diagnostics["w.weight"], str(result)


def test_changes_are_compared_with_a_base(tmp_path: Path) -> None:
    found, text = diagnosed(tmp_path, merge_method="task_arithmetic", base_model=str(tmp_path / "base"))
    assert found["cosines"] == [pytest.approx(0.0)]
    assert found["conflicts"] == 50.0
    assert found["shares"] == pytest.approx([2**0.5 / 5, 6**0.5 / 5])
    merged = BASE + torch.tensor([1.0, 0.0, 0.0, 1.0])
    assert found["norm_change"] == pytest.approx(100 * (float(merged.norm()) / 5 - 1))
    assert found["kept"] == pytest.approx(2**0.5 / ((2**0.5 + 6**0.5) / 2))
    assert "conflicts %" in text
    assert "w.weight" in text


def test_weights_are_compared_without_a_base(tmp_path: Path) -> None:
    found, _ = diagnosed(tmp_path, merge_method="linear")
    cosine = torch.nn.functional.cosine_similarity(A.reshape(-1), B.reshape(-1), dim=0)
    assert found["cosines"] == [pytest.approx(float(cosine))]
    assert found["shares"] == [None, None]
    assert found["kept"] is None


def test_a_merge_without_diagnostics_is_not_taken_for_one_with_them(tmp_path: Path) -> None:
    model = save_model(tmp_path / "a", {"w.weight": A})
    content = {"merge_method": "linear", "models": [{"model": str(model), "parameters": {"weight": 1}}]}
    assert merge(content, out=tmp_path / "out", threads=1).diagnostics is None
    result = merge(content, out=tmp_path / "out", diagnostics=True, threads=1)
    assert not result.reused
    assert result.diagnostics is not None
    assert result.diagnostics["w.weight"]["cosines"] == []


def test_what_is_no_number_has_no_diagnosis(tmp_path: Path) -> None:
    model = save_model(tmp_path / "a", {"w.weight": A * float("nan"), "v.weight": A})
    content = {"merge_method": "linear", "models": [{"model": str(model), "parameters": {"weight": 1}}]}
    found = merge(content, out=tmp_path / "out", diagnostics=True, threads=1)
    assert found.diagnostics is not None
    assert found.diagnostics["w.weight"]["norm_change"] is None
    assert found.diagnostics["v.weight"]["norm_change"] == 0.0
    assert "  -" in str(found)
