from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.models.stages.nets import QUICK, drawn, dropout_mlp, examples, mlp, noise
from uphold.core.errors import CorruptError, ModelError, UsageError
from uphold.models.fingerprint import tensors_hash
from uphold.models.stages.data import Classification, Examples
from uphold.models.stages.training import FineTuning, Trainee, Training, batches, fit, seeded, threads


class Stop(Exception):
    pass


def stop_at(step: int) -> Any:
    def progress(what: str, done: int, total: int, note: str = "") -> None:
        if done == step:
            raise Stop

    return progress


def trainee(net: nn.Module) -> Trainee:
    return Trainee(net, dict(net.named_parameters()), dict(net.named_buffers()))


def fresh(build: Any = mlp) -> nn.Module:
    made: nn.Module = drawn((2,), build).model
    return made


def trained(folder: Path, data: Examples, config: Training = QUICK, build: Any = mlp, **more: Any) -> str:
    net = fresh(build)
    fit(trainee(net), data, Classification(), config, folder, **more)
    return tensors_hash(net.state_dict())


@given(st.integers(1, 300), st.integers(1, 50), st.integers(0, 9))
def test_every_instance_is_drawn_once_and_batches_are_equally_large(count: int, size: int, epoch: int) -> None:
    number = -(-count // size)
    parts = batches(count, number, 0, epoch)

    assert sorted(int(one) for part in parts for one in part) == list(range(count))
    sizes = {len(part) for part in parts}
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= size


@pytest.mark.parametrize("build", [mlp, dropout_mlp])
def test_an_interrupted_training_ends_with_the_bytes_of_one_that_was_not(build: Any, tmp_path: Path) -> None:
    data = examples(augment=noise)
    state = torch.get_rng_state()
    whole = trained(tmp_path / "whole", data, build=build)
    assert torch.equal(torch.get_rng_state(), state)

    often = Training(**{**vars(QUICK), "save_every_s": 0.0})
    for step in (1, 4, 7):
        with pytest.raises(Stop):
            trained(tmp_path / "cut", data, often, build, progress=stop_at(step))
        torch.rand(3)  # what others draw meanwhile does not matter
    assert trained(tmp_path / "cut", data, often, build) == whole
    # A finished one is read, not repeated.
    assert trained(tmp_path / "cut", data, often, build, progress=stop_at(1)) == whole
    assert whole != trained(tmp_path / "seed", data, Training(**{**vars(QUICK), "seed": 1}), build)


def test_a_broken_state_is_reported(tmp_path: Path) -> None:
    often = Training(**{**vars(QUICK), "save_every_s": 0.0})
    with pytest.raises(Stop):
        trained(tmp_path, examples(), often, progress=stop_at(3))
    (found,) = tmp_path.glob("step-*")
    (found / "state.safetensors").write_bytes(b"half")
    with pytest.raises(CorruptError, match=r"the saved training .* cannot be read"):
        trained(tmp_path, examples(), often)


def test_the_rate_rises_in_a_line_and_falls_as_half_a_cosine() -> None:
    plan = Training(learning_rate=1.0, final_rate=0.2, warmup_steps=4)

    assert [plan.rate(step, 12) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert plan.rate(4, 12) == 1.0
    assert plan.rate(8, 12) == pytest.approx(0.6)
    assert plan.rate(12, 12) == pytest.approx(0.2)


def test_a_fine_tune_has_no_warm_up_and_clipped_gradients() -> None:
    assert (FineTuning().warmup_steps, FineTuning().max_gradient_norm) == (0, 1.0)
    assert FineTuning().rate(0, 10) == FineTuning().learning_rate


def test_gradients_are_clipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    step = torch.optim.AdamW.step

    def watched(self: Any, *arguments: Any) -> Any:
        values = [value.grad for group in self.param_groups for value in group["params"]]
        seen.append(math.sqrt(sum(float(value.square().sum()) for value in values)))
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    trained(tmp_path / "free", examples())
    assert max(seen) > 0.05
    seen.clear()
    trained(tmp_path / "clipped", examples(), FineTuning(epochs=1, max_gradient_norm=0.05))
    assert max(seen) <= 0.0501


def test_weight_decay_spares_biases_and_norms_and_whatever_is_frozen(tmp_path: Path) -> None:
    net = fresh()
    start = {name: value.clone() for name, value in net.state_dict().items()}
    # Nothing to learn from, so that decay alone moves anything.
    data = Examples(torch.zeros(8, 4), torch.zeros(8, dtype=torch.long))

    class Nothing(Classification):
        def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return 0 * outputs.sum()

    chosen = {name: value for name, value in net.named_parameters() if name.startswith("1.")}
    fit(Trainee(net, chosen, {}, [net[1]]), data, Nothing(), Training(epochs=1, weight_decay=0.5), tmp_path)

    moved = {name for name, value in net.state_dict().items() if not torch.equal(value, start[name])}
    assert moved == {"1.up.weight", "1.down.weight"}


def test_modes_of_what_is_trained_and_of_what_is_frozen() -> None:
    net = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(4), nn.Sequential(nn.Dropout(), nn.BatchNorm1d(4)))
    part = Trainee(net, {}, {}, [net[2]])

    part.mode("eval")
    assert [module.training for module in (net[0], net[1], *net[2])] == [False, False, True, True]
    part.mode("train")
    assert [module.training for module in (net[0], net[1], *net[2])] == [True, False, True, True]
    Trainee(net, {}).mode("eval")
    assert all(module.training for module in net.modules())


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path: Path) -> None:
    data = Examples(torch.full((4, 4), float("inf")), torch.zeros(4, dtype=torch.long))
    with pytest.raises(ModelError, match=r"training: the loss is not finite at step 0: lower the learning rate"):
        trained(tmp_path, data)


@pytest.mark.parametrize(
    "wrong",
    [{"epochs": 0}, {"batch_size": 0}, {"threads": 0}, {"final_rate": 1.0}, {"warmup_steps": -1}, {"seed": -1}],
)
def test_options_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"a training needs|must not be negative"):
        Training(**wrong)


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(UsageError, match=r"unknown mode of frozen stages 'evil': did you mean 'eval'"):
        Training(frozen="evil")  # type: ignore[arg-type]


def test_threads_and_seeds_are_lent_and_given_back() -> None:
    before, state = torch.get_num_threads(), torch.get_rng_state()
    with threads(1):
        assert torch.get_num_threads() == 1
        one = seeded(lambda: torch.rand(2), 5)
    assert torch.get_num_threads() == before
    assert torch.equal(one, seeded(lambda: torch.rand(2), 5))
    assert not torch.equal(one, seeded(lambda: torch.rand(2), 6))
    assert torch.equal(torch.get_rng_state(), state)
