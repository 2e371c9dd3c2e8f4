from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from tests.conftest import save_tiny_model
from tests.repair.interpolated import Scene, check_reloaded, make_scene, no_work
from uphold import load_repair
from uphold.cli.main import app
from uphold.core.errors import TokenizerMismatchError, UsageError
from uphold.models.fingerprint import weights_hash
from uphold.models.load import Loaded, load
from uphold.models.weights import merged
from uphold.repair.bcwi import BcwiConfig, bcwi

FORCED = BcwiConfig(force=True, step=0.25)


@pytest.fixture(scope="module")
def scene(model_v1: Path, model_v2: Path, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return make_scene(tmp_path_factory.mktemp("bcwi"), model_v1, model_v2)


def parameters(loaded: Loaded) -> dict[str, torch.Tensor]:
    return {name: value.detach() for name, value in merged(loaded.model).named_parameters()}


def test_two_adapters_on_one_base_give_an_adapter(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = bcwi(scene.old, scene.new, scene.task, out=tmp_path / "out", config=BcwiConfig(old_share=0.3, force=True))
    assert (result.form, result.artifact) == ("adapter", tmp_path / "out" / "adapter")
    assert [(arm.name, arm.label, arm.control) for arm in result.arms] == [("repaired", "BCWI, alpha 0.3", False)]
    assert result.repaired.comparison.old.sha256 == result.before.old.sha256
    reference = f"{scene.new.partition('+')[0]}+{tmp_path / 'out'}"
    old, new, made = (parameters(load(name)) for name in (scene.old, scene.new, reference))
    assert all(torch.allclose(made[name], 0.3 * old[name] + 0.7 * new[name], atol=1e-6) for name in made)
    check_reloaded(result, reference, scene.task, tmp_path)
    assert str(load_repair(tmp_path / "out")) == str(result)
    no_work(monkeypatch)
    again = bcwi(scene.old, scene.new, scene.task, out=tmp_path / "out", config=BcwiConfig(old_share=0.3, force=True))
    assert str(again) == str(result)


def test_the_search_is_recorded_and_not_repeated(scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = bcwi(scene.old, scene.new, scene.task, out=tmp_path / "out", config=FORCED)
    history = result.repaired.history
    assert [entry.train["alpha"] for entry in history] == [0.0, 0.25, 0.5, 0.75]
    [chosen] = [entry for entry in history if entry.chosen]
    validated = result.repaired.validation
    assert chosen.validation["accuracy"] == pytest.approx(validated["accuracy_new"].value)
    assert chosen.validation["nfr"] == pytest.approx(validated["nfr"].value)
    assert history[0].validation["accuracy"] == pytest.approx(result.validation["accuracy_new"].value)
    assert history[0].validation["nfr"] == pytest.approx(result.validation["nfr"].value)
    no_work(monkeypatch)
    assert str(bcwi(scene.old, scene.new, scene.task, out=tmp_path / "out", config=FORCED)) == str(result)


def test_an_interrupted_search_goes_on_where_it_stopped(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from uphold.repair.interpolation import Point, _Search

    measured, asked = _Search._measured, []

    def until_killed(self: _Search, alpha: float) -> Point:
        asked.append(alpha)
        if asked == [0.25, 0.5]:
            raise KeyboardInterrupt
        return measured(self, alpha)

    monkeypatch.setattr(_Search, "_measured", until_killed)
    with pytest.raises(KeyboardInterrupt):
        bcwi(scene.old, scene.new, scene.task, out=tmp_path / "out", config=FORCED)
    bcwi(scene.old, scene.new, scene.task, out=tmp_path / "out", config=FORCED)
    assert asked == [0.25, 0.5, 0.5, 0.75]
    bcwi(scene.old, scene.other, scene.task, out=tmp_path / "out", config=FORCED)
    assert asked[4:] == [0.25, 0.5, 0.75]


def test_alpha_0_is_the_new_model_bit_for_bit(scene: Scene, tmp_path: Path) -> None:
    result = bcwi(scene.old, scene.new, scene.task, out=tmp_path / "out", config=BcwiConfig(old_share=0, force=True))
    assert weights_hash(result.artifact) == weights_hash(Path(scene.new.partition("+")[2]))
    assert result.repaired.comparison.new.sha256 == result.before.new.sha256
    assert any("alpha 0 is the new model itself" in note for note in result.notes)


def test_adapters_on_two_bases_give_a_whole_model(scene: Scene, tmp_path: Path) -> None:
    config = BcwiConfig(old_share=0.5, force=True)
    result = bcwi(scene.old, scene.other, scene.task, out=tmp_path / "out", config=config)
    assert (result.form, result.artifact) == ("weights", tmp_path / "out" / "weights")
    assert any("fine-tuned from the old one" in note for note in result.notes)
    old, new, made = (parameters(load(name)) for name in (scene.old, scene.other, result.artifact))
    assert all(torch.allclose(made[name], (old[name] + new[name]) / 2, atol=1e-6) for name in made)
    check_reloaded(result, str(result.artifact), scene.task, tmp_path)


def test_whole_models_in_memory_give_a_whole_model(
    scene: Scene, model_v1: Path, model_v2: Path, tmp_path: Path
) -> None:
    pairs = [(one.model, one.tokenizer) for one in (load(model_v1), load(model_v2))]
    config = BcwiConfig(old_share=0.5, force=True)
    result = bcwi(pairs[0], pairs[1], scene.task, out=tmp_path / "out", config=config)
    check_reloaded(result, str(result.artifact), scene.task, tmp_path)
    by_name = bcwi(model_v1, model_v2, scene.task, out=tmp_path / "named", config=config)
    assert weights_hash(result.artifact) == weights_hash(by_name.artifact)


def test_adapted_models_in_memory_give_an_adapter(scene: Scene, tmp_path: Path) -> None:
    pairs = [(one.model, one.tokenizer) for one in (load(scene.old), load(scene.new))]
    config = BcwiConfig(old_share=0.5, force=True)
    result = bcwi(pairs[0], pairs[1], scene.task, out=tmp_path / "out", config=config)
    assert result.form == "adapter"
    check_reloaded(result, f"{scene.new.partition('+')[0]}+{result.artifact}", scene.task, tmp_path)


def test_another_form_takes_the_place_of_the_first(scene: Scene, tmp_path: Path) -> None:
    for new, form in ((scene.new, "adapter"), (scene.other, "weights")):
        bcwi(scene.old, new, scene.task, out=tmp_path / "out", config=BcwiConfig(old_share=0.5, force=True))
        assert (tmp_path / "out" / form).is_dir()
    assert not (tmp_path / "out" / "adapter").exists()


def test_other_architectures_and_tokenizers_are_refused(scene: Scene, tmp_path: Path) -> None:
    wide = save_tiny_model(tmp_path / "wide", 5, hidden=48)
    with pytest.raises(UsageError, match="interpolation needs one architecture"):
        bcwi(scene.old, wide, scene.task, out=tmp_path / "out", config=FORCED)
    other = save_tiny_model(tmp_path / "letters", 5, letters="abcdefgh0123456789:")
    with pytest.raises(TokenizerMismatchError, match="different tokenizers"):
        bcwi(scene.old, other, scene.task, out=tmp_path / "out", config=FORCED)


def test_the_command_line_makes_a_repair_and_its_report(scene: Scene, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["repair", "bcwi", scene.old, scene.new, "--task", str(scene.task), "--out", str(out)]
    done = CliRunner().invoke(app, [*arguments, "--force", "--step", "0.5", "--choose", "nfr", "--json", "--quiet"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["config"] == {"old_share": None, "choose": "nfr", "step": 0.5, "force": True}
    assert [entry["train"]["alpha"] for entry in told["arms"][0]["history"]] == [0.0, 0.5]
    assert "BCWI, alpha" in (out / "report.html").read_text()
    refused = CliRunner().invoke(app, [*arguments, "--old-share", "1"])
    assert isinstance(refused.exception, UsageError)
    assert "keep that one" in str(refused.exception)
