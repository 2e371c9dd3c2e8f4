from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import save_tiny_model, write_task
from uphold.core.errors import CorruptError, EmptyError, ModelError, StorageError
from uphold.core.runs import RunStore
from uphold.measure import evaluate as module
from uphold.measure.evaluate import Batching, evaluate
from uphold.models.load import load
from uphold.tasks.base import Decoding, FixedTask, Instance, Task
from uphold.tasks.load import load_task
from uphold.tasks.scorers import exact, unscored


@pytest.fixture
def task(task_file: Path) -> Task:
    return load_task(task_file)


@pytest.fixture
def writing_task() -> FixedTask:
    instances = tuple(Instance(f"say {n}:", str(n)) for n in range(6))
    return FixedTask("say", "generate", {"test": instances}, "exact.v1", exact, decoding=Decoding(max_new_tokens=4))


def no_model(*_: Any) -> None:
    raise AssertionError("a model was loaded although nothing was left to do")


def test_every_instance_is_answered_once(model_v1: Path, task: Task) -> None:
    records = list(evaluate(model_v1, task).records())

    assert [record.id for record in records] == sorted(instance.id for instance in task.instances("test"))
    for record in records:
        assert record.options == ("a", "b", "c", "d")
        best = max(range(4), key=record.option_logprobs.__getitem__)
        assert record.answer == record.output == record.options[best]
        assert record.correct == (record.answer == record.target)
        assert record.score == float(record.answer == record.target)
        assert record.tokens > 0
        assert record.tags["half"] in ("low", "high")


def test_the_fingerprint_says_what_was_run(model_v1: Path, task: Task) -> None:
    fingerprint = evaluate(model_v1, task, batching=Batching(4)).fingerprint

    assert fingerprint["model"]["name"] == str(model_v1)
    assert {"weights", "config", "tokenizer", "adapter", "dtype", "attention", "device"} <= set(fingerprint["model"])
    assert fingerprint["task"]["count"] == 30
    assert fingerprint["task"]["scorer"] == "choice.v1"
    assert fingerprint["batching"] == {"size": 4, "reverse": False, "part": 256}
    assert {"uphold", "torch", "transformers"} <= set(fingerprint["versions"])


def test_a_second_evaluation_reads_the_store(
    model_v1: Path, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = evaluate(model_v1, task)
    copy = save_tiny_model(tmp_path / "same weights elsewhere", seed=1)
    monkeypatch.setattr(module, "load", no_model)

    second = evaluate(copy, task)

    assert second.path == first.path
    assert second.sha256 == first.sha256
    assert second.name == str(copy)  # as its user named it this time


def test_another_model_is_evaluated_anew(
    model_v1: Path, model_v2: Path, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(model_v1, task)
    monkeypatch.setattr(module, "load", no_model)

    with pytest.raises(AssertionError, match="a model was loaded"):
        evaluate(model_v2, task)


def test_another_split_or_batching_is_another_run(model_v1: Path, task: Task) -> None:
    loaded = load(model_v1)
    paths = {
        evaluate(loaded, task).path,
        evaluate(loaded, task, split="validation").path,
        evaluate(loaded, task, batching=Batching(8)).path,
        evaluate(loaded, task, batching=Batching(reverse=True)).path,
    }

    assert len(paths) == 4


def test_the_batch_size_changes_no_answer(model_v1: Path, task: Task) -> None:
    one = list(evaluate(model_v1, task, batching=Batching(1)).records())
    many = list(evaluate(model_v1, task, batching=Batching(32)).records())

    assert [record.answer for record in one] == [record.answer for record in many]
    for lone, batched in zip(one, many, strict=True):
        assert lone.option_logprobs == pytest.approx(batched.option_logprobs, abs=1e-4)


def test_the_noise_floor_uses_other_batches() -> None:
    assert Batching(32).other() == Batching(17, reverse=True)
    assert Batching(1).other() != Batching(1)
    assert Batching(2).other() != Batching(2)


def test_generated_answers_are_scored(model_v1: Path, writing_task: FixedTask) -> None:
    records = list(evaluate(model_v1, writing_task).records())

    assert len(records) == 6
    for record in records:
        assert record.correct == (record.answer == record.target)
        assert record.options == ()


def test_the_seed_counts_only_where_decoding_samples(model_v1: Path, writing_task: FixedTask) -> None:
    loaded = load(model_v1)
    sampled = dataclasses.replace(writing_task, decoding=Decoding(max_new_tokens=8, temperature=1.5))

    assert evaluate(loaded, writing_task, seed=1).path == evaluate(loaded, writing_task, seed=2).path
    first, second = evaluate(loaded, sampled, seed=1), evaluate(loaded, sampled, seed=2)
    assert [record.output for record in first.records()] != [record.output for record in second.records()]


def test_evaluating_leaves_the_global_generators_alone(model_v1: Path, writing_task: FixedTask) -> None:
    sampled = dataclasses.replace(writing_task, decoding=Decoding(max_new_tokens=4, temperature=1.0))
    before = torch.random.get_rng_state()

    evaluate(model_v1, sampled)

    assert torch.equal(torch.random.get_rng_state(), before)


def test_answers_that_cannot_be_scored_are_stored_without_score(model_v1: Path, writing_task: FixedTask) -> None:
    task = dataclasses.replace(writing_task, scorer="unscored.v1", score_function=unscored)

    assert [(record.correct, record.score) for record in evaluate(model_v1, task).records()] == [(None, None)] * 6


def test_a_split_without_instances_is_an_error(model_v1: Path, writing_task: FixedTask) -> None:
    with pytest.raises(EmptyError, match="task 'say' has no validation instances"):
        evaluate(model_v1, writing_task, split="validation")


def test_a_model_that_gives_nan_is_an_error_and_not_a_first_option(model_v1: Path, task: Task) -> None:
    loaded = load(model_v1)
    with torch.no_grad():
        loaded.model.lm_head.weight.fill_(float("nan"))

    with pytest.raises(ModelError, match="NaN instead of a log-likelihood"):
        evaluate((loaded.model, loaded.tokenizer), task)


def test_progress_counts_parts(model_v1: Path, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PART", 12)
    seen: list[tuple[str, int, int]] = []

    evaluate(
        model_v1, task, what="old model", progress=lambda what, done, total, note="": seen.append((what, done, total))
    )

    assert seen == [("old model", 1, 3), ("old model", 2, 3), ("old model", 3, 3)]


# ---- interrupted, damaged, refused ----


def test_an_interrupted_evaluation_goes_on_where_it_stopped(
    model_v1: Path, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PART", 8)
    whole = evaluate(model_v1, task, store=RunStore(tmp_path / "whole"))
    asked: list[int] = []
    answer = module.answer

    def counted(loaded: Any, task: Task, part: Any, *rest: Any) -> Any:
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(len(part))
        return answer(loaded, task, part, *rest)

    broken = RunStore(tmp_path / "broken")
    monkeypatch.setattr(module, "answer", counted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(model_v1, task, store=broken)
    assert broken.find(whole.fingerprint) is None

    asked.clear()
    asked.append(0)
    monkeypatch.setattr(module, "answer", lambda *arguments: asked.append(len(arguments[2])) or answer(*arguments))
    resumed = evaluate(model_v1, task, store=broken)

    assert asked == [0, 8, 6]  # two parts of 8 were there already
    assert resumed.records_path.read_bytes() == whole.records_path.read_bytes()
    assert (resumed.path / "run.json").read_bytes() == (whole.path / "run.json").read_bytes()
    assert not (resumed.path / "parts").exists()


SLOW = """
import sys, time
from pathlib import Path
from uphold.core.runs import RunStore
from uphold.measure import evaluate as module
from uphold.tasks.load import load_task

model, task, store = sys.argv[1:]
answer, asked = module.answer, []

def slow(*arguments):
    asked.append(arguments)
    if len(asked) > 2:
        time.sleep(600)
    return answer(*arguments)

module.PART, module.answer = 4, slow
module.evaluate(model, load_task(task), store=RunStore(Path(store)))
"""


def test_a_killed_process_is_taken_up_again_byte_for_byte(
    model_v1: Path, task_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "killed"
    command = [sys.executable, "-c", SLOW, str(model_v1), str(task_file), str(store)]
    process = subprocess.Popen(command, env=dict(os.environ), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 40
    while len(list(store.glob("*/parts/0*.parquet"))) < 2 and time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read().decode() if process.stderr else ""
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert len(list(store.glob("*/parts/0*.parquet"))) == 2
    assert not list(store.glob("*/run.json"))

    monkeypatch.setattr(module, "PART", 4)
    resumed = evaluate(model_v1, load_task(task_file), store=RunStore(store))
    whole = evaluate(model_v1, load_task(task_file), store=RunStore(tmp_path / "whole"))

    assert resumed.path.parent == store
    assert resumed.records_path.read_bytes() == whole.records_path.read_bytes()
    assert resumed.sha256 == whole.sha256


def test_a_damaged_store_is_refused(model_v1: Path, task: Task) -> None:
    run = evaluate(model_v1, task)
    data = bytearray(run.records_path.read_bytes())
    data[len(data) // 2] ^= 1
    run.records_path.write_bytes(data)

    with pytest.raises(CorruptError, match=r"records\.parquet is not the file that was written"):
        evaluate(model_v1, task)


def test_a_full_disk_keeps_the_parts_that_were_written(
    model_v1: Path, task: Task, store: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PART", 8)
    replace, calls = os.replace, []

    def full(source: Any, target: Any) -> None:
        calls.append(target)
        if len(calls) > 2:
            raise OSError(28, os.strerror(28))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(StorageError, match=r"no space left on the disk while writing .*000002\.parquet"):
            evaluate(model_v1, task)
    (parts,) = store.root.glob("*/parts")
    assert sorted(path.name for path in parts.iterdir()) == ["000000.parquet", "000001.parquet"]

    resumed = evaluate(model_v1, task)
    whole = evaluate(model_v1, task, store=RunStore(tmp_path / "whole"))
    assert resumed.sha256 == whole.sha256


def test_tasks_of_a_kind_choice_rank_by_likelihood(model_v1: Path, tmp_path: Path) -> None:
    wide = load_task(write_task(tmp_path, options=["a", "b", "c", "d", "a long option"]))

    records = list(evaluate(model_v1, wide).records())

    # Sums, not means: eleven more characters cost far more likelihood than one.
    assert all(len(record.option_logprobs) == 5 for record in records)
    assert all(record.option_logprobs[4] < min(record.option_logprobs[:4]) for record in records)
