from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from uphold.core.errors import ModelError, UsageError
from uphold.core.runs import Run, RunStore
from uphold.measure import jobs as jobs_module
from uphold.measure import ray_executor as module
from uphold.measure.answer import answer
from uphold.measure.evaluate import evaluate, evaluate_all
from uphold.measure.executors import Unit, executor
from uphold.measure.jobs import Job
from uphold.measure.ray_executor import RayExecutor, check_same_model
from uphold.models.load import library_versions
from uphold.tasks.base import FixedTask, Instance
from uphold.tasks.load import load_task
from uphold.tasks.scorers import exact

PARTS = 6
"""Parts of `task`."""


@pytest.fixture
def task(task_file: Path, monkeypatch: pytest.MonkeyPatch) -> FixedTask:
    monkeypatch.setattr(jobs_module, "PART", 5)
    found = load_task(task_file)
    assert isinstance(found, FixedTask)
    return found


# ---- arithmetic ----


def test_another_model_under_the_same_name_is_refused() -> None:
    here = {"name": "m", "weights": "1", "config": "2", "tokenizer": "3", "adapter": None, "device": "cpu"}

    check_same_model("m", here, here | {"device": "cuda"})
    with pytest.raises(ModelError, match=r"'m' is another model on .* than here \(its tokenizer differs\): copy it"):
        check_same_model("m", here, here | {"tokenizer": "4"})


# ---- no cluster ----


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)

    with pytest.raises(UsageError, match=r"needs the package ray: pip install 'uphold\[ray\]'"):
        executor("ray")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", r"no Ray cluster at '127\.0\.0\.1:1' \(.*refused\): expected host:port"),
        ("somewhere", r"no Ray cluster at 'somewhere' \(.*\): expected host:port"),
        ("host:port", r"no Ray cluster at 'host:port' \(.*\): expected host:port"),
        ("ray://head:10001", r"'ray://head:10001': expected host:port of a Ray cluster that this machine belongs to"),
    ],
)
def test_an_address_without_a_cluster_is_refused_at_once(
    address: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    started = time.monotonic()

    with pytest.raises(UsageError, match=message):
        RayExecutor(address=address)
    assert time.monotonic() - started < 5


# ---- on a cluster ----


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A cluster of this machine with room for two workers; its address."""
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    before, threads = dict(os.environ), torch.get_num_threads()
    # The secret of a cluster goes into the home folder where it is not given.
    os.environ.update(RAY_AUTH_TOKEN="f" * 64, OMP_NUM_THREADS="1")
    torch.set_num_threads(1)  # as workers have: with others, the last bits may differ
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield str(ray.get_runtime_context().gcs_address)
    ray.shutdown()
    torch.set_num_threads(threads)
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def shared(cluster: str) -> Iterator[RayExecutor]:
    """An executor whose workers stay from test to test."""
    with closing(RayExecutor()) as found:
        yield found


def pids(hands: RayExecutor) -> list[int]:
    """The processes of the workers that have nothing to do."""
    asked = [hand.actor.__ray_call__.remote(lambda worker: os.getpid()) for hand in hands._idle]
    return list(hands._ray.get(asked))


def release(hands: RayExecutor) -> None:
    """Make room in the cluster for another executor's workers."""
    hands._dismiss(hands._idle)
    hands._idle.clear()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def becomes(condition: Callable[[], bool], seconds: float = 60.0) -> bool:
    """Whether `condition` comes true."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def assert_equal(one: Run, other: Run) -> None:
    """Same address in a store, same answers, and the same numbers but for rounding."""
    assert one.path.name == other.path.name
    assert one.count == other.count
    for mine, theirs in zip(one.records(), other.records(), strict=True):
        plain = {"option_logprobs": ()}
        assert dataclasses.replace(mine, **plain) == dataclasses.replace(theirs, **plain)
        assert mine.option_logprobs == pytest.approx(theirs.option_logprobs, abs=1e-5)


def slowly(seconds: float) -> Callable[[Instance, str], Any]:
    """A scorer that takes its time, so that there is a middle to stop in."""

    # Not of this module: workers could not import it.
    def score(instance: Instance, output: str) -> Any:
        time.sleep(seconds)
        return exact(instance, output)

    return score


def test_workers_of_another_kind_are_refused(cluster: str) -> None:
    def joined(hands: RayExecutor, **changes: str) -> None:
        facts: Future[Any] = Future()
        device = changes.pop("device", "cpu")
        if "lost" in changes:
            facts.set_exception(hands._ray.exceptions.ActorDiedError())
        else:
            facts.set_result({"versions": library_versions() | changes, "numerics": {"device": device}})
        hands._starting[facts] = module._Hand(None)
        hands._join(facts)

    hands = RayExecutor()
    with pytest.raises(UsageError, match=r"a worker has torch 1\.0, this process .*: install the same everywhere"):
        joined(hands, torch="1.0")
    joined(hands)
    with pytest.raises(UsageError, match=r"some workers compute with cpu, some with cuda: their numbers differ"):
        joined(hands, device="cuda")
    assert hands.numerics() == {"device": "cpu"}
    assert len(hands._idle) == 1

    # Workers that are lost while they start are replaced, but not for ever.
    for _ in range(module.TRIES - 1):
        joined(hands, lost="yes")
    with pytest.raises(UsageError, match=r"a worker of the Ray cluster cannot start \(.*died.*\): install the same"):
        joined(hands, lost="yes")


def test_records_equal_those_of_the_local_executor(
    shared: RayExecutor, model_v1: Path, model_v2: Path, task: FixedTask, tmp_path: Path
) -> None:
    jobs = [Job(str(model), task) for model in (model_v1, model_v2)]
    seen: Counter[str] = Counter()

    found = evaluate_all(
        jobs,
        store=RunStore(tmp_path / "ray"),
        executor=shared,
        progress=lambda what, done, total, note="": seen.update({what: 1}),
    )
    expected = evaluate_all(jobs, store=RunStore(tmp_path / "local"))

    for one, other in zip(found, expected, strict=True):
        assert_equal(one, other)
    assert sorted(seen.values()) == [PARTS + 1] * 2
    assert shared.numerics() == {key: found[0].fingerprint["model"][key] for key in ("device", "dtype", "attention")}


def test_workers_stay_and_a_later_call_gets_its_own_model(
    shared: RayExecutor,
    model_v1: Path,
    model_v2: Path,
    task: FixedTask,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = evaluate(str(model_v1), task, executor=shared)
    before = pids(shared)
    # Relative to where this process is now, not to where the workers were started.
    monkeypatch.chdir(model_v2.parent)
    second = evaluate(model_v2.name, task, executor=shared)

    assert sorted(pids(shared)) == sorted(before)
    for model, run in ((model_v1, first), (model_v2, second)):
        assert_equal(run, evaluate(str(model), task, store=RunStore(tmp_path / "local")))


def test_an_error_of_a_worker_arrives_as_it_is(
    shared: RayExecutor, model_v1: Path, task: FixedTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs_module, "PART", 256)
    broken = tmp_path / "broken"
    model = AutoModelForCausalLM.from_pretrained(model_v1)
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    model.save_pretrained(broken)
    AutoTokenizer.from_pretrained(model_v1).save_pretrained(broken)

    with pytest.raises(ModelError, match="gives NaN instead of a log-likelihood") as found:
        evaluate(str(broken), task, executor=shared)
    assert type(found.value) is ModelError
    assert "\n" not in str(found.value)

    # A folder that leads elsewhere on the worker: here, the hash of this side is wrong.
    fingerprint_of = module.fingerprint_of
    with monkeypatch.context() as patch:
        patch.setattr(module, "fingerprint_of", lambda model: fingerprint_of(model) | {"weights": "others"})
        with pytest.raises(ModelError, match="its weights differ"):
            evaluate(str(model_v1), task, executor=shared)

    def unscorable(instance: Instance, output: str) -> Any:
        raise ZeroDivisionError("a scorer's own mistake")

    with pytest.raises(ZeroDivisionError, match="a scorer's own mistake"):
        evaluate(str(model_v1), dataclasses.replace(task, score_function=unscorable), executor=shared)
    assert evaluate(str(model_v1), task, executor=shared).count == 30


def test_what_cannot_be_sent_is_refused(shared: RayExecutor, model_v1: Path, task: FixedTask) -> None:
    with pytest.raises(UsageError, match=r"takes model references, and '.*v1' is loaded in this process: save it"):
        evaluate((AutoModelForCausalLM.from_pretrained(model_v1), AutoTokenizer.from_pretrained(model_v1)), task, executor=shared)  # noqa: E501  # fmt: skip

    lock = threading.Lock()
    locked = dataclasses.replace(task, score_function=lambda *asked: lock and exact(*asked))
    with pytest.raises(UsageError, match=r"task 'first-letter' cannot be sent to other processes \(.*lock.*\): take"):
        evaluate(str(model_v1), locked, executor=shared)


class Endpoint:
    """Stands for the local executor, which is asked for endpoints only."""

    asked: tuple[Unit, ...] = ()

    def answers(self, jobs: Any, units: list[Unit], heard: Any) -> Iterator[Any]:
        Endpoint.asked = tuple(units)
        return iter(())


def test_endpoints_are_asked_from_here(
    shared: RayExecutor, model_v1: Path, task: FixedTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LocalExecutor", Endpoint)
    jobs = [Job("http://localhost:1/v1#model", task), Job(str(model_v1), task)]

    answered = list(shared.answers(jobs, [Unit(0, 0), Unit(1, 0), Unit(0, 1)], lambda job, tokens: None))

    assert Endpoint.asked == (Unit(0, 0), Unit(0, 1))
    assert [(one.unit, len(one.records)) for one in answered] == [(Unit(1, 0), 5)]


def test_a_run_that_stopped_here_ends_on_the_cluster(
    shared: RayExecutor, model_v1: Path, task: FixedTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = evaluate(str(model_v1), task, store=RunStore(tmp_path / "whole"))
    asked: list[int] = []

    def killed(*arguments: Any) -> Any:
        asked.append(1)
        if len(asked) > 2:
            raise KeyboardInterrupt
        return answer(*arguments)

    broken = RunStore(tmp_path / "broken")
    with monkeypatch.context() as patch:
        patch.setattr("uphold.measure.executors.answer", killed)
        with pytest.raises(KeyboardInterrupt):
            evaluate(str(model_v1), task, store=broken)
    seen: list[int] = []
    resumed = evaluate(
        str(model_v1),
        task,
        store=broken,
        executor=shared,
        progress=lambda what, done, total, note="": seen.append(done),
    )

    assert seen == [10, 15, 20, 25, 30]  # two parts of five were there already
    assert resumed.records_path.read_bytes() == whole.records_path.read_bytes()
    assert (resumed.path / "run.json").read_bytes() == (whole.path / "run.json").read_bytes()


def test_the_parts_of_a_killed_worker_are_answered_by_others(
    shared: RayExecutor, model_v1: Path, model_v2: Path, task: FixedTask, tmp_path: Path
) -> None:
    slow = dataclasses.replace(task, score_function=slowly(0.02))
    jobs = [Job(str(model), slow) for model in (model_v1, model_v2)]
    evaluate(str(model_v1), task, store=RunStore(tmp_path / "first"), executor=shared)
    victim, *others = pids(shared)
    assert others

    def kill_once(what: str, done: int, total: int, note: str = "") -> None:
        if done and alive(victim):
            os.kill(victim, signal.SIGKILL)

    found = evaluate_all(jobs, store=RunStore(tmp_path / "ray"), executor=shared, progress=kill_once)

    assert not alive(victim)
    for one, other in zip(found, evaluate_all(jobs, store=RunStore(tmp_path / "local")), strict=True):
        assert_equal(one, other)


class Stop(BaseException):
    """What the command line makes of Ctrl-C: no KeyboardInterrupt."""


def test_ctrl_c_ends_the_run_at_once_and_its_workers_with_it(
    shared: RayExecutor, model_v1: Path, task: FixedTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs_module, "PART", 256)

    def stop(number: int, frame: object) -> None:
        raise Stop

    evaluate(str(model_v1), task, executor=shared)
    workers = pids(shared)
    before = signal.signal(signal.SIGINT, stop)
    started = time.monotonic()
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        with pytest.raises(Stop):
            evaluate(
                str(model_v1), dataclasses.replace(task, scorer="slow.v1", score_function=slowly(60)), executor=shared
            )
    finally:
        timer.join()
        signal.signal(signal.SIGINT, before)

    assert time.monotonic() - started < 5
    assert becomes(lambda: sum(map(alive, workers)) == len(workers) - 1)  # one was at work


def test_a_part_that_kills_every_worker_ends_the_run(
    shared: RayExecutor, model_v1: Path, task: FixedTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TRIES", 1)

    def deadly(instance: Instance, output: str) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(jobs_module, "PART", 256)
    with pytest.raises(
        ModelError, match="a worker was lost 1 times on the same part: it may need more memory"
    ) as found:
        evaluate(str(model_v1), dataclasses.replace(task, score_function=deadly), executor=shared)
    assert "\n" not in str(found.value)


DRIVER = """
import dataclasses, sys, time
from pathlib import Path
from uphold.core.runs import RunStore
from uphold.measure import jobs
from uphold.measure.evaluate import evaluate
from uphold.measure.executors import executor
from uphold.tasks.load import load_task
from uphold.tasks.scorers import exact

model, task_file, store, address = sys.argv[1:]

def slow(instance, output):
    time.sleep(0.2)
    return exact(instance, output)

jobs.PART = 5
task = dataclasses.replace(load_task(task_file), score_function=slow)
hands = executor("ray", address=address)
hands.numerics()
print(hands._ray.get(hands._idle[0].actor.__ray_call__.remote(lambda worker: __import__("os").getpid())), flush=True)
evaluate(model, task, store=RunStore(Path(store)), executor=hands)
"""


def test_a_killed_run_on_the_cluster_ends_here_byte_for_byte(
    cluster: str, shared: RayExecutor, model_v1: Path, task_file: Path, task: FixedTask, tmp_path: Path
) -> None:
    release(shared)
    store = tmp_path / "killed"
    command = [sys.executable, "-c", DRIVER, str(model_v1), str(task_file), str(store), cluster]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        assert becomes(lambda: len(list(store.glob("*/parts/0*.parquet"))) >= 2)
    finally:
        process.kill()
        process.communicate()
    assert not list(store.glob("*/run.json"))

    resumed = evaluate(str(model_v1), task, store=RunStore(store))
    whole = evaluate(str(model_v1), task, store=RunStore(tmp_path / "whole"))

    assert resumed.path.parent == store
    assert resumed.records_path.read_bytes() == whole.records_path.read_bytes()
    assert becomes(lambda: not alive(int(line)))


def test_closing_lets_the_workers_go_and_leaves_a_connection_that_it_found(cluster: str, shared: RayExecutor) -> None:
    release(shared)
    with closing(RayExecutor()) as own:
        own.numerics()
        (worker,) = pids(own)
    assert becomes(lambda: not alive(worker))
    assert own._ray.is_initialized()
