from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import save_tiny_model
from tests.repair.interpolated import Scene, make_scene
from uphold.core.errors import DataError, ModelError, UsageError
from uphold.explain import flips as module
from uphold.explain.flips import FlipsConfig, flips
from uphold.measure.compare import compare
from uphold.measure.comparison import Comparison
from uphold.tasks.base import FixedTask
from uphold.tasks.load import load_task


@pytest.fixture(scope="module")
def scene(model_v1: Path, model_v2: Path, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return make_scene(tmp_path_factory.mktemp("flips"), model_v1, model_v2)


@pytest.fixture
def pair(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> Comparison:
    monkeypatch.setattr(module, "LEAST", 2)
    return compare(scene.old, scene.new, scene.task, noise_floor=False)


def test_two_adapters_on_one_base_are_explained(scene: Scene, pair: Comparison, tmp_path: Path) -> None:
    pair.save(tmp_path)
    config = FlipsConfig(kinds=("attention", "mlp"), top=2)
    found = flips(tmp_path, task=scene.task, config=config)
    assert (found.old, found.new, found.layers) == (scene.old, scene.new, 2)
    assert found.flips + found.gains + found.left_out == sum(
        one.correct != other.correct for one, other in zip(pair.old.records(), pair.new.records(), strict=True)
    )
    assert set(found.estimates) == {"attention.0", "mlp.0", "attention.1", "mlp.1"}
    # Embeddings, norms and head are shared: all sites together are the old model.
    assert found.every.restored.value == 1
    assert found.runs == (pair.old.sha256, pair.new.sha256)
    assert flips(pair, task=scene.task, config=config) == found
    single = flips(pair, task=scene.task, config=replace(config, batch_tokens=7))
    assert [one.sites for one in single.sites] == [one.sites for one in found.sites]
    assert single.sites[0].recovered == pytest.approx(found.sites[0].recovered, abs=1e-4)


def test_a_model_that_has_changed_is_refused(scene: Scene, pair: Comparison) -> None:
    with pytest.raises(DataError, match=r"is not the new model of the comparison.*compare again"):
        flips(pair, task=scene.task, new=scene.old)


def test_too_few_flips_are_refused(pair: Comparison, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAST", 150)
    with pytest.raises(DataError, match="at least 150 are needed"):
        flips(pair, task=scene.task)


def test_another_task_is_refused(pair: Comparison) -> None:
    with pytest.raises(DataError, match=r"has no instance .* of the comparison: name the task"):
        flips(pair, task="rg:chain_sum")


def test_models_of_two_widths_are_refused(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_v1: Path
) -> None:
    monkeypatch.setattr(module, "LEAST", 1)
    wide = save_tiny_model(tmp_path / "wide", seed=3, hidden=48)
    pair = compare(model_v1, wide, scene.task, noise_floor=False)
    with pytest.raises(ModelError, match="of one architecture"):
        flips(pair, task=scene.task)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top": 0}, "must be at least 1"),
        ({"rank": "best"}, "unknown rank 'best'"),
        ({"kinds": ()}, "at least one kind"),
        ({"exact": 2, "top": 3}, r"exact is 2: at least the 3 sites"),
        ({"most": 3}, r"most is 3: at least 10"),
        ({"seed": -1}, "seed at least 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        FlipsConfig(**options)  # type: ignore[arg-type]


def test_a_task_that_asks_otherwise_is_refused(pair: Comparison, scene: Scene) -> None:
    task = load_task(scene.task)
    assert isinstance(task, FixedTask)
    with pytest.raises(DataError, match=r"has the delimiter '::', the comparison .*--task"):
        flips(pair, task=replace(task, delimiter="::"))


def test_a_task_that_was_a_file_is_asked_for(pair: Comparison) -> None:
    with pytest.raises(UsageError, match=r"name its file \(--task FILE\)"):
        flips(pair)


def test_a_comparison_of_logs_is_refused(pair: Comparison, scene: Scene) -> None:
    model = {name: value for name, value in pair.old.fingerprint["model"].items() if name != "weights"}
    logged = replace(pair.old, fingerprint={**pair.old.fingerprint, "model": model})
    with pytest.raises(DataError, match="was read from a log"):
        flips(replace(pair, old=logged), task=scene.task)
