from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import save_tiny_model, write_task
from uphold.core.errors import CorruptError, EmptyError, ModelError, StorageError
from uphold.core.runs import RunStore
from uphold.measure import executors, jobs
from uphold.measure.evaluate import Tally, evaluate, evaluate_all
from uphold.measure.executors import LocalExecutor
from uphold.measure.jobs import Batching, Job
from uphold.models import pool
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
    run = evaluate(model_v1, task, batching=Batching(4))

    assert run.fingerprint == Job(model_v1, task, batching=Batching(4)).fingerprint()
    assert run.fingerprint["task"]["count"] == run.count == 30
    assert run.fingerprint["batching"] == {"tokens": 4, "reverse": False, "part": 256, "characters": 200_000}


def test_a_second_evaluation_reads_the_store(
    model_v1: Path, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = evaluate(model_v1, task)
    copy = save_tiny_model(tmp_path / "same weights elsewhere", seed=1)
    monkeypatch.setattr(pool, "load_base", no_model)

    second = evaluate(copy, task)

    assert second.path == first.path
    assert second.sha256 == first.sha256
    assert second.name == str(copy)  # as its user named it this time


def test_another_model_is_evaluated_anew(
    model_v1: Path, model_v2: Path, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(model_v1, task)
    monkeypatch.setattr(pool, "load_base", no_model)

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


@pytest.mark.parametrize("batching", [Batching(1), Batching(8), Batching(64, reverse=True), Batching(reverse=True)])
def test_batches_change_no_answer_and_log_likelihoods_by_rounding_only(
    model_v1: Path, tmp_path: Path, batching: Batching, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Contexts and options of all lengths, in parts of 7 and of 256 instances."""
    (tmp_path / "long").mkdir()
    task = load_task(
        write_task(tmp_path / "long", 90, prompt="{text}{half}{half}{text}:", options=["a", "bc", "bd", "c 4", "d"])
    )
    here = list(evaluate(model_v1, task).records())
    monkeypatch.setattr(jobs, "PART", 7)
    there = list(evaluate(model_v1, task, batching=batching).records())

    assert len(here) == 45
    for one, other in zip(here, there, strict=True):
        assert other.option_logprobs == pytest.approx(one.option_logprobs, abs=1e-5)
        assert dataclasses.replace(other, option_logprobs=one.option_logprobs) == one


def test_batches_change_no_written_answer(model_v1: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    instances = tuple(Instance(f"{'say ' * (n % 5)}{n}:", str(n)) for n in range(40))
    for temperature in (0.0, 1.0):
        decoding = Decoding(max_new_tokens=12, stop=("a", "e1"), temperature=temperature)
        task = FixedTask("say", "generate", {"test": instances}, "exact.v1", exact, decoding=decoding)
        here = list(evaluate(model_v1, task).records())
        with monkeypatch.context() as patch:
            patch.setattr(jobs, "PART", 9)
            for batching in (Batching(1), Batching(700, reverse=True)):
                assert list(evaluate(model_v1, task, batching=batching).records()) == here


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


# ---- what is told ----


def test_progress_counts_instances(model_v1: Path, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "PART", 12)
    seen: list[tuple[str, int, int, str]] = []

    evaluate(model_v1, task, what="old model", progress=lambda *what: seen.append(what))  # type: ignore[arg-type, misc]

    assert {(what, total) for what, _, total, _ in seen} == {("old model", 30)}
    done = [count for _, count, _, _ in seen]
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0, 30)
    assert set(done) == {0, 12, 24, 30}
    assert all("tokens/s" in note for _, count, _, note in seen if count)


def test_a_stored_run_is_told_too(model_v1: Path, task: Task) -> None:
    evaluate(model_v1, task)
    seen: list[tuple[Any, ...]] = []

    evaluate(model_v1, task, progress=lambda *what: seen.append(what))  # type: ignore[arg-type, misc]

    assert seen == [(f"evaluating {model_v1}", 30, 30, "stored")]


def test_a_tally_adds_up_what_was_asked_and_found(
    model_v1: Path, model_v2: Path, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    tally = Tally()
    assert str(tally) == "0 instances asked, 0 found in the store"
    evaluate(model_v1, task, tally=tally)
    tokens = tally.tokens
    assert (tally.instances, tally.stored, tally.requests, tally.cost) == (30, 0, 0, None)
    assert tokens >= 30 * 3
    assert tally.seconds > 0
    assert tally.rate == tokens / tally.seconds
    assert str(tally).startswith(f"30 instances asked, 0 found in the store, {tokens:,} tokens in ")

    evaluate(model_v1, task, tally=tally)
    assert (tally.instances, tally.stored, tally.tokens) == (30, 30, tokens)
    evaluate(model_v2, task, tally=tally)

    assert (tally.instances, tally.stored, tally.tokens) == (60, 30, 2 * tokens)
    assert str(Tally(1, 2, 3, 4, 0.5, 6)) == (
        "1 instances asked, 2 found in the store, 3 tokens in 6.0 s (0 tokens/s), 4 requests, cost 0.5000"
    )


# ---- many jobs ----


def test_equal_jobs_are_done_once_and_each_has_its_run(
    model_v1: Path, model_v2: Path, task: Task, tmp_path: Path
) -> None:
    copy = save_tiny_model(tmp_path / "copy", seed=1)
    tally = Tally()

    runs = evaluate_all([Job(model_v1, task), Job(model_v2, task), Job(copy, task), Job(model_v1, task)], tally=tally)

    assert [run.name for run in runs] == [str(model_v1), str(model_v2), str(copy), str(model_v1)]
    assert runs[0].path == runs[2].path == runs[3].path != runs[1].path
    assert (tally.instances, tally.stored) == (60, 0)
    assert evaluate_all([]) == []


def test_one_base_at_a_time_is_in_memory(
    model_v1: Path, model_v2: Path, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    lent: list[weakref.ref[Any]] = []
    in_memory: list[int] = []
    load_base = pool.load_base

    def counted(*arguments: Any) -> Any:
        in_memory.append(sum(one() is not None for one in lent))
        model, tokenizer = load_base(*arguments)
        lent.append(weakref.ref(model))
        return model, tokenizer

    monkeypatch.setattr(pool, "load_base", counted)
    again = Batching().other("cpu")

    evaluate_all([Job(model_v1, task), Job(model_v1, task, batching=again), Job(model_v2, task)])

    assert in_memory == [0, 0]


def test_an_executor_may_work_on_all_jobs_at_once(model_v1: Path, model_v2: Path, task: Task, tmp_path: Path) -> None:
    class Backwards(LocalExecutor):
        """Answers the last unit first."""

        side_by_side = True
        asked = 0

        def answers(self, jobs: Any, units: Any, heard: Any) -> Any:
            self.asked += 1
            yield from super().answers(jobs, units[::-1], heard)

    all_jobs = [Job(model, task, split) for model in (model_v1, model_v2) for split in ("test", "validation")]
    work = Backwards()

    there = evaluate_all(all_jobs, executor=work, store=RunStore(tmp_path / "there"))
    here = evaluate_all(all_jobs, store=RunStore(tmp_path / "here"))

    assert work.asked == 1
    assert [run.sha256 for run in there] == [run.sha256 for run in here]


def test_where_workers_run_elsewhere_their_numerics_are_recorded(model_v1: Path, task: Task) -> None:
    class Elsewhere(LocalExecutor):
        def numerics(self) -> Any:
            return {"device": "cpu", "dtype": "torch.bfloat16"}

    run = evaluate(model_v1, task, executor=Elsewhere())

    assert run.fingerprint["model"]["dtype"] == "torch.bfloat16"
    assert evaluate(model_v1, task).path != run.path


# ---- interrupted, damaged, refused ----


def test_an_interrupted_evaluation_goes_on_where_it_stopped(
    model_v1: Path, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "PART", 8)
    whole = evaluate(model_v1, task, store=RunStore(tmp_path / "whole"))
    asked: list[int] = []
    answer = executors.answer

    def counted(engine: Any, task: Task, part: Any, *rest: Any) -> Any:
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(len(part))
        return answer(engine, task, part, *rest)

    broken = RunStore(tmp_path / "broken")
    monkeypatch.setattr(executors, "answer", counted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(model_v1, task, store=broken)
    assert broken.find(whole.fingerprint) is None

    asked[:] = [0]
    monkeypatch.setattr(executors, "answer", lambda *rest: asked.append(len(rest[2])) or answer(*rest))
    tally = Tally()
    resumed = evaluate(model_v1, task, store=broken, tally=tally)

    assert asked == [0, 8, 6]  # two parts of 8 were there already
    assert (tally.instances, tally.stored) == (14, 16)
    assert resumed.records_path.read_bytes() == whole.records_path.read_bytes()
    assert (resumed.path / "run.json").read_bytes() == (whole.path / "run.json").read_bytes()
    assert not (resumed.path / "parts").exists()


def test_when_all_parts_are_there_nothing_is_loaded(
    model_v1: Path, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the last part and joining the parts."""
    monkeypatch.setattr(jobs, "PART", 8)
    with monkeypatch.context() as patch:
        patch.setattr("uphold.core.runs.RunWriter.finish", no_model)
        with pytest.raises(AssertionError):
            evaluate(model_v1, task)
    monkeypatch.setattr(pool, "load_base", no_model)

    assert evaluate(model_v1, task).count == 30


SLOW = """
import sys, time
from pathlib import Path
from uphold.core.runs import RunStore
from uphold.measure import executors, jobs
from uphold.measure.evaluate import evaluate
from uphold.tasks.load import load_task

model, task, store = sys.argv[1:]
answer, asked = executors.answer, []

def slow(*arguments):
    asked.append(arguments)
    if len(asked) > 2:
        time.sleep(600)
    return answer(*arguments)

jobs.PART, executors.answer = 4, slow
evaluate(model, load_task(task), store=RunStore(Path(store)))
"""


def test_a_killed_process_is_taken_up_again_byte_for_byte(
    model_v1: Path, task_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "killed"
    command = [sys.executable, "-c", SLOW, str(model_v1), str(task_file), str(store)]
    process = subprocess.Popen(command, env=dict(os.environ), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 90
    while len(list(store.glob("*/parts/0*.parquet"))) < 2 and time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read().decode() if process.stderr else ""
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert len(list(store.glob("*/parts/0*.parquet"))) == 2
    assert not list(store.glob("*/run.json"))

    monkeypatch.setattr(jobs, "PART", 4)
    resumed = evaluate(model_v1, load_task(task_file), store=RunStore(store))
    whole = evaluate(model_v1, load_task(task_file), store=RunStore(tmp_path / "whole"))

    assert resumed.path.parent == store
    assert resumed.records_path.read_bytes() == whole.records_path.read_bytes()
    assert resumed.sha256 == whole.sha256


# One interpreter reads the libraries; every attempt is a process of its own, forked from it before any of its threads
# has started.
FORKING = """
import json, os, random, signal, sys, time
from pathlib import Path
import pyarrow.dataset, pyarrow.parquet, torch, transformers.models.llama.modeling_llama
import uphold.models.generate, uphold.models.likelihood
from transformers import AutoModelForCausalLM, AutoTokenizer
from uphold.core.records import Record, to_table
from uphold.core.runs import RunStore
from uphold.measure import executors, jobs
from uphold.measure.evaluate import Tally, evaluate
from uphold.tasks.load import load_task

model, task, folder = sys.argv[1:]
task, folder = load_task(task), Path(folder)
torch.set_num_threads(1)
to_table([Record("id", "input", "target", "output", "answer", True, 1.0)])
jobs.PART = 1
answer = executors.answer

def paced(*arguments):
    time.sleep(0.01)
    return answer(*arguments)

executors.answer = paced

def start(store, told=None):
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        notes, tally = [], Tally()
        run = evaluate(model, task, store=RunStore(folder / store), tally=tally,
                       progress=lambda what, done, total, note="": notes.append(note))
        if told:
            (folder / told).write_text(json.dumps([run.sha256, run.count, tally.instances, tally.stored, notes]))
        code = 0
    finally:
        os._exit(code)

def end(child):
    status = os.waitpid(child, 0)[1]
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)

def stored():
    return len(list((folder / "killed").glob("*/parts/0*.parquet")))

# A run that nobody disturbs.
codes = [end(start("whole", "whole.json"))]

# The same one, killed ten times: while it starts, or some time after it has stored one part more, or two.
draw, kills, at = random.Random(0), 0, []
while kills < 10:
    most = stored() + draw.randrange(3)
    child = start("killed")
    while stored() < most and not os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        time.sleep(0.001)
    time.sleep(draw.uniform(0.0, 0.04))
    os.kill(child, signal.SIGKILL)
    if end(child) != -signal.SIGKILL:
        break
    kills += 1
    at.append(stored())
codes.append(end(start("killed", "killed.json")))

# Two processes at once, twice over.
for pair in range(2):
    children = [start(f"pair-{pair}", f"pair-{pair}-{each}.json") for each in range(2)]
    codes += [end(child) for child in children]
print(json.dumps({"codes": codes, "kills": kills, "stored": at}))
"""


@pytest.fixture(scope="module")
def forked(model_v1: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """What became of processes that were killed, or ran at once, on a run of 40 parts."""
    folder = tmp_path_factory.mktemp("forked")
    command = [sys.executable, "-c", FORKING, str(model_v1), str(write_task(folder, 80)), str(folder)]
    done = subprocess.run(command, env=dict(os.environ), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), folder


def test_killed_ten_times_a_run_ends_with_the_records_of_an_undisturbed_one(
    forked: tuple[dict[str, Any], Path],
) -> None:
    told, folder = forked
    whole, killed = (json.loads((folder / f"{name}.json").read_text()) for name in ("whole", "killed"))

    assert told["codes"][:2] == [0, 0]
    assert told["kills"] == 10
    assert told["stored"] == sorted(told["stored"])  # a kill loses no part that was stored
    assert len(set(told["stored"])) > 3
    assert killed[:2] == whole[:2]
    assert whole[1:4] == [40, 40, 0]
    assert killed[2] + killed[3] == 40
    assert killed[3] == told["stored"][-1]
    for name in ("records.parquet", "run.json"):
        (one,), (other,) = (list((folder / store).glob(f"*/{name}")) for store in ("whole", "killed"))
        assert one.read_bytes() == other.read_bytes()
    (run,) = (path for path in (folder / "killed").iterdir() if path.name != ".claims")
    assert sorted(path.name for path in run.iterdir() if not path.name.startswith(".")) == [
        "records.parquet",
        "run.json",
    ]


def test_two_processes_at_once_answer_every_instance_once(forked: tuple[dict[str, Any], Path]) -> None:
    told, folder = forked
    whole = json.loads((folder / "whole.json").read_text())

    assert told["codes"][2:] == [0] * 4
    waited = 0
    for pair in range(2):
        both = [json.loads((folder / f"pair-{pair}-{each}.json").read_text()) for each in range(2)]
        for sha256, count, asked, stored, notes in both:
            assert (sha256, count) == tuple(whole[:2])
            assert (asked, stored) in ((40, 0), (0, 40))
            waited += any("waiting for it" in note for note in notes)
        assert sorted(asked for _, _, asked, _, _ in both) == [0, 40]
        (records,) = (folder / f"pair-{pair}").glob("*/records.parquet")
        (undisturbed,) = (folder / "whole").glob("*/records.parquet")
        assert records.read_bytes() == undisturbed.read_bytes()
    assert waited >= 1


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
    monkeypatch.setattr(jobs, "PART", 8)
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
