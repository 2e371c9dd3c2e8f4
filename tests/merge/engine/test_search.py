from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import save_tiny_model, write_task
from uphold.core.errors import DataError, EmptyError, StorageError, UsageError
from uphold.measure.evaluate import Tally, evaluate
from uphold.merge.engine.recipe import load_recipe
from uphold.merge.engine.search import MOST, candidates_of, search
from uphold.models.fingerprint import weights_hash
from uphold.tasks.base import FixedTask
from uphold.tasks.load import load_task


@pytest.fixture(scope="module")
def parents(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("parents")
    return str(save_tiny_model(folder / "a", 1)), str(save_tiny_model(folder / "b", 2))


@pytest.fixture
def recipe(parents: tuple[str, str]) -> dict[str, Any]:
    return {"merge_method": "slerp", "base_model": parents[0], "models": [{"model": parents[1]}]}


@pytest.fixture
def task(tmp_path: Path) -> Path:
    return write_task(tmp_path, 400, split={"validation": 0.5, "test": 0.25})


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


# ---- which candidates --------------------------------------------------------------------------------------------


def ties(**parameters: Any) -> dict[str, Any]:
    entries = [{"model": name, "parameters": dict(parameters)} for name in "ab"]
    return {"merge_method": "ties", "base_model": "o", "models": entries, "parameters": {"lambda": 2}}


def test_values_take_the_place_of_what_the_recipe_says_anywhere() -> None:
    found = candidates_of(load_recipe(ties(weight=1, density=0.3)), {"weight": [0.5], "lambda": [1.0, 1.0, 3]})
    assert [values for values, _ in found] == [{"weight": 0.5, "lambda": 1.0}, {"weight": 0.5, "lambda": 3.0}]
    content = found[1][1].to_dict()
    assert content["parameters"] == {"weight": 0.5, "lambda": 3.0}
    assert [entry["parameters"] for entry in content["models"]] == [{"density": 0.3}] * 2


def test_a_grid_and_a_value_of_one_model() -> None:
    found = candidates_of(load_recipe(ties(weight=1)), {"weight.2": [0.1, 0.2], "weight": [1, 2], "normalize": [True]})
    assert len(found) == 4
    content = found[-1][1].to_dict()
    assert content["parameters"] == {"lambda": 2, "weight": 2.0, "normalize": True}
    assert [entry.get("parameters") for entry in content["models"]] == [None, {"weight": 0.2}]


@pytest.mark.parametrize(
    ("grid", "error", "message"),
    [
        ({"wieght": [1]}, UsageError, "unknown parameter of 'ties' 'wieght': did you mean 'weight'"),
        ({"t": [1]}, UsageError, "unknown parameter of 'ties' 't'"),
        ({"density": [1.5]}, DataError, "'density' of the search is 1.5; expected between 1e-06 and 1"),
        ({"lambda": ["much"]}, DataError, "'lambda' of the search is 'much'; expected a number"),
        ({"lambda": [float("nan")]}, DataError, "'lambda' of the search is nan; expected a number"),
        ({"normalize": [2]}, DataError, "expected true or false"),
        ({"lambda.1": [1]}, UsageError, "'lambda' is one for all models of 'ties'"),
        ({"weight.3": [1]}, UsageError, "the number of a model, 1 to 2"),
        ({"weight.x": [1]}, UsageError, "the number of a model, 1 to 2"),
        ({"weight.": [1]}, UsageError, "the number of a model, 1 to 2"),
        ({"weight": []}, UsageError, "no values for 'weight'"),
        ({}, UsageError, "needs a parameter and its values"),
        ({"lambda": range(9), "weight": range(8)}, UsageError, f"has 72 candidates; at most {MOST}"),
    ],
)
def test_hostile_grids(grid: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as raised:
        candidates_of(load_recipe(ties()), grid)
    assert "\n" not in str(raised.value)


def test_a_model_by_its_number_needs_models() -> None:
    part = {"sources": [{"model": "a", "layer_range": [0, 1]}]}
    with pytest.raises(UsageError, match="needs a recipe with 'models'"):
        candidates_of(load_recipe({"merge_method": "linear", "slices": [part]}), {"weight.1": [1]})


# ---- searching ---------------------------------------------------------------------------------------------------


def test_a_search_leaves_the_best_candidate_and_nothing_else(
    recipe: dict[str, Any], parents: tuple[str, str], task: Path, tmp_path: Path
) -> None:
    before = {*tmp_path.iterdir(), tmp_path / "out", tmp_path / "store"}
    made, found = search(recipe, {"t": [1, 0.5, 0]}, [task], out=tmp_path / "out", threads=1)
    # The reference is the first parent: t = 0, which never breaks what it does itself.
    assert found.reference == parents[0]
    assert found.trials[2].nfr == 0
    assert (found.instances, next(one.asked for one in found.trials if not one.stopped)) == (200, 200)
    facts = json.loads((tmp_path / "out/uphold-merge.json").read_text())
    assert facts["search"] == json.loads(json.dumps(found.to_dict()))
    assert facts["recipe"]["parameters"] == found.values == facts["search"]["chosen"]
    assert facts["weights"] == weights_hash(tmp_path / "out") == made.weights
    assert {*tmp_path.iterdir()} == before
    assert "chosen" in str(found)


def test_the_reference_decides_what_a_negative_flip_is(
    recipe: dict[str, Any], parents: tuple[str, str], task: Path, tmp_path: Path
) -> None:
    _, found = search(recipe, {"t": [1]}, [task], out=tmp_path / "out", reference=parents[1], threads=1)
    assert found.trials[0].nfr == 0
    _, other = search(recipe, {"t": [1]}, [task], out=tmp_path / "out", threads=1)
    assert other.trials[0].nfr > 0
    # The merge is the same and found finished; how it was chosen is told anew.
    assert json.loads((tmp_path / "out/uphold-merge.json").read_text())["search"]["reference"] == parents[0]
    assert other.trials[0].score == found.trials[0].score


def test_a_finished_search_is_found(recipe: dict[str, Any], task: Path, tmp_path: Path) -> None:
    grid, tally = {"t": [0.2, 0.8]}, Tally()
    first = search(recipe, grid, [task], out=tmp_path / "out", threads=1)
    again = search(recipe, grid, [task], out=tmp_path / "out", threads=1, tally=tally)
    assert again.search == first.search
    assert again.merge.reused
    assert (tally.instances, tally.stored) == (0, 0)


def test_what_is_stopped_goes_on_where_it_was(recipe: dict[str, Any], task: Path, tmp_path: Path) -> None:
    grid = {"t": [0.2, 0.8, 0.5]}

    def interrupt(after: str) -> Callable[..., None]:
        def progress(what: str, done: int, total: int, note: str = "") -> None:
            if what == after and done:
                raise KeyboardInterrupt

        return progress

    with pytest.raises(KeyboardInterrupt):
        search(recipe, grid, [task], out=tmp_path / "out", threads=1, progress=interrupt("candidate 2/3"))
    assert not (tmp_path / "out").exists()
    assert hidden(tmp_path) == [".out.search"]
    merged: list[str] = []
    tally = Tally()
    made, found = search(
        recipe,
        grid,
        [task],
        out=tmp_path / "out",
        threads=1,
        tally=tally,
        progress=lambda what, *_: merged.append(what),
    )
    assert "candidate 1/3" not in merged
    assert "candidate 2/3" in merged
    assert hidden(tmp_path) == []
    whole = search(recipe, grid, [task], out=tmp_path / "other", threads=1)
    assert [one.to_dict() for one in whole.search.trials] == [one.to_dict() for one in found.trials]
    assert whole.merge.weights == made.weights


def test_scores_of_other_candidates_are_kept_and_those_of_other_models_are_not(
    recipe: dict[str, Any], task: Path, tmp_path: Path
) -> None:
    state = tmp_path / ".out.search/trials.json"

    def stop(what: str, done: int, total: int, note: str = "") -> None:
        if what == "search":
            raise KeyboardInterrupt

    def first_line(content: dict[str, Any], values: list[float]) -> list[str]:
        said: list[str] = []

        def progress(what: str, done: int, total: int, note: str = "") -> None:
            said.append(what)
            stop(what, done, total)

        with pytest.raises(KeyboardInterrupt):
            search(content, {"t": values}, [task], out=tmp_path / "out", threads=1, progress=progress)
        return said

    first_line(recipe, [0.5])
    assert len(json.loads(state.read_text())["trials"]) == 1
    assert not [what for what in first_line(recipe, [0.5, 0.7]) if what.startswith("candidate")]
    other = {**recipe, "base_model": recipe["models"][0]["model"], "models": [{"model": recipe["base_model"]}]}
    assert [what for what in first_line(other, [0.5]) if what.startswith("candidate")]


def test_a_hopeless_candidate_is_not_asked_everything(
    recipe: dict[str, Any], parents: tuple[str, str], task: Path, tmp_path: Path
) -> None:
    """What the first model says is made the right answer: the second is wrong too often in the first block."""
    loaded = load_task(task)
    assert isinstance(loaded, FixedTask)
    said = {record.id: record.answer for record in evaluate(parents[0], loaded, split="validation").records()}
    right = tuple(replace(one, target=said[one.id]) for one in loaded.instances("validation"))
    known = replace(loaded, splits={"validation": right})
    _, found = search(recipe, {"t": [0, 1]}, [known], out=tmp_path / "out", threads=1)
    assert found.trials[0].score == 1
    assert found.trials[1].stopped == "its accuracy cannot come within half a point of t = 0"
    assert found.trials[1].asked == 50
    assert found.values == {"t": 0}
    assert "given up: its accuracy" in str(found)


def test_the_test_split_is_not_looked_at(
    recipe: dict[str, Any], task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []
    original = FixedTask.instances

    def instances(self: FixedTask, split: Any) -> Any:
        looked.append(split)
        return original(self, split)

    loaded = load_task(task)
    monkeypatch.setattr(FixedTask, "instances", instances)
    search(recipe, {"t": [0.3, 0.6]}, [loaded], out=tmp_path / "out", threads=1)
    assert set(looked) == {"validation"}


def test_several_tasks_count_alike(recipe: dict[str, Any], task: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = write_task(tmp_path / "other", 60, name="other", prompt="<{text}>:")
    both = search(recipe, {"t": [0.5]}, [task, other], out=tmp_path / "both", threads=1).search
    alone = [search(recipe, {"t": [0.5]}, [one], out=tmp_path / "one", threads=1).search for one in (task, other)]
    assert both.instances == sum(one.instances for one in alone)
    assert both.trials[0].score == pytest.approx(sum(one.trials[0].score for one in alone) / 2)
    assert both.trials[0].nfr == pytest.approx(sum(one.trials[0].nfr for one in alone) / 2)


def test_what_cannot_be_searched(recipe: dict[str, Any], task: Path, tmp_path: Path) -> None:
    loaded = load_task(task)
    assert isinstance(loaded, FixedTask)
    without = replace(loaded, splits={"test": tuple(loaded.instances("test"))})
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    with pytest.raises(EmptyError, match="no validation instances"):
        search(recipe, {"t": [0.5]}, [without], out=tmp_path / "out")
    with pytest.raises(UsageError, match="needs a task"):
        search(recipe, {"t": [0.5]}, [], out=tmp_path / "out")
    with pytest.raises(StorageError, match="holds no merge"):
        search(recipe, {"t": [0.5]}, [task], out=tmp_path / "full")
    assert hidden(tmp_path) == []
