from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import make_record, make_run, write_task
from uphold.core import stats
from uphold.core.errors import EmptyError, UsageError
from uphold.core.runs import Run
from uphold.measure.comparison import load_comparison
from uphold.measure.evaluate import Tally
from uphold.merge import merge
from uphold.merge.engine.parents import Parents, check_askable, parents_of
from uphold.merge.engine.recipe import load_recipe
from uphold.merge.engine.synergy import _mean, _scores, synergy, task_synergy
from uphold.report import write_report


def run(folder: Path, right: str, name: str = "model", **changes: Any) -> Run:
    """Answers to as many instances as `right` has letters: 1 for right, 0 for wrong, - for no score."""
    records = [
        make_record(n, None if letter == "-" else letter == "1", letter, **changes) for n, letter in enumerate(right)
    ]
    return make_run(folder / name, records, name)


def model(name: str, **parameters: Any) -> dict[str, Any]:
    return {"model": name, "parameters": parameters}


# ---- numbers -----------------------------------------------------------------------------------------------------


def test_the_definitions(tmp_path: Path) -> None:
    found, draws = task_synergy(
        run(tmp_path, "11110000", "merge"),
        [run(tmp_path, "11000000", "a"), run(tmp_path, "00001000", "b")],
        run(tmp_path, "10000000", "base"),
    )
    assert found.count == 8
    assert (found.merged, found.parents, found.base) == (0.5, (0.25, 0.125), 0.125)
    assert found.expected == 0.1875
    assert found.synergy == 0.3125
    assert found.over_best == 0.25
    assert found.relative_gain == 3.0
    assert draws.mean() == pytest.approx(0.3125, abs=0.02)
    assert found.low is not None
    assert found.high is not None
    assert found.low < 0.3125 < found.high


def test_synergy_has_the_sign_that_it_has(tmp_path: Path) -> None:
    found, _ = task_synergy(
        run(tmp_path, "1000" * 50, "merge"), [run(tmp_path, "1111" * 50, "a"), run(tmp_path, "1101" * 50, "b")]
    )
    assert found.synergy == -0.625
    assert found.high is not None
    assert found.high < 0
    assert found.relative_gain is None


def test_the_interval_is_that_of_a_paired_mean(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    rows = ["".join(map(str, generator.integers(0, 2, 600))) for _ in range(3)]
    found, _ = task_synergy(
        run(tmp_path, rows[0], "merge"), [run(tmp_path, row, str(n)) for n, row in enumerate(rows[1:])]
    )
    scores = np.array([[float(letter) for letter in row] for row in rows])
    expected = stats.mean_interval(scores[0] - scores[1:].mean(axis=0))
    assert found.synergy == pytest.approx((expected.low + expected.high) / 2)
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=0.005)


def test_where_nothing_differs_the_interval_is_not_a_point(tmp_path: Path) -> None:
    same = [run(tmp_path, "1100" * 10, name) for name in ("merge", "a", "b")]
    found, _ = task_synergy(same[0], same[1:])
    assert found.synergy == 0
    assert (found.low, found.high) == tuple(stats.paired_difference_interval(0, 0, 0, 40))
    alone, _ = task_synergy(run(tmp_path, "1", "one"), [run(tmp_path, "0", "other")])
    assert (alone.synergy, alone.low, alone.high) == (1, None, None)


def test_what_one_of_them_has_no_score_on_is_left_out_of_all(tmp_path: Path) -> None:
    runs = [run(tmp_path, "11-10", "merge"), run(tmp_path, "0111-", "a")]
    assert _scores(runs).tolist() == [[1, 1, 1], [0, 1, 1]]
    with pytest.raises(EmptyError, match="no instance of 'task' has a score"):
        task_synergy(run(tmp_path, "1-", "c"), [run(tmp_path, "-1", "d")])


def test_scores_that_are_neither_right_nor_wrong(tmp_path: Path) -> None:
    def graded(name: str, scores: list[float]) -> Run:
        return make_run(tmp_path / name, [make_record(n, None, "x", score) for n, score in enumerate(scores)], name)

    found, _ = task_synergy(graded("merge", [0.5, 1.0]), [graded("a", [0.25, 0.5])])
    assert found.synergy == 0.375


@settings(max_examples=25, deadline=None)
@given(rows=st.lists(st.lists(st.integers(0, 1), min_size=6, max_size=6), min_size=3, max_size=5))
def test_the_order_of_the_parents_does_not_matter(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[int]]
) -> None:
    folder = tmp_path_factory.mktemp("runs")
    made = [run(folder, "".join(map(str, row)), str(number)) for number, row in enumerate(rows)]
    one, _ = task_synergy(made[0], made[1:])
    other, _ = task_synergy(made[0], made[:0:-1])
    assert one.synergy == pytest.approx(other.synergy)
    assert one.over_best == other.over_best
    assert one.over_best <= one.synergy + 1e-12
    assert one.synergy == pytest.approx(one.merged - math.fsum(map(sum, rows[1:])) / (6 * len(rows[1:])))


def test_the_mean_over_tasks(tmp_path: Path) -> None:
    parts = []
    for number, (merged, parent) in enumerate([("1110" * 20, "1100" * 20), ("0001" * 20, "0011" * 20)]):
        folder = tmp_path / str(number)
        parts.append(task_synergy(run(folder, merged, "m"), [run(folder, parent, "a")], seed=number))
    mean = _mean([found for found, _ in parts], [draws for _, draws in parts])
    assert mean is not None
    assert mean.synergy == 0
    assert mean.low is not None
    assert mean.high is not None
    assert mean.low < 0 < mean.high
    widths = [found.high - found.low for found, _ in parts if found.high is not None and found.low is not None]
    assert mean.high - mean.low < min(widths)
    assert mean.relative_gain is None
    assert _mean([parts[0][0]], [parts[0][1]]) is None


# ---- whom a merge is measured against ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "parents", "base"),
    [
        ({"merge_method": "linear", "models": [model("a"), model("b")]}, ("a", "b"), None),
        ({"merge_method": "linear", "base_model": "a", "models": [model("a"), model("b"), model("c")]}, "abc", "a"),
        ({"merge_method": "ties", "base_model": "o", "models": [model("a"), model("b")]}, ("a", "b"), "o"),
        ({"merge_method": "ties", "base_model": "o", "models": [model("o"), model("a"), model("b")]}, "ab", "o"),
        ({"merge_method": "slerp", "base_model": "a", "models": [model("a"), model("b")]}, ("a", "b"), "a"),
        ({"merge_method": "task_arithmetic", "base_model": "o", "models": [model("a")]}, ("o", "a"), "o"),
        (
            {
                "merge_method": "passthrough",
                "slices": [{"sources": [{"model": name, "layer_range": [0, 1]}]} for name in "bab"],
            },
            ("b", "a"),
            None,
        ),
    ],
)
def test_parents(content: dict[str, Any], parents: Any, base: str | None) -> None:
    found = parents_of(load_recipe(content))
    assert (found.parents, found.base) == (tuple(parents), base)


def test_roles() -> None:
    found = Parents(("o", "a"), "o")
    assert [found.role(name) for name in found.all] == ["base, parent", "parent"]
    assert Parents(("a", "b"), "o").all == ("o", "a", "b")
    assert Parents(("a",), "o").role("o") == "base"


def test_a_file_of_weights_can_be_merged_but_not_asked(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.touch()
    with pytest.raises(UsageError, match="leave out --task"):
        check_askable(load_recipe({"merge_method": "linear", "models": [model(str(path))]}))


# ---- models ------------------------------------------------------------------------------------------------------


def test_a_merge_against_all_of_its_models(model_v1: Path, model_v2: Path, task_file: Path, tmp_path: Path) -> None:
    content = {"merge_method": "slerp", "base_model": str(model_v1), "models": [model(str(model_v2))]}
    merge({**content, "parameters": {"t": 0.4}}, out=tmp_path / "out", threads=1)
    tally = Tally()
    found = synergy(tmp_path / "out", [task_file], tally=tally)
    assert tally.instances == 3 * 30
    assert [(one.model, one.role) for one in found.against] == [
        (str(model_v1), "base, parent"),
        (str(model_v2), "parent"),
    ]
    [task] = found.tasks
    assert task.count == 30
    for one, score in zip(found.against, task.parents, strict=True):
        assert one.comparison is not None
        assert one.comparison["accuracy_old"].value == pytest.approx(score)
        assert one.comparison["gain"].value == pytest.approx(task.merged - score)
    assert found.mean is None
    folders = found.save(tmp_path / "out")
    assert len(folders) == 2
    for folder in folders:
        assert load_comparison(folder).new.name == str(tmp_path / "out")
        assert write_report(folder).is_file()
    saved = json.loads((tmp_path / "out/synergy.json").read_text())
    assert saved == json.loads(json.dumps(found.to_dict()))
    again = Tally()
    assert str(synergy(tmp_path / "out", [task_file], tally=again)) == str(found)
    assert again.instances == 0


def test_several_tasks_have_a_row_each_and_a_mean(
    model_v1: Path, model_v2: Path, task_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    other = write_task(tmp_path / "other", 40, name="other")
    found = synergy(model_v1, [task_file, other], parents=[model_v2], base=model_v2)
    assert [one.task for one in found.tasks] == ["first-letter", "other"]
    assert found.mean is not None
    assert found.mean.synergy == pytest.approx(sum(one.synergy for one in found.tasks) / 2)
    assert str(found).splitlines()[-1].split()[0] == "mean"


def test_a_merge_that_is_one_of_its_models(model_v1: Path, model_v2: Path, task_file: Path, tmp_path: Path) -> None:
    merge({"merge_method": "linear", "models": [model(str(model_v1), weight=1)]}, out=tmp_path / "out", threads=1)
    found = synergy(tmp_path / "out", [task_file], parents=[model_v1, model_v2])
    assert found.against[0].comparison is None
    assert "the same model" in str(found).splitlines()[1]
    assert len(found.save(tmp_path / "out")) == 1


def test_what_cannot_be_measured(model_v1: Path, task_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="name the parents"):
        synergy(model_v1, [task_file])
    with pytest.raises(UsageError, match="name at least one"):
        synergy(model_v1, [task_file], parents=[])
    with pytest.raises(UsageError, match="needs a task"):
        synergy(model_v1, [], parents=[model_v1])
    with pytest.raises(UsageError, match="two of the 2 tasks"):
        synergy(model_v1, [task_file, task_file], parents=[model_v1])
