from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.training import PLAIN, SCHEDULE, Doing, rows, run, weights
from uphold.core.errors import ModelError
from uphold.models import trainer as loop
from uphold.models.adapter import fresh_adapter
from uphold.models.encode import collate
from uphold.models.load import load
from uphold.models.objective import cross_entropy
from uphold.models.train import StepLoss, train


def test_training_lowers_the_loss_and_keeps_the_base(model_v1: Path, tmp_path: Path) -> None:
    model, history = run(model_v1, tmp_path / "t")
    losses = [entry["validation"]["loss"] for entry in history.epochs]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    base = load(model_v1).model.state_dict()
    inner = model.get_base_model().state_dict()
    assert all(torch.equal(inner[name.replace("_proj.", "_proj.base_layer.")], base[name]) for name in base)


def test_equal_seeds_give_equal_bytes_and_other_seeds_other_ones(model_v1: Path, tmp_path: Path) -> None:
    hashes = [
        weights(run(model_v1, tmp_path / str(index), replace(SCHEDULE, seed=seed))[0])
        for index, seed in enumerate((0, 0, 1))
    ]
    assert hashes[0] == hashes[1] != hashes[2]


def test_accumulated_gradients_equal_one_large_batch(model_v1: Path, tmp_path: Path) -> None:
    whole, _ = run(model_v1, tmp_path / "whole")
    split, _ = run(model_v1, tmp_path / "split", replace(SCHEDULE, micro_batch=1))
    for name, value in whole.named_parameters():
        assert torch.allclose(value, dict(split.named_parameters())[name], atol=2e-4), name


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpointed_layers_give_the_same_gradients_and_are_left_as_they_were(
    model_v1: Path, tmp_path: Path, dropout: float
) -> None:
    found, passes = [], []
    for again in (False, True):
        model = fresh_adapter(load(model_v1), 4, 8, dropout, seed=0)
        reads: list[int] = []
        model.get_base_model().model.layers[0].mlp.register_forward_pre_hook(lambda *_, reads=reads: reads.append(1))
        with loop.checkpointed(model, again):
            model.train()
            torch.manual_seed(0)
            cross_entropy("all")(model, collate(rows(model_v1))).total.backward()
        assert not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
        passes.append(len(reads))
        found.append({name: value.grad for name, value in model.named_parameters() if value.requires_grad})
    assert passes == [1, 2]
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    hashes = [
        weights(run(model_v1, tmp_path / str(again), replace(SCHEDULE, gradient_checkpointing=again))[0])
        for again in (False, True)
    ]
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_stopped_at_any_step_and_taken_up_again_ends_with_the_same_bytes(
    model_v1: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dropout: float
) -> None:
    monkeypatch.setattr(loop, "SAVE_EVERY_S", 0.0)
    expected, expected_history = run(model_v1, tmp_path / "whole", dropout=dropout)
    for stop_at in range(1, 4):
        steps = 0

        def stop(stop_at: int = stop_at) -> None:
            nonlocal steps
            steps += 1
            if steps > stop_at:
                raise KeyboardInterrupt

        folder = tmp_path / f"stopped-{stop_at}"
        with pytest.raises(KeyboardInterrupt):
            run(model_v1, folder, objective=Doing(stop), dropout=dropout)
        model, history = run(model_v1, folder, dropout=dropout)
        assert weights(model) == weights(expected)
        assert history == expected_history


def test_a_killed_process_is_taken_up_again(model_v1: Path, tmp_path: Path) -> None:
    script = tmp_path / "killed.py"
    script.write_text(
        "import sys, time\n"
        "from pathlib import Path\n"
        "from tests.models import training as t\n"
        "from uphold.models import trainer as loop\n"
        "loop.SAVE_EVERY_S = 0.0\n"
        "t.run(Path(sys.argv[1]), Path(sys.argv[2]), objective=t.Doing(lambda: time.sleep(0.4)))\n"
    )
    folder = tmp_path / "training"
    root = str(Path(__file__).parents[2])
    process = subprocess.Popen(
        [sys.executable, str(script), str(model_v1), str(folder)], cwd=root, env={**os.environ, "PYTHONPATH": root}
    )
    deadline = time.monotonic() + 120
    while not list(folder.glob("step-*")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert list(folder.glob("step-*"))
    resumed, _ = run(model_v1, folder)
    assert weights(resumed) == weights(run(model_v1, tmp_path / "whole")[0])


def test_rows_of_one_instance_are_read_together(model_v1: Path, tmp_path: Path) -> None:
    """Micro-batches hold whole examples; one that is larger than a micro-batch gets a forward pass of its own."""
    data = rows(model_v1)
    examples = [tuple(data[:3]), tuple(data[3:4]), tuple(data[4:6]), tuple(data[6:])]
    sizes: list[list[int]] = []

    class Watching(Doing):
        def __call__(self, model: Any, batch: Any) -> StepLoss:
            sizes.append(sorted(int(length) for length in batch.attention_mask.sum(dim=1)))
            return super().__call__(model, batch)

    schedule = replace(SCHEDULE, epochs=1, micro_batch=2)
    run(model_v1, tmp_path / "t", schedule, examples=examples, objective=Watching(lambda: None))
    lengths = [sorted(len(row.prompt) + len(row.answer) for row in example) for example in examples]
    assert sorted(chain(*sizes)) == sorted(chain(*lengths))
    assert lengths[0] in sizes
    assert all(any(set(example) <= set(group) for group in sizes) for example in lengths)


class Steep:
    """A finite loss whose gradient is not finite."""

    def __call__(self, model: Any, batch: Any) -> StepLoss:
        weight = next(value for value in model.parameters() if value.requires_grad)
        return StepLoss((0 * weight).sum().sqrt(), {"loss": (0.0, 1.0)})

    def count(self, batch: Any) -> int:
        return 1


def test_what_is_not_finite_ends_the_training_before_a_weight_is_lost(model_v1: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="the loss or its gradient is not finite at step 0"):
        run(model_v1, tmp_path / "gradient", objective=Steep())
    model = fresh_adapter(load(model_v1), 4, 8, 0.0, seed=0)
    broken = {"loss": float("nan"), "accuracy": 0.5}
    with pytest.raises(ModelError, match=r"validation gives .*nan.* after epoch 0"):
        train(model, [(row,) for row in rows(model_v1)], PLAIN, SCHEDULE, lambda _: broken, tmp_path / "v", key="k")
