from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import make_record, make_run, write_task
from uphold.core.errors import NotComparableError, UsageError
from uphold.core.runs import RunStore
from uphold.measure.compare import compare
from uphold.measure.evaluate import Tally, evaluate
from uphold.measure.executors import LocalExecutor
from uphold.measure.jobs import Batching
from uphold.models import pool
from uphold.models.load import load
from uphold.tasks.load import load_task


def test_two_models_on_one_task(model_v1: Path, model_v2: Path, task_file: Path) -> None:
    comparison = compare(model_v1, model_v2, task_file)

    assert comparison.count == 30
    assert (comparison.old.name, comparison.new.name) == (str(model_v1), str(model_v2))
    assert comparison["gain"].value == pytest.approx((comparison["pfr"].value or 0) - (comparison["nfr"].value or 0))
    assert comparison["nfr"].floor is not None
    assert comparison.again is not None
    assert comparison.again.fingerprint["batching"] != comparison.old.fingerprint["batching"]
    assert comparison.old.fingerprint["batching"] == comparison.new.fingerprint["batching"]


def test_two_models_print_the_same_twice(model_v1: Path, model_v2: Path, task_file: Path, tmp_path: Path) -> None:
    first = compare(model_v1, model_v2, task_file, store=RunStore(tmp_path / "a"))
    second = compare(model_v1, model_v2, task_file, store=RunStore(tmp_path / "b"))

    assert str(first) == str(second)


def test_the_old_model_is_loaded_once_and_asked_twice(
    model_v1: Path, model_v2: Path, task_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[str] = []
    load_base = pool.load_base

    def counted(files: Any, *rest: Any) -> Any:
        loads.append(files.base.name)
        return load_base(files, *rest)

    monkeypatch.setattr(pool, "load_base", counted)
    tally, told = Tally(), []

    comparison = compare(model_v1, model_v2, task_file, tally=tally, progress=lambda what, *_: told.append(what))

    assert loads == ["v1", "v2"]
    assert (tally.instances, tally.stored) == (90, 0)
    assert list(dict.fromkeys(told)) == ["old model", "old model again (noise floor)", "new model"]
    assert comparison.again is not None
    assert comparison.again.fingerprint["batching"]["reverse"]
    assert comparison["nfr"].floor == 0.0  # on a CPU no number depends on the batch

    compare(model_v1, model_v2, task_file, tally=tally)
    assert loads == ["v1", "v2"]
    assert (tally.instances, tally.stored) == (90, 90)


def test_the_noise_floor_of_sampled_answers_takes_another_seed(model_v1: Path, model_v2: Path, tmp_path: Path) -> None:
    decoding = {"max_new_tokens": 4, "temperature": 1.0}
    task = write_task(tmp_path, kind="generate", options=None, scorer="exact.v1", decoding=decoding)

    comparison = compare(model_v1, model_v2, task, seed=5)

    assert comparison.again is not None
    assert (comparison.old.fingerprint["seed"], comparison.new.fingerprint["seed"]) == (5, 5)
    assert comparison.again.fingerprint["seed"] == 6


def test_an_executor_does_the_work(model_v1: Path, model_v2: Path, task_file: Path) -> None:
    class Elsewhere(LocalExecutor):
        side_by_side = True
        units = 0

        def numerics(self) -> Any:
            return {"device": "cpu", "dtype": "torch.bfloat16"}

        def answers(self, jobs: Any, units: Any, heard: Any) -> Any:
            self.units += len(units)
            yield from super().answers(jobs, units, heard)

    work = Elsewhere()
    comparison = compare(model_v1, model_v2, task_file, executor=work)

    assert work.units == 3
    assert comparison.new.fingerprint["model"]["dtype"] == "torch.bfloat16"
    with pytest.raises(NotComparableError, match="one and the same model"):
        compare(model_v1, str(model_v1), task_file, executor=work)


def test_loaded_models_are_the_models_they_were_loaded_from(model_v1: Path, model_v2: Path, task_file: Path) -> None:
    by_name = compare(model_v1, model_v2, task_file, noise_floor=False)
    loaded = compare(load(model_v1), load(model_v2), load_task(task_file), noise_floor=False)

    assert (loaded.old.sha256, loaded.new.sha256) == (by_name.old.sha256, by_name.new.sha256)
    assert loaded.old.path == by_name.old.path  # found in the store


def test_the_noise_floor_can_be_left_out(model_v1: Path, model_v2: Path, task_file: Path) -> None:
    comparison = compare(model_v1, model_v2, task_file, noise_floor=False)

    assert comparison.again is None
    assert comparison["nfr"].floor is None


def test_a_model_is_not_compared_with_itself(model_v1: Path, task_file: Path, tmp_path: Path, store: RunStore) -> None:
    with pytest.raises(NotComparableError, match="one and the same model") as caught:
        compare(model_v1, str(model_v1), task_file)

    assert caught.value.exit_code == 4
    assert not store.root.exists()  # found out before anything was evaluated


def test_two_folders_with_runs_need_no_task(tmp_path: Path) -> None:
    make_run(tmp_path / "old", [make_record(n, n < 6, str(n < 6)) for n in range(10)], "old")
    make_run(tmp_path / "new", [make_record(n, n > 3, str(n > 3)) for n in range(10)], "new")

    comparison = compare(tmp_path / "old", str(tmp_path / "new"))

    assert (comparison["nfr"].value, comparison["pfr"].value) == (0.4, 0.4)


def test_stored_runs_may_bring_their_noise_floor(model_v1: Path, tmp_path: Path) -> None:
    for name, right in (("old", 6), ("again", 5), ("new", 3)):
        make_run(tmp_path / name, [make_record(n, n < right, str(n < right)) for n in range(10)], name)

    comparison = compare(tmp_path / "old", tmp_path / "new", again=tmp_path / "again")

    assert (comparison["nfr"].value, comparison["nfr"].floor) == (pytest.approx(0.3), 0.1)
    with pytest.raises(UsageError, match="where old and new are stored"):
        compare(tmp_path / "old", tmp_path / "new", again=model_v1)


def test_a_model_without_task_is_a_usage_error(model_v1: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "old", [make_record(1, True, "a")], "old")

    with pytest.raises(UsageError, match="give --task"):
        compare(run, model_v1)


def test_a_stored_run_against_a_model(model_v1: Path, model_v2: Path, task_file: Path) -> None:
    old = evaluate(model_v1, load_task(task_file), batching=Batching())

    comparison = compare(old, model_v2, task_file)

    assert comparison.old is old
    assert "no noise floor: the old model was not evaluated a second time" in comparison.notes


def test_a_stored_run_of_another_task_is_not_comparable(model_v1: Path, model_v2: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    old = evaluate(model_v1, load_task(write_task(tmp_path / "a")))

    with pytest.raises(NotComparableError, match=r"they differ in count \(30 against 20\), instances"):
        compare(old, model_v2, write_task(tmp_path / "b", count=40))


def test_stored_runs_are_compared_without_torch(tmp_path: Path) -> None:
    for name, step in (("old", 3), ("new", 4)):
        records = [make_record(number, number % step > 0, str(number % step)) for number in range(3000)]
        make_run(tmp_path / name, records, name)
    program = (
        "import sys; from uphold.measure.compare import compare; "
        f"comparison = compare({str(tmp_path / 'old')!r}, {str(tmp_path / 'new')!r}); "
        "print(comparison.count, [name for name in ('torch', 'transformers', 'peft') if name in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=dict(os.environ))

    assert done.stderr == ""
    assert done.stdout == "3000 []\n"
