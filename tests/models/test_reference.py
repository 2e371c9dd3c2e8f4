from __future__ import annotations

from pathlib import Path

import pytest

from uphold.core.errors import ModelError
from uphold.models.reference import embedded_names, find_model


def test_a_folder_is_found(model_v1: Path) -> None:
    files = find_model(model_v1)
    assert files.base == model_v1
    assert files.adapter is None
    assert not files.is_gguf


def test_an_adapter_is_found_directly_and_inside_a_repair_folder(model_v1: Path, tmp_path: Path) -> None:
    inner = tmp_path / "repair" / "adapter"
    inner.mkdir(parents=True)
    (inner / "adapter_config.json").write_text("{}")
    assert find_model(f"{model_v1}+{inner}").adapter == inner
    assert find_model(f"{model_v1}+{inner.parent}").adapter == inner


def test_a_folder_with_a_plus_in_its_name_is_one_folder(model_v1: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a+b"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    assert find_model(folder).base == folder


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("", "not a model reference"),
        ("model\0name", "not a model reference"),
        ("./nowhere", "no such folder"),
        ("../../etc/passwd", "is a file|no such folder"),
        ("org/../../secret", "no such folder"),
        ("/nowhere/at/all", "no such folder"),
        ("missing.gguf", "does not exist"),
        ("embedded:../v1", "unknown embedded model"),
        ("embedded:v11", "unknown embedded model"),
        ("org/name../../x", "no such folder"),
        ("org/name@-x", "not a hub revision"),
        ("+adapter", "one of the two is empty"),
        ("model+", "one of the two is empty"),
    ],
)
def test_references_that_name_nothing_are_refused_in_one_line(reference: str, expected: str) -> None:
    with pytest.raises(ModelError, match=expected) as refused:
        find_model(reference)
    assert "\n" not in str(refused.value)


def test_a_missing_folder_under_an_existing_one_is_not_taken_for_a_hub_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="no such folder"):
        find_model("models/v3")


def test_a_hub_id_without_network_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="cannot be loaded: it is not in the hub's cache here"):
        find_model("some-org/some-model@main")


def test_folders_that_are_no_models_are_refused(model_v1: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"expected config\.json"):
        find_model(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="BASE\\+ADAPTER"):
        find_model(tmp_path)
    with pytest.raises(ModelError, match=r"adapter .* does not exist"):
        find_model(f"{model_v1}+{tmp_path / 'none'}")
    with pytest.raises(ModelError, match="not an adapter folder"):
        find_model(f"{model_v1}+{model_v1}")


def test_the_embedded_pair_ships() -> None:
    assert embedded_names() == ["v1", "v2"]
    assert find_model("embedded:v1").base.is_dir()
