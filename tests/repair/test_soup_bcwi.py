from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.repair.interpolated import TINY, Scene, check_reloaded, make_scene, no_work
from uphold.models.fingerprint import weights_hash
from uphold.models.load import Loaded, load
from uphold.models.weights import merged
from uphold.repair.bcwi import BcwiConfig, bcwi
from uphold.repair.soup_bcwi import SoupBcwiConfig, soup_bcwi


@pytest.fixture(scope="module")
def scene(model_v1: Path, model_v2: Path, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return make_scene(tmp_path_factory.mktemp("soup"), model_v1, model_v2)


@pytest.fixture(autouse=True)
def tiny_members(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uphold.repair.members.member_config", lambda task: TINY)


def parameters(loaded: Loaded) -> dict[str, torch.Tensor]:
    return {name: value.detach() for name, value in merged(loaded.model).named_parameters()}


def test_a_soup_of_one_is_bcwi(scene: Scene, tmp_path: Path) -> None:
    soup = soup_bcwi(
        scene.old,
        scene.new,
        scene.task,
        out=tmp_path / "a",
        config=SoupBcwiConfig(old_share=0.5, members=1, force=True),
    )
    plain = bcwi(scene.old, scene.new, scene.task, out=tmp_path / "b", config=BcwiConfig(old_share=0.5, force=True))
    assert weights_hash(soup.artifact) == weights_hash(plain.artifact)
    assert not (tmp_path / "a" / "members").exists()


@pytest.mark.parametrize("form", ["adapter", "weights"])
def test_the_mean_of_the_members_takes_the_place_of_the_new_model(
    scene: Scene, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = scene.new if form == "adapter" else scene.other
    base = new.partition("+")[0]
    config = SoupBcwiConfig(old_share=0.4, members=3, first_seed=7, force=True)
    result = soup_bcwi(scene.old, new, scene.task, out=tmp_path / "out", config=config)
    assert result.form == form
    reference = f"{base}+{result.artifact}" if form == "adapter" else str(result.artifact)
    members = [f"{base}+{tmp_path / 'out' / 'members' / f'seed-{seed}' / 'adapter'}" for seed in (7, 8)]
    old, made, *each = (parameters(load(name)) for name in (scene.old, reference, new, *members))
    for name, value in made.items():
        expected = 0.4 * old[name] + 0.6 * sum(one[name] for one in each) / 3
        assert torch.allclose(value, expected, atol=1e-6), name
    check_reloaded(result, reference, scene.task, tmp_path)
    no_work(monkeypatch)
    assert str(soup_bcwi(scene.old, new, scene.task, out=tmp_path / "out", config=config)) == str(result)


def test_the_soup_alone_is_on_the_grid(scene: Scene, tmp_path: Path) -> None:
    config = SoupBcwiConfig(members=2, step=0.5, force=True)
    result = soup_bcwi(scene.old, scene.new, scene.task, out=tmp_path / "out", config=config)
    [start, _] = result.repaired.history
    assert start.train == {"alpha": 0.0}
    assert (tmp_path / "out" / "members" / "seed-1" / "adapter").is_dir()
