from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

from uphold.core.errors import CorruptError, EmptyError, ModelError, UsageError
from uphold.models import trainer as loop
from uphold.models.adapter import fresh_adapter
from uphold.models.encode import Encoded, Encoder, collate
from uphold.models.fingerprint import module_fingerprint
from uphold.models.load import load
from uphold.models.objective import cross_entropy
from uphold.models.train import History, Schedule, StepLoss, chosen_epoch, train, trained_tokens

SCHEDULE = Schedule(epochs=2, learning_rate=1e-2, warmup_steps=2, batch_size=4, micro_batch=4, select="loss")
PLAIN = cross_entropy(SCHEDULE.tokens)
TEXTS = [("a=", "1"), ("b=", "2"), ("c=", "3"), ("d=", "4"), ("ab=", "12"), ("cd=", "34"), ("dcba=", "4321")]


@dataclass
class Doing:
    """Cross-entropy after something else has been done."""

    first: Callable[[], None]

    def __call__(self, model: Any, batch: Any) -> StepLoss:
        self.first()
        return PLAIN(model, batch)

    def count(self, batch: Any) -> int:
        return PLAIN.count(batch)


@dataclass
class Constant:
    """A loss that is always the same."""

    loss: StepLoss

    def __call__(self, model: Any, batch: Any) -> StepLoss:
        return self.loss

    def count(self, batch: Any) -> int:
        return 1


class Instead:
    """Cross-entropy with another loss in its place."""

    def __init__(self, loss: Callable[[Any, Any], StepLoss]) -> None:
        self.loss, self.count = loss, cross_entropy("all").count

    def __call__(self, model: Any, batch: Any) -> StepLoss:
        return self.loss(model, batch)


def rows(model: Path) -> list[Encoded]:
    return Encoder(load(model).tokenizer).pairs(TEXTS)


def run(
    model_path: Path, folder: Path, schedule: Schedule = SCHEDULE, key: str = "key", **changes: Any
) -> tuple[Any, History]:
    model = fresh_adapter(load(model_path), 4, 8, changes.pop("dropout", 0.0), seed=0)
    data = rows(model_path)

    def validate(epoch: int) -> Mapping[str, float]:
        with torch.inference_mode():
            return {"loss": float(PLAIN(model, collate(data)).total), "accuracy": 0.5}

    examples = changes.get("examples", [(row,) for row in data])
    history = train(model, examples, changes.get("objective", PLAIN), schedule, validate, folder, key=key)
    return model, history


def weights(model: Any) -> str:
    return str(module_fingerprint(model, "x")["weights"])


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


def test_padding_changes_nothing(model_v1: Path) -> None:
    model = load(model_v1).model
    data = rows(model_v1)
    losses = [PLAIN(model, collate(data, extra)).total.item() for extra in (0, 9)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_only_the_asked_tokens_are_trained() -> None:
    batch = collate([Encoded([5, 6], [7, 8], 3), Encoded([9], [3])])
    answers, everything = trained_tokens(batch, "answer"), trained_tokens(batch, "all")
    assert answers.targets.tolist() == [7, 8, 3]
    assert list(zip(answers.sequence.tolist(), answers.position.tolist(), strict=True)) == [(0, 1), (0, 2), (1, 0)]
    assert everything.targets.tolist() == [6, 7, 8, 3]
    assert everything.is_answer.tolist() == [False, True, True, True]
    assert everything.sequence.tolist() == [0, 0, 0, 1]
    assert everything.instance.tolist() == [3, 3, 3, -1]


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
        "from tests.models import test_train as t\n"
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


def test_a_finished_training_is_read_not_repeated(model_v1: Path, tmp_path: Path) -> None:
    first, history = run(model_v1, tmp_path / "t")

    again, read = run(model_v1, tmp_path / "t", objective=Doing(lambda: pytest.fail("trained again")))
    assert weights(first) == weights(again)
    assert read == history


def test_another_trainings_folder_is_refused(model_v1: Path, tmp_path: Path) -> None:
    run(model_v1, tmp_path / "t")
    with pytest.raises(UsageError, match="holds another training"):
        run(model_v1, tmp_path / "t", key="other")


def test_a_damaged_state_is_named(model_v1: Path, tmp_path: Path) -> None:
    run(model_v1, tmp_path / "t")
    (tmp_path / "t" / "done" / "state.safetensors").write_bytes(b"x")
    with pytest.raises(CorruptError, match="done cannot be read"):
        run(model_v1, tmp_path / "t")


def test_what_cannot_be_trained_is_refused(model_v1: Path, tmp_path: Path) -> None:
    with pytest.raises(EmptyError, match="train split is empty"):
        run(model_v1, tmp_path / "a", examples=[])
    with pytest.raises(ModelError, match="not finite at step 0"):
        run(model_v1, tmp_path / "b", objective=Constant(StepLoss(torch.tensor(float("nan")), {})))
    with pytest.raises(UsageError, match="learning rate > 0"):
        Schedule(learning_rate=0)
    with pytest.raises(UsageError, match="must not be negative"):
        Schedule(warmup_steps=-1)
    with pytest.raises(UsageError, match="did you mean 'linear'"):
        Schedule(decay="linaer")  # type: ignore[arg-type]


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


def test_the_learning_rate_rises_and_falls_as_asked() -> None:
    def rates(decay: Any) -> list[float]:
        schedule = replace(SCHEDULE, learning_rate=1.0, warmup_steps=2, decay=decay)
        return [schedule.rate(step, 6) for step in range(6)]

    assert rates("constant") == [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert rates("linear") == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    assert rates("cosine") == pytest.approx([0.5, 1.0, 1.0, 0.5 + 0.125**0.5, 0.5, 0.5 - 0.125**0.5])


def entry(epoch: int, accuracy: float, nfr: float = 0.0, loss: float = 0.0) -> dict[str, Any]:
    return {"epoch": epoch, "validation": {"accuracy": accuracy, "nfr": nfr, "loss": loss}}


def test_which_epoch_is_kept() -> None:
    history = [entry(0, 0.60, 0.10, 3), entry(1, 0.62, 0.09, 2), entry(2, 0.61, 0.07, 1), entry(3, 0.55, 0.01, 4)]
    assert chosen_epoch(history, "accuracy") == 1
    assert chosen_epoch(history, "nfr") == 2
    assert chosen_epoch(history, "loss") == 2
    assert chosen_epoch(history, "last") == 3
    assert chosen_epoch(history[:1], "nfr") == 0
    falling = [entry(0, 0.60, 0.10), entry(1, 0.50, 0.02), entry(2, 0.52, 0.05)]
    assert chosen_epoch(falling, "nfr") == 2
