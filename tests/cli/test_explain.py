from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.repair.interpolated import Scene, make_scene
from uphold.cli.main import app
from uphold.explain import flips as module
from uphold.measure.compare import compare

RUNNER = CliRunner()


@pytest.fixture(scope="module")
def scene(model_v1: Path, model_v2: Path, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return make_scene(tmp_path_factory.mktemp("flips"), model_v1, model_v2)


def test_from_flips_to_a_repair_at_the_sites_that_were_found(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LEAST", 2)
    compare(scene.old, scene.new, scene.task, noise_floor=False).save(tmp_path / "c")
    asked = ["explain", "flips", str(tmp_path / "c"), "--task", str(scene.task), "--kinds", "attention,mlp", "--top", "2"]
    done = RUNNER.invoke(app, asked)
    assert done.exit_code == 0, done.output
    assert "all sites" in done.output
    for name in ("explanation.json", "explanation-heat-map.svg", "explanation-graph.svg"):
        assert (tmp_path / "c" / name).is_file()
    told = json.loads(RUNNER.invoke(app, [*asked, "--json", "--quiet"]).stdout)
    site = told["sites"][0]["sites"][0]

    repair = ["repair", "muscle", scene.old, scene.new, "--task", str(scene.task), "--out", str(tmp_path / "r"), "--force"]
    repair += ["--epochs", "1", "--warmup-steps", "1", "--no-controls", "--sites", site]
    done = RUNNER.invoke(app, repair)
    assert done.exit_code == 0, done.output
    done = RUNNER.invoke(app, [*repair[:6], str(tmp_path / "s"), "--force", "--no-controls", "--sites", "mlp.9"])
    assert done.exit_code == 2
    assert "the model has 2 blocks" in done.output

    patch = ["repair", "site-patch", scene.old, scene.new, "--task", str(scene.task), "--out", str(tmp_path / "p"), "--force"]
    assert RUNNER.invoke(app, [*patch, "--sites", f"{site},mlp.1"]).exit_code == 0
    done = RUNNER.invoke(app, [*patch[:-2], str(tmp_path / "q"), "--force"])
    assert done.exit_code == 2
    assert "needs sites" in done.output


def test_a_folder_without_a_comparison_is_one_line(tmp_path: Path) -> None:
    done = RUNNER.invoke(app, ["explain", "flips", str(tmp_path)])
    assert done.exit_code == 2
    assert len(done.output.strip().splitlines()) == 1
