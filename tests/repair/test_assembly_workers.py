from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Iterator
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import pytest

from tests.models.stages.nets import QUICK, blueprint, examples, meta
from uphold.core.errors import ModelError, UsageError
from uphold.repair import assembly_workers
from uphold.repair.assembly_jobs import read_job
from uphold.repair.assembly_workers import incubate_all

DATA = examples()
OFTEN = dataclasses.replace(QUICK, epochs=20, save_every_s=0.0)
"""A training that is long enough to be killed in the middle."""


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What this process makes of stages 0 and 1, one after the other."""
    folder = tmp_path_factory.mktemp("expected")
    return modules(incubate_all(meta(), blueprint().stage, DATA, out=folder, stages=[0, 1], config=OFTEN))


def modules(jobs: Any) -> list[str]:
    return [str(job.result["module"]) for job in jobs]


def test_killed_workers_leave_what_they_saved_and_the_same_call_goes_on_to_the_same_bytes(
    expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assembly_workers, "POLL_S", 0.01)
    seen: list[tuple[str, int, int, str]] = []

    def kill(what: str, done: int, total: int, note: str = "") -> None:
        seen.append((what, done, total, note))
        if any((tmp_path / f"stage-{stage}" / "state").glob("step-*") for stage in (0, 1)):
            for child in active_children():
                os.kill(child.pid or 0, signal.SIGKILL)

    def run(**more: Any) -> list[str]:
        return modules(
            incubate_all(meta(), blueprint().stage, DATA, out=tmp_path, stages=[1, 0], config=OFTEN, workers=2, **more)
        )

    with pytest.raises(ModelError, match=r"the process of stage \d ended with code -9: what was finished is kept"):
        run(progress=kill)
    assert not active_children()
    assert {what for what, *_ in seen} == {"incubation"}
    assert not all((tmp_path / f"stage-{stage}" / "result.json").is_file() for stage in (0, 1))

    assert run() == expected[::-1]


def test_errors_of_workers_are_raised_here_and_stop_the_others(tmp_path: Path) -> None:
    message = r"there is no stage 9: expected 0 to 2"
    with pytest.raises(UsageError, match=message):
        incubate_all(meta(), blueprint().stage, DATA, out=tmp_path, stages=[9, 0], config=OFTEN, workers=2)
    assert not active_children()


def test_what_cannot_be_sent_is_refused(tmp_path: Path) -> None:
    plan = blueprint()
    with pytest.raises(UsageError, match=r"cannot be sent to other processes \(.*\): use functions and classes"):
        incubate_all(meta(), lambda stage: plan.stage(stage), DATA, out=tmp_path, config=QUICK, workers=2)
    for changes, message in (
        ({"workers": 0}, r"0 workers: expected at least 1"),
        ({"executor": "rai"}, r"unknown executor 'rai': did you mean 'ray'\?"),
    ):
        with pytest.raises(UsageError, match=message):
            incubate_all(meta(), plan.stage, DATA, out=tmp_path, config=QUICK, **changes)  # type: ignore[arg-type]


# ---- Ray ----


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    before = dict(os.environ)
    # Workers import what was pickled by its name.
    os.environ.update(RAY_AUTH_TOKEN="f" * 64, OMP_NUM_THREADS="1", PYTHONPATH=os.pathsep.join(map(str, paths())))
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray
    ray.shutdown()
    os.environ.clear()
    os.environ.update(before)


def paths() -> list[str]:
    return [str(Path(__file__).parents[2]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]


def test_a_cluster_makes_the_same_bytes(cluster: Any, expected: list[str], tmp_path: Path) -> None:
    arguments: Any = (meta(), blueprint().stage, DATA)
    notes: list[str] = []

    jobs = incubate_all(
        *arguments,
        out=tmp_path,
        stages=[0, 1],
        config=OFTEN,
        executor="ray",
        progress=lambda what, done, total, note="": notes.append(note),
    )

    assert modules(jobs) == expected
    assert [job.stage for job in jobs] == [0, 1]
    assert notes[-1] == "2 of 2 stages finished"
    assert cluster.is_initialized()
    with pytest.raises(UsageError, match=r"there is no stage 7"):
        incubate_all(*arguments, out=tmp_path, stages=[7], config=OFTEN, executor="ray")
    assert read_job(tmp_path / "stage-0").result["module"] == expected[0]


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"needs the package ray: pip install 'uphold\[ray\]'"):
        assembly_workers._on_ray([], None, lambda *_: None)
