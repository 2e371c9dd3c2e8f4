from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from uphold.repair.card import card_header


def test_a_hub_base_is_named_in_the_header_and_a_folder_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def header(base: str) -> dict[str, object]:
        _, text, rest = card_header(base, ["muscle"]).split("---\n")
        assert rest == ""
        return yaml.safe_load(text)  # type: ignore[no-any-return]

    assert header("org/name@main")["base_model"] == "org/name"
    assert "base_model" not in header("./folder")
    assert "base_model" not in header("embedded:v1")
    (tmp_path / "models" / "v1").mkdir(parents=True)
    assert "base_model" not in header("models/v1")
    assert header("x")["base_model_relation"] == "adapter"
    assert "muscle" in header("x")["tags"]  # type: ignore[operator]
