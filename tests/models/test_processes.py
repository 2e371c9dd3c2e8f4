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
from uphold.models.processes import Processes, is_first
from uphold.repair import AdaptConfig, MuscleConfig, adapt, muscle

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
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )


def test_one_process_is_the_first_and_sums_what_it_has() -> None:
    alone = Processes()
    assert is_first()
    assert alone.is_first
    assert alone.gather({"a": 1}) == [{"a": 1}]
    assert alone.agree([2]) == [2]
    with pytest.raises(KeyError), alone.first():
        raise KeyError


@pytest.mark.parametrize("fsdp", [False, True], ids=["copies", "fsdp"])
def test_two_processes_train_as_one_does(model_v1: Path, model_v2: Path, tmp_path: Path, fsdp: bool) -> None:
    """The whole call, from evaluating both models to the saved adapter, with batches that do not divide evenly."""
    keep: Any = "never" if fsdp else "always"
    task = write_task(tmp_path, 60)
    alone = adapt(model_v2, task, out=tmp_path / "adapted", config=AdaptConfig(**TINY))
    config = MuscleConfig(**TINY, controls=False, force=True, teacher_cache=keep)
    one = muscle(model_v1, alone.reference, task, out=tmp_path / "one", config=config)
    script = tmp_path / "both.py"
    script.write_text(
        "import sys, json\n"
        "from pathlib import Path\n"
        "from tests.models.test_processes import TINY\n"
        "from uphold.models.processes import current, is_first\n"
        "from uphold.repair import AdaptConfig, MuscleConfig, adapt, muscle\n"
        "v1, v2, task, folder, adapted, keep = sys.argv[1:]\n"
        "first = adapt(v2, task, out=f'{folder}/adapted2', config=AdaptConfig(**TINY))\n"
        "config = MuscleConfig(**TINY, controls=False, force=True, teacher_cache=keep)\n"
        "made = muscle(v1, adapted, task, out=f'{folder}/two', config=config)\n"
        "sizes = [len(one) for one in current().gather([1] * (current().rank + 1))]\n"
        "Path(f'{folder}/sizes-{current().rank}').write_text(json.dumps(sizes))\n"
        "Path(f'{folder}/rank-{current().rank}').write_text(str(made))\n"
    )
    root = str(Path(__file__).parents[2])
    os.environ["PYTHONPATH"] = root
    try:
        named = [str(one) for one in (script, model_v1, model_v2, task, tmp_path, alone.reference, keep)]
        done = launch(2, *named, fsdp=fsdp)
    finally:
        del os.environ["PYTHONPATH"]
    assert done.returncode == 0, done.stderr[-3000:]
    assert [json.loads((tmp_path / f"sizes-{rank}").read_text()) for rank in (0, 1)] == [[1, 2], [1, 2]]

    saved = json.loads((tmp_path / "two" / "repair.json").read_text())
    assert_same_curve(saved["arms"][0]["history"], one.to_dict()["arms"][0]["history"])
    adapted = json.loads((tmp_path / "adapted2" / "adapt.json").read_text())
    assert_same_curve(adapted["history"], json.loads((tmp_path / "adapted" / "adapt.json").read_text())["history"])
    assert (tmp_path / "rank-0").read_text() == (tmp_path / "rank-1").read_text()
    assert {path.name for path in (tmp_path / "two").rglob("*")} == {
        path.name for path in (tmp_path / "one").rglob("*")
    }


def assert_same_curve(two: list[dict[str, Any]], one: list[dict[str, Any]]) -> None:
    assert len(two) == len(one) == 1 + TINY["epochs"]
    for mine, theirs in zip(two, one, strict=True):
        assert mine["chosen"] == theirs["chosen"]
        assert mine["train"] == pytest.approx(theirs["train"], rel=1e-3, abs=1e-7)
        assert mine["validation"] == pytest.approx(theirs["validation"], rel=1e-3, abs=1e-7)
