from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from tests.conftest import write_task
from uphold import adapt, compare, load_repair
from uphold.core.registry import method, methods
from uphold.core.runs import RunStore
from uphold.models.divergence import HalfSquaredLogits
from uphold.models.encode import Encoded
from uphold.models.fingerprint import weights_hash
from uphold.models.objective import Distillation, FrozenTeacher
from uphold.models.rules import Term, Tokens, Weights
from uphold.repair import AdaptConfig
from uphold.repair.distill import OneTeacher, control_arms, distill
from uphold.repair.result import Repair
from uphold.repair.training import DistillConfig, training_rows

TINY: dict[str, Any] = {"epochs": 1, "learning_rate": 5e-3, "warmup_steps": 2, "rank": 4, "force": True}
RECIPE = AdaptConfig(epochs=1, learning_rate=5e-3, warmup_steps=2, rank=4)
METHODS = ["dissonance", "elodi", "focal", "kd", "mixture", "mpt", "muscle", "self-distillation"]
NEEDS_NO_OLD = {"elodi", "self-distillation"}
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "dissonance": [{}, {"kind": "strict-imitation"}],
    "elodi": [{"members": 2}],
    "focal": [{}, {"distance": "lm", "judge": "token"}],
    "kd": [{}, {"conditional": "sequence", "divergence": "reverse-kl"}],
    "mixture": [{}, {"teacher": "best"}],
    "mpt": [{"new_answers": ["d"]}],
    "muscle": [{}],
    "self-distillation": [{}],
}


class Scene(NamedTuple):
    old: str
    new: str
    task: Path
    store: RunStore


@pytest.fixture(scope="module")
def scene(model_v1: Path, model_v2: Path, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    folder = tmp_path_factory.mktemp("scene")
    task = write_task(folder, 60)
    old, new = (adapt(base, task, out=folder / base.name, config=RECIPE) for base in (model_v1, model_v2))
    return Scene(old.reference, new.reference, task, RunStore(folder / "store"))


def test_all_of_them_are_registered_with_their_options() -> None:
    registered = {one.name for one in methods("repair")}
    assert set(METHODS) <= registered
    assert set(OPTIONS) == set(METHODS)
    for name in METHODS:
        config = method("repair", name).config
        assert config is not None
        assert issubclass(config, DistillConfig)
        # A field of the same name would take the recipe's value for another thing: LoRA has an alpha, and so has PCT.
        shared = {field.name for field in fields(DistillConfig)} & set(config.__annotations__)
        assert shared <= {"temperature"}
        search = getattr(config, "SEARCH", {})
        for field, values in search.items():
            for value in values:
                assert getattr(replace(config(), **{field: value}), field) == value


@pytest.mark.parametrize(("name", "options"), [(name, options) for name in METHODS for options in OPTIONS[name]])
def test_every_method_repairs_and_is_reported_alike(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, options: dict[str, Any]
) -> None:
    monkeypatch.setattr("uphold.repair.recipe.configure", lambda *_: RECIPE)
    one = method("repair", name)
    assert one.config is not None
    kept = [weights_hash(Path(model.partition("+")[2])) for model in (scene.old, scene.new)]
    config = one.config(**TINY, controls=False, **options)
    result = one.function(scene.old, scene.new, scene.task, out=tmp_path / "out", config=config, store=scene.store)
    assert isinstance(result, Repair)
    assert (result.method, result.paper, result.form) == (name, one.paper, "adapter")
    [arm] = result.arms
    assert arm.comparison.old.sha256 == result.before.old.sha256
    assert [entry.epoch for entry in arm.history] == [0, 1]
    assert all(value == value for value in arm.history[1].train.values())
    assert arm.history[1].train["loss"] > 0
    assert str(load_repair(tmp_path / "out")) == str(result)
    assert weights_hash(result.artifact) not in kept
    assert [weights_hash(Path(model.partition("+")[2])) for model in (scene.old, scene.new)] == kept
    again = compare(scene.old, f"{scene.new.partition('+')[0]}+{result.artifact}", scene.task, store=scene.store)
    assert again.rates == result.repaired.comparison.rates


@pytest.mark.parametrize("name", sorted(NEEDS_NO_OLD))
def test_methods_that_know_nothing_of_the_old_model_say_so_by_their_weights(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Another old model leaves their adapter as it is, bit for bit."""
    monkeypatch.setattr("uphold.repair.recipe.configure", lambda *_: RECIPE)
    one = method("repair", name)
    assert one.config is not None
    config = one.config(**TINY, controls=False, select="last", **OPTIONS[name][0])
    made = [
        one.function(old, scene.new, scene.task, out=tmp_path / str(index), config=config, store=scene.store)
        for index, old in enumerate((scene.old, scene.old.partition("+")[0]))
    ]
    assert weights_hash(made[0].artifact) == weights_hash(made[1].artifact)
    assert made[0].before.rates != made[1].before.rates


class Square:
    """A rule of one's own."""

    whole_sequences = False

    def __call__(self, tokens: Tokens) -> Weights:
        return Weights((Term("square", HalfSquaredLogits(), 0, tokens.none + 1),))


def test_a_method_of_ones_own_is_an_objective_and_may_choose_its_examples(scene: Scene, tmp_path: Path) -> None:
    seen: list[int] = []

    def examples(setting: Any, config: DistillConfig) -> list[tuple[Encoded, ...]]:
        rows = training_rows(setting.new, setting.task, "train")[:6]
        seen.append(len(rows))
        return [tuple(rows[:2]), tuple(rows[2:])]

    result = distill(
        "mine",
        "",
        "mine",
        scene.old,
        scene.new,
        scene.task,
        out=tmp_path / "out",
        config=DistillConfig(**TINY),
        default=DistillConfig(),
        objective=lambda setting, config: Distillation(Square(), [FrozenTeacher(setting.old.model)], config.tokens),
        examples=examples,
        store=scene.store,
    )
    assert seen == [6]
    assert [(arm.name, arm.control) for arm in result.arms] == [
        ("repaired", False),
        ("control-ce", True),
        ("control-new", True),
    ]
    assert "square_answer" in result.repaired.history[1].train
    assert sorted(path.name for path in (tmp_path / "out" / "controls").iterdir()) == ["control-ce", "control-new"]
    # The control that imitates the new model starts as a copy of it, and stays.
    assert result.arms[2].comparison.rates == result.before.rates


def test_the_controls_know_nothing_of_the_old_model() -> None:
    ce, new = control_arms(DistillConfig(temperature=3.0, tokens="answer"))
    objective: Any = ce.objective(None)  # type: ignore[arg-type]
    assert (objective.teachers, objective.tokens) == ((), "answer")

    class Setting:
        class new:
            model = torch.nn.Linear(1, 1)

    objective = new.objective(Setting)  # type: ignore[arg-type]
    assert objective.rule == OneTeacher(3.0)
    assert len(objective.teachers) == 1
