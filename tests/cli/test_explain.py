from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import Result
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
    task = ["--task", str(scene.task)]
    asked = ["explain", "flips", str(tmp_path / "c"), *task, "--kinds", "attention,mlp", "--top", "2"]
    done = RUNNER.invoke(app, asked)
    assert done.exit_code == 0, done.output
    assert "all sites" in done.output
    for name in ("explanation.json", "explanation-heat-map.svg", "explanation-graph.svg"):
        assert (tmp_path / "c" / name).is_file()
    told = json.loads(RUNNER.invoke(app, [*asked, "--json", "--quiet"]).stdout)
    site = told["sites"][0]["sites"][0]

    def repair(method: str, *more: str) -> Result:
        out = ["--out", str(tmp_path / f"{method} {more[-1:]}"), "--force"]
        return RUNNER.invoke(app, ["repair", method, scene.old, scene.new, *task, *out, *more])

    short = ["--epochs", "1", "--warmup-steps", "1", "--no-controls"]
    done = repair("muscle", *short, "--sites", site)
    assert done.exit_code == 0, done.output
    assert "the model has 2 blocks" in str(repair("muscle", *short, "--sites", "mlp.9").exception)
    assert repair("site-patch", "--sites", f"{site},mlp.1").exit_code == 0
    assert "needs sites" in str(repair("site-patch").exception)


def test_a_folder_without_a_comparison_is_refused(tmp_path: Path) -> None:
    done = RUNNER.invoke(app, ["explain", "flips", str(tmp_path)])
    assert "no comparison in" in str(done.exception)
