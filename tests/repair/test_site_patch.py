from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.repair.interpolated import Scene, check_reloaded, make_scene
from uphold.core.errors import UsageError
from uphold.models.load import load
from uphold.models.sites.layout import read_layout
from uphold.models.sites.site import Site
from uphold.models.sites.weights import regions
from uphold.models.weights import merged
from uphold.repair.site_patch import SitePatchConfig, site_patch


@pytest.fixture(scope="module")
def scene(model_v1: Path, model_v2: Path, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return make_scene(tmp_path_factory.mktemp("sites"), model_v1, model_v2)


def test_only_the_sites_move_towards_the_old_model(scene: Scene, tmp_path: Path) -> None:
    config = SitePatchConfig(sites=("mlp.1", "head.0.2", "mlp.1"), old_share=0.4, force=True)
    result = site_patch(scene.old, scene.new, scene.task, out=tmp_path / "out", config=config)
    assert result.form == "weights"
    old, new, made = (
        {name: value.detach() for name, value in merged(load(one).model).named_parameters()}
        for one in (scene.old, scene.new, str(result.artifact))
    )
    layout = read_layout(load(str(result.artifact)).model)
    inside = {name: torch.zeros_like(value, dtype=torch.bool) for name, value in made.items()}
    for site in (Site("mlp", 1), Site("head", 0, 2)):
        for region in regions(layout, site):
            region.of(inside[region.parameter]).fill_(True)
    assert 0 < sum(int(mask.sum()) for mask in inside.values()) < sum(mask.numel() for mask in inside.values()) / 2
    for name, value in made.items():
        wanted = torch.where(inside[name], torch.lerp(new[name], old[name], 0.4), new[name])
        torch.testing.assert_close(value, wanted)
        assert torch.equal(value[~inside[name]], new[name][~inside[name]])
    check_reloaded(result, str(result.artifact), scene.task, tmp_path)


def test_without_sites_there_is_nothing_to_patch(scene: Scene, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a site patch needs sites"):
        site_patch(scene.old, scene.new, scene.task, out=tmp_path, config=SitePatchConfig(old_share=0.5, force=True))
