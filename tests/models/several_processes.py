"""A training in two processes, checked against the same one in one process."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import write_task
from uphold.models import trainer
from uphold.models.processes import current
from uphold.repair import AdaptConfig, MuscleConfig, adapt, muscle

_PATH = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
TINY: dict[str, Any] = {
    "epochs": 2,
    "learning_rate": 1e-3,
    "warmup_steps": 2,
    "batch_size": 7,
    "micro_batch": 2,
    "rank": 4,
    "select": "loss",
    "max_gradient_norm": 1.0,
}


def launch(count: int, *arguments: str, fsdp: bool = False) -> subprocess.CompletedProcess[str]:
    """Run Python with `arguments` as `accelerate launch` does, in `count` processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--use_fsdp", "--fsdp_version", "2"] if fsdp else ["--multi_gpu"]
    options += ["--num_processes", str(count), "--num_machines", "1", "--main_process_port", str(port)]
    options += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    return subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *options, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONPATH": _PATH,
            "PYTHONFAULTHANDLER": "1",
        },
    )


def train_in_each(v1: str, v2: str, task: str, folder: Path, reference: str, keep: Any) -> None:
    """What every process does: adapt, interrupted after three steps and taken up again, then repair."""
    trainer.SAVE_EVERY_S = 0.0
    steps: list[int] = []

    def until(limit: int) -> Any:
        def report(what: str, done: int, total: int, note: str = "") -> None:
            if what.startswith("adapting"):
                steps.append(done)
                if done == limit:
                    raise KeyboardInterrupt

        return report

    for limit in (3, 0):
        try:
            adapt(v2, task, out=folder / "adapted2", config=AdaptConfig(**TINY), progress=until(limit))
        except KeyboardInterrupt:
            assert limit == 3
    # The step in which it was interrupted had not been saved.
    assert steps[:4] == [1, 2, 3, 3]
    config = MuscleConfig(**TINY, controls=False, force=True, teacher_cache=keep)
    made = muscle(v1, reference, task, out=folder / "two", config=config)
    rank = current().rank
    sizes = [len(one) for one in current().gather([1] * (rank + 1))]
    (folder / f"sizes-{rank}").write_text(json.dumps(sizes))
    (folder / f"rank-{rank}").write_text(str(made))


def check_two_processes(v1: Path, v2: Path, folder: Path, fsdp: bool) -> None:
    """The whole call, from evaluating both models to the saved adapter, with batches that do not divide evenly."""
    keep: Any = "never" if fsdp else "always"
    task = write_task(folder, 60)
    alone = adapt(v2, task, out=folder / "adapted", config=AdaptConfig(**TINY))
    config = MuscleConfig(**TINY, controls=False, force=True, teacher_cache=keep)
    one = muscle(v1, alone.reference, task, out=folder / "one", config=config)
    script = folder / "both.py"
    script.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "from tests.models.several_processes import train_in_each\n"
        "v1, v2, task, folder, adapted, keep = sys.argv[1:]\n"
        "train_in_each(v1, v2, task, Path(folder), adapted, keep)\n"
    )
    named = [str(one) for one in (script, v1, v2, task, folder, alone.reference, keep)]
    done = launch(2, *named, fsdp=fsdp)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [json.loads((folder / f"sizes-{rank}").read_text()) for rank in (0, 1)] == [[1, 2], [1, 2]]

    saved = json.loads((folder / "two" / "repair.json").read_text())
    assert_same_curve(saved["arms"][0]["history"], one.to_dict()["arms"][0]["history"])
    adapted = json.loads((folder / "adapted2" / "adapt.json").read_text())
    assert_same_curve(adapted["history"], json.loads((folder / "adapted" / "adapt.json").read_text())["history"])
    assert (folder / "rank-0").read_text() == (folder / "rank-1").read_text()
    assert {path.name for path in (folder / "two").rglob("*")} == {path.name for path in (folder / "one").rglob("*")}


def assert_same_curve(two: list[dict[str, Any]], one: list[dict[str, Any]]) -> None:
    assert len(two) == len(one) == 1 + TINY["epochs"]
    for mine, theirs in zip(two, one, strict=True):
        assert mine["chosen"] == theirs["chosen"]
        assert mine["train"] == pytest.approx(theirs["train"], rel=1e-3, abs=1e-7)
        assert mine["validation"] == pytest.approx(theirs["validation"], rel=1e-3, abs=1e-7)
